"""Settings of a training run: one dataclass, its presets and its checks."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from pkd.models.architecture import Architecture
from pkd.models.paper import PAPER_STUDENTS, TEACHER_WIDTHS
from pkd.training.structures import NETWORKS, SCHEDULES, Phase, Structure
from pkd.training.validation import check_settings
from pkd.utils.device import device_name, in_tf32
from pkd.utils.errors import ConfigError

StandardName = Literal["digits", "mnist", "fashion_mnist", "cifar10"]
OwnName = Literal["folder", "npz"]
DatasetName = Literal[StandardName, OwnName]
OWN_DATA = get_args(OwnName)
StructureName = Literal[
    "teacher-only", "student-only", "1", "2", "3", "4", "progressive-23", "progressive-24"
]
DeviceName = Literal["auto", "cpu", "cuda"]
Widths = tuple[int, int, int]
Weights = tuple[float, float, float, float, float, float]

CONTAMINATION = 0.05
PAPER_WEIGHTS: Weights = (10.0, 1.0, 1.0, 1.0, 1.0, 1.0)

# Values that a preset fills in where a setting is None.
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "structure": "student-only",
        "teacher_widths": (32, 64, 128),
        "student_widths": (8, 16, 64),
        "max_train_images": 1000,
        "held_out": 0.1,
        "score": "fused",
        # After a few hundred steps a falling rate gives a better AUC than the paper's.
        "lr": 0.001,
        "teacher_lr": 0.0005,
        "lr_schedule": "linear",
        # K_1 and K_2 are means over the latents, which weight 1 makes negligible beside S_con.
        "weights": (10.0, 1.0, 1.0, 100.0, 5.0, 100.0),
    },
    "paper": {
        "structure": "progressive-23",
        "teacher_widths": TEACHER_WIDTHS,
        "held_out": 0.02,  # the paper trains on all images
        "score": "latent",
        "lr": 0.002,
        "lr_schedule": "constant",
        "weights": PAPER_WEIGHTS,
    },
}
# Epochs of a phase and batch size; `TrainConfig.lengths` adapts those of "quick".
LENGTHS: dict[str, dict[str, int]] = {
    "quick": {"teacher_epochs": 10, "step1_epochs": 20, "step2_epochs": 2, "batch_size": 8},
    "paper": {"teacher_epochs": 500, "step1_epochs": 500, "step2_epochs": 500, "batch_size": 1},
}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run.

    Args:
        dataset: data set to train on; "folder" and "npz" are your own images.
        data_dir: folder with the data set's files; default $PKD_DATA_DIR, then a cache folder. For
            "folder" the folder with train/good and test, for "npz" the file.
        skip_bad: leave out the unreadable files of a folder.
        normal_class: "all", a class number, or several as "1,5"; each is one model of the stack.
        seeds: repeats of each class, seeds 0 to SEEDS-1, trained as further models of the stack.
        members: models of the stack as CLASS:SEED,CLASS:SEED,...; default: every normal class with
            every seed.
        structure: one network alone, without distillation, KDGAN-1 to -4, or the two steps of
            P-KDGAN-II-(2)(3) or -(2)(4); default by preset.
        teacher: finished runs to take the teachers from instead of training them. Together they
            have a teacher for each class and seed, trained on the same images with the same
            settings.
        teacher_widths: channels of the teacher's three stages; default by preset.
        student_widths: channels of the student's three stages; default by preset.
        preset: defaults for widths, epochs, batch size and training images: "quick" for a laptop,
            "paper" for batch 1, 500 epochs a phase and the paper's student of the data set.
        teacher_epochs: epochs of the teacher's own training; default by preset.
        step1_epochs: epochs of the first distillation step; default by preset.
        step2_epochs: epochs of the second step of a progressive structure; default by preset.
        batch_size: images per step and model; default by preset.
        teacher_batch_size: images per step and model in the teacher's own training; default:
            batch_size.
        max_train_images: use only the first N training images of each class, all where it has
            fewer; default by preset.
        teacher_max_train_images: the same for the teacher's own training; default:
            max_train_images.
        image_size: height and width that images are resized to: 16, 32, 64 or 128.
        channels: 1 for grey, 3 for RGB; default as the images are; a folder is RGB if any training
            image is in colour.
        held_out: share of each class's training images that is held out of training and sets the
            novelty threshold; default by preset.
        evaluate_on: images that AUCs are computed on: the test split, or, to choose settings
            without it, a sixth of each class's training images, which are then not trained on.
        contamination: share of normal images that the threshold may classify as novel.
        score: novelty score: "latent", the paper's difference of latents; "reconstruction", the
            reconstruction error; or "fused", both; default by preset.
        fused_weights: weights of the fused score: of the latents' energy, which divides the latent
            difference, and of the reconstruction error.
        lr: Adam's learning rate; default by preset.
        teacher_lr: learning rate of the teacher's own training; default by preset, else lr.
        step2_teacher_lr: learning rate of the teacher in the second step of a progressive
            structure; default: lr.
        lr_schedule: keep the rate, or decrease it linearly to 0 in each phase; default by preset.
        betas: Adam's decay rates.
        weights: weights of the loss terms con,enc,adv (Eq. 5) and k1,kx,k2 (Eq. 6); default by
            preset.
        reduction: "mean" over elements, or "norm", the paper's definition.
        norm: normalisation over one image, or over the batch.
        norm_first: normalise the first encoder convolution too, as in the paper's Table 1.
        latent: size of the latent vectors.
        device: where to train; "auto" takes a GPU if there is one.
        precision: precision of float32 products on a GPU: full, or TF32, which rounds the factors
            to 10 bits of mantissa; results record it.
        stack: models trained together; default all of them, or as many as fit the GPU's memory,
            one stack after the other.
        graph: on a GPU, replay a training step as one CUDA graph instead of launching its kernels
            one by one.
        checkpoint_every: seconds between checkpoints within a phase.
    """

    dataset: DatasetName = "digits"
    data_dir: str | None = None
    skip_bad: bool = False
    normal_class: Literal["all"] | tuple[int, ...] = "all"
    seeds: int = 1
    members: tuple[tuple[int, int], ...] | None = None
    structure: StructureName | None = None
    teacher: tuple[str, ...] | None = None
    teacher_widths: Widths | None = None
    student_widths: Widths | None = None
    preset: Literal["quick", "paper"] = "quick"
    teacher_epochs: int | None = None
    step1_epochs: int | None = None
    step2_epochs: int | None = None
    batch_size: int | None = None
    teacher_batch_size: int | None = None
    max_train_images: int | None = None
    teacher_max_train_images: int | None = None
    image_size: int = 32
    channels: int | None = None
    held_out: float | None = None
    evaluate_on: Literal["test", "development"] = "test"
    contamination: float = CONTAMINATION
    score: Literal["latent", "reconstruction", "fused"] | None = None
    fused_weights: tuple[float, float] = (0.25, 0.25)  # see docs/science/protocol.md
    lr: float | None = None
    teacher_lr: float | None = None
    step2_teacher_lr: float | None = None
    lr_schedule: Literal["constant", "linear"] | None = None
    betas: tuple[float, float] = (0.5, 0.999)
    weights: Weights | None = None
    reduction: Literal["mean", "norm"] = "mean"
    norm: Literal["instance", "batch"] = "instance"
    norm_first: bool = True
    latent: int = 256
    device: DeviceName = "auto"
    precision: Literal["float32", "tf32"] = "float32"
    stack: int | None = None
    graph: bool = True
    checkpoint_every: float = 60.0

    def resolved(self) -> "ResolvedConfig":
        """Return the settings of a new run, with the preset's values filled in.

        Raises:
            ConfigError: a value cannot be used.
        """
        check_settings(self)
        defaults = PRESETS[self.preset] | LENGTHS[self.preset]
        if self.preset == "paper":
            student = PAPER_STUDENTS.get(self.dataset, PAPER_STUDENTS["mnist"])
            defaults |= {"student_widths": student.widths}
        if self.reduction == "norm":
            defaults |= {"weights": PAPER_WEIGHTS}
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        missing = {k: v for k, v in defaults.items() if values[k] is None}
        if self.data_dir:
            missing["data_dir"] = _absolute(self.data_dir)
        if self.teacher:
            missing["teacher"] = tuple(map(_absolute, self.teacher))
        config = ResolvedConfig(**values | missing)
        config.check_members_and_teacher()
        if config.held_out == 0:
            raise ConfigError("held_out", "is 0, but a new run must hold out images, e.g. 0.1")
        return config

    def torch_device(self) -> torch.device:
        """Device of the computation; ConfigError for "cuda" without a usable GPU."""
        cuda = torch.cuda.is_available()
        if self.device == "cuda" and not cuda:
            raise ConfigError(
                "device",
                "is 'cuda', but PyTorch finds no usable NVIDIA GPU here: use 'cpu' or 'auto', or "
                "install a CUDA build of torch",
            )
        return torch.device("cuda" if cuda and self.device != "cpu" else "cpu")

    def training_device(self) -> torch.device:
        """`torch_device` for training; ConfigError if it lacks the TF32 that is set.

        Training never continues in another precision than the results record; scoring may.
        """
        device = self.torch_device()
        if self.precision == "tf32" and not in_tf32(self.precision, device):
            raise ConfigError(
                "precision",
                "is 'tf32', which takes an NVIDIA GPU with compute capability 8.0 or newer, but "
                f"the training device is {device_name(device)}: train on such a GPU, or in float32",
            )
        return device

    def lengths(self, images: int) -> dict[str, Any]:
        """Epochs and batch size for a small data set, of those that are left to the preset.

        For fewer than 1,000 images the preset "quick" takes more epochs, which gives as many steps
        as 1,000 images do, and no larger batch.

        Args:
            images: training images of the smallest class.

        Returns:
            Setting -> value, to replace those of `resolved`.
        """
        lengths = dict(LENGTHS[self.preset])
        if self.preset == "quick":
            factor = max(1.0, PRESETS["quick"]["max_train_images"] / images)
            batch_size = min(lengths.pop("batch_size"), images)
            lengths = {name: round(epochs * factor) for name, epochs in lengths.items()}
            lengths["batch_size"] = batch_size
        return {name: value for name, value in lengths.items() if getattr(self, name) is None}


