"""What a training run is told: one dataclass, its presets, and the checks on it."""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from pkd.models.ganomaly import IMAGE_SIZES, Architecture
from pkd.models.paper import PAPER_STUDENTS
from pkd.training.structures import PHASE_NAMES, SCHEDULES, TEACHER, Structure
from pkd.utils.device import device_name, in_tf32
from pkd.utils.errors import PkdError, flag

PublishedName = Literal["digits", "mnist", "fashion_mnist", "cifar10"]

OwnName = Literal["folder", "npz"]

DatasetName = Literal[PublishedName, OwnName]

OWN_DATA = get_args(OwnName)
CONTAMINATION = 0.05

StructureName = Literal["1", "2", "3", "4", "progressive-23", "progressive-24"]

QUICK = {
    "student_widths": "8-16-64",
    "teacher_epochs": 4,
    "step1_epochs": 10,
    "step2_epochs": 2,
    "batch_size": 8,
    "max_train_images": 1000,
    "held_out": 0.1,
    "lr": 0.0005,  # a few hundred steps end better with this, falling, than with the paper's
    "lr_schedule": "linear",
}


def preset_defaults(preset: str, dataset: str, images: int | None = None) -> dict[str, Any]:
    """The defaults that a preset stands for; flags given explicitly override them.

    Args:
        images: to train on. Of fewer than 1,000 "quick" makes more epochs, as many steps as of
            1,000; None leaves its epochs as they are.
    """
    if preset == "paper":
        widths = PAPER_STUDENTS.get(dataset, PAPER_STUDENTS["mnist"])[1]
        epochs = {f"{phase}_epochs": 500 for phase in PHASE_NAMES}
        return {
            "student_widths": "-".join(map(str, widths)),
            "batch_size": 1,
            "lr": 0.002,
            "lr_schedule": "constant",
            "held_out": 0.02,  # the paper trains on all images
            **epochs,
        }
    if images is None:
        return QUICK
    stretch = max(1.0, QUICK["max_train_images"] / images)
    epochs = {f"{phase}_epochs": round(QUICK[f"{phase}_epochs"] * stretch) for phase in PHASE_NAMES}
    return QUICK | epochs | {"batch_size": min(QUICK["batch_size"], images)}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run.

    Args:
        dataset: data set to train on; "folder" and "npz" are your own images.
        data_dir: folder with the data set's files; default $PKD_DATA_DIR, then a cache folder. Of
            "folder" the folder with train/good and test, of "npz" the file.
        skip_bad: leave unreadable files of a folder out.
        normal_class: "all", a class number, or several as "1,5"; each is one model of the stack.
        seeds: repeats of each class, seeds 0 to SEEDS-1, trained as further models of the stack.
        structure: KDGAN-1 to -4, or the two steps of P-KDGAN-II-(2)(3) or -(2)(4).
        teacher_widths: channels of the teacher's three stages.
        student_widths: channels of the student's three stages; default by preset.
        preset: defaults for widths, epochs, batch size and training images: "quick" for a laptop,
            "paper" for batch 1, 500 epochs a phase and the paper's student of the data set.
        teacher_epochs: epochs of the teacher's own training; default by preset.
        step1_epochs: epochs of the first distillation step; default by preset.
        step2_epochs: epochs of the second step of a progressive structure; default by preset.
        batch_size: images a step and model; default by preset.
        max_train_images: use only the first N training images of each class, all where it has
            fewer; default by preset.
        image_size: height and width that images are brought to: 16, 32, 64 or 128.
        channels: 1 for grey, 3 for RGB; default as the images are, of a folder RGB if any training
            image is in colour.
        held_out: share of each class's training images held out of training, which the threshold
            of novelty comes from; default by preset.
        contamination: share of normal images that the threshold lets be called novel.
        lr: Adam's learning rate; default by preset.
        lr_schedule: keep the rate, or let it fall linearly to 0 in each phase; default by preset.
        betas: Adam's decay rates.
        weights: of the loss terms con,enc,adv (Eq. 5) and k1,kx,k2 (Eq. 6).
        reduction: "mean" over elements, or "norm", the paper's letter.
        norm: normalisation over one image, or over the batch.
        norm_first: normalise the first encoder convolution too, as the paper's Table 1 has it.
        latent: size of the latent vectors.
        device: where to train; "auto" takes a GPU if there is one.
        precision: of float32 products on a GPU: in full, or TF32, their factors rounded to 10 bits
            of mantissa, which results then name.
        stack: models trained together; default all of them, or as many as fit the GPU's memory,
            one stack after the other.
        graph: on a GPU, replay a training step as one CUDA graph instead of launching its kernels
            one by one.
        checkpoint_every: seconds between checkpoints within a phase.
    """

    dataset: DatasetName = "digits"
    data_dir: str | None = None
    skip_bad: bool = False
    normal_class: str = "all"
    seeds: int = 1
    structure: StructureName = "progressive-23"
    teacher_widths: str = "64-128-256"
    student_widths: str | None = None
    preset: Literal["quick", "paper"] = "quick"
    teacher_epochs: int | None = None
    step1_epochs: int | None = None
    step2_epochs: int | None = None
    batch_size: int | None = None
    max_train_images: int | None = None
    image_size: int = 32
    channels: int | None = None
    held_out: float | None = None
    contamination: float = CONTAMINATION
    lr: float | None = None
    lr_schedule: Literal["constant", "linear"] | None = None
    betas: tuple[float, float] = (0.5, 0.999)
    weights: tuple[float, float, float, float, float, float] = (10.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    reduction: Literal["mean", "norm"] = "mean"
    norm: Literal["instance", "batch"] = "instance"
    norm_first: bool = True
    latent: int = 256
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "tf32"] = "float32"
    stack: int | None = None
    graph: bool = True
    checkpoint_every: float = 60.0

    def resolved(self, images: int | None = None) -> "TrainConfig":
        """This configuration with the preset's values filled in, checked.

        Args:
            images: see `preset_defaults`.

        Raises:
            PkdError: a value that no training could use.
        """
        defaults = preset_defaults(self.preset, self.dataset, images)
        missing = {k: v for k, v in defaults.items() if getattr(self, k) is None}
        if self.data_dir:
            missing["data_dir"] = str(Path(self.data_dir).expanduser().absolute())
        config = replace(self, **missing)
        config.check()
        return config

    def check(self) -> None:
        """Raise PkdError naming the flag of a value that no training could use."""
        for name, hint in get_type_hints(TrainConfig).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                choices = ", ".join(get_args(hint))
                raise PkdError(f"{flag(name)} is {getattr(self, name)!r}; choose one of {choices}")
        counts = ("seeds", "teacher_epochs", "step1_epochs", "step2_epochs", "batch_size")
        for name in (*counts, "latent", "max_train_images", "stack"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PkdError(f"{flag(name)} is {value}, but must be at least 1")
        rate = torch.tensor(self.lr, dtype=torch.float32).item()  # as Adam will have it
        if not (math.isfinite(rate) and rate > 0):
            raise PkdError(
                f"--lr is {self.lr}, but must be positive and finite in float32, e.g. 0.002"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise PkdError(f"--betas is {self.betas}, but each must lie in [0, 1)")
        if not all(math.isfinite(weight) and weight >= 0 for weight in self.weights):
            raise PkdError(f"--weights is {self.weights}, but each must be finite and at least 0")
        if not self.checkpoint_every >= 0:
            raise PkdError(f"--checkpoint-every is {self.checkpoint_every}, but counts seconds")
        if self.image_size not in IMAGE_SIZES:
            sizes = ", ".join(map(str, IMAGE_SIZES))
            raise PkdError(f"--image-size is {self.image_size}, but must be one of {sizes}")
        if self.channels not in (None, 1, 3):
            raise PkdError(f"--channels is {self.channels}, but must be 1 (grey) or 3 (RGB)")
        if not 0 < self.held_out < 1:
            raise PkdError(f"--held-out is {self.held_out}, but must lie between 0 and 1, e.g. 0.1")
        if not 0 < self.contamination <= 0.5:
            raise PkdError(f"--contamination is {self.contamination}, but must lie in (0, 0.5]")
        parse_widths("teacher_widths", self.teacher_widths)
        parse_widths("student_widths", self.student_widths)

    def architecture(self, network: str, channels: int) -> Architecture:
        """Architecture of "teacher" or "student" for images of `channels`."""
        name = f"{network}_widths"
        widths = parse_widths(name, getattr(self, name))
        return Architecture(
            channels, widths, self.latent, self.norm, self.norm_first, self.image_size
        )

    def phases(self) -> list["Phase"]:
        """The phases of this run in order: the teacher's own training, then one step or two."""
        structures = (TEACHER, *SCHEDULES[self.structure])
        return [
            Phase(name, structure, getattr(self, f"{name}_epochs"))
            for name, structure in zip(PHASE_NAMES, structures, strict=False)
        ]

    def torch_device(self) -> torch.device:
        """The device to compute on; PkdError if cuda is asked for where there is none."""
        cuda = torch.cuda.is_available()
        if self.device == "cuda" and not cuda:
            raise PkdError(
                "--device cuda (or config.yaml's), but PyTorch finds no usable NVIDIA GPU here: "
                "use cpu or auto, or install a CUDA build of torch"
            )
        return torch.device("cuda" if cuda and self.device != "cpu" else "cpu")

    def training_device(self) -> torch.device:
        """`torch_device`, to train on; PkdError if it has no TF32 where that is asked for.

        Training goes on nowhere in another precision than results say; scoring takes what there is.
        """
        device = self.torch_device()
        if self.precision == "tf32" and not in_tf32(self.precision, device):
            raise PkdError(
                "--precision tf32 (or config.yaml's) takes an NVIDIA GPU of compute capability 8.0 "
                f"or newer, and training would be on {device_name(device)}: train where there is "
                "one, or in float32"
            )
        return device

    def as_dict(self) -> dict[str, Any]:
        """Plain types only, for YAML and JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one structure."""

    name: str
    structure: Structure
    epochs: int

    @property
    def judged(self) -> str:
        """The network whose AUC this phase reports."""
        return self.structure.trained[-1]


def parse_widths(name: str, text: str) -> tuple[int, int, int]:
    """Three positive integers of "a-b-c"; PkdError otherwise."""
    parts = text.split("-")
    if len(parts) != 3 or not all(p.isascii() and p.isdigit() and int(p) > 0 for p in parts):
        raise PkdError(
            f"{flag(name)} is {text!r}, but must be three positive integers such as 8-16-64"
        )
    return tuple(map(int, parts))


CONTAMINATION = 0.05