@dataclass(frozen=True)
class ResolvedConfig(TrainConfig):
    """Settings of a run with the preset's values filled in.

    The fields repeated here are never None.
    """

    structure: StructureName = field(kw_only=True)
    teacher_widths: Widths = field(kw_only=True)
    student_widths: Widths = field(kw_only=True)
    teacher_epochs: int = field(kw_only=True)
    step1_epochs: int = field(kw_only=True)
    step2_epochs: int = field(kw_only=True)
    batch_size: int = field(kw_only=True)
    held_out: float = field(kw_only=True)
    score: Literal["latent", "reconstruction", "fused"] = field(kw_only=True)
    lr: float = field(kw_only=True)
    lr_schedule: Literal["constant", "linear"] = field(kw_only=True)
    weights: Weights = field(kw_only=True)

    def architecture(self, network: str, channels: int) -> Architecture:
        """Architecture of "teacher" or "student" for images with `channels` channels."""
        widths = self.teacher_widths if network == "teacher" else self.student_widths
        return Architecture(
            channels, widths, self.latent, self.norm, self.norm_first, self.image_size
        )

    def check_members_and_teacher(self) -> None:
        """Check settings that depend on each other; ConfigError if they contradict each other."""
        if self.members and (self.normal_class != "all" or self.seeds != 1):
            raise ConfigError(
                "members", "has the classes and seeds: leave out `normal_class` and `seeds`"
            )
        if self.teacher and self.structure in ("teacher-only", "student-only"):
            raise ConfigError(
                "teacher",
                f"has no use with the structure {self.structure}: leave it out, or choose a "
                "structure with distillation such as 2",
            )

    def phases(self) -> list[Phase]:
        """Phases of the run in order: the teacher's own training, then one step or two."""
        schedule = SCHEDULES[self.structure]
        return [self._phase(name, structure) for name, structure in schedule.items()]

    def trained_phases(self) -> list[Phase]:
        """Phases that the run trains: without the teacher's if its teachers are from other runs."""
        return [phase for phase in self.phases() if not (phase.name == "teacher" and self.teacher)]

    def _phase(self, name: str, structure: Structure) -> Phase:
        """Phase with the settings that apply to it."""
        phase = Phase(
            name,
            structure,
            getattr(self, f"{name}_epochs"),
            self.batch_size,
            self.lr,
            self.max_train_images,
        )
        if name == "teacher":
            return replace(
                phase,
                batch_size=self.teacher_batch_size or self.batch_size,
                lr=self.teacher_lr or self.lr,
                max_train_images=self.teacher_max_train_images or self.max_train_images,
            )
        if name == "step2" and self.step2_teacher_lr:
            return replace(phase, lr_factors={"teacher": self.step2_teacher_lr / self.lr})
        return phase

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that take part in a phase."""
        phases = SCHEDULES[self.structure].values()
        names = {name for structure in phases for name in structure.networks}
        return tuple(name for name in NETWORKS if name in names)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())
