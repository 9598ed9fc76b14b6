"""A whole run: teacher, step 1, step 2 (Algorithm 1), with checkpoints, metrics and results."""

import copy
import math
import os
import platform
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch

from pkd import datasets, own_data
from pkd.config import OWN_DATA, Phase, TrainConfig, parse_classes
from pkd.cost import cost
from pkd.curves import plot_curves
from pkd.errors import UserError
from pkd.hardware import device_name
from pkd.models import GAN, load_networks, network_tensors
from pkd.parsing import config_from
from pkd.runs import Progress, RunFolder, write_atomically
from pkd.scoring import auc_by_member, novelty_scores
from pkd.stacks import largest_stack, part_of, put_back, stacks_of
from pkd.thresholds import hold_out, own_scores, threshold
from pkd.trainer import Objective, Trainer
from pkd.training_set import Member, TrainSet

# Curves are measured on every 10th image of a large test split, results on the whole of it.
CURVE_IMAGES = 1000
NETWORKS = ("teacher", "student")
# Of the GPU's free memory; the rest is for scoring, libraries and the allocator's gaps.
USABLE_MEMORY = 0.8
PACKAGES = ("pkdgan", "torch", "numpy", "scikit-learn")


class Interrupted(Exception):  # noqa: N818 (it is no error)
    """The user asked to stop; the run folder holds a checkpoint."""


class StopRequest:
    """Context in which SIGINT and SIGTERM ask training to stop instead of breaking it off."""

    def __init__(self):
        self.asked = False

    def __enter__(self) -> "StopRequest":
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, *_: object) -> None:
        self.asked = True

    def check(self) -> None:
        if self.asked:
            raise Interrupted


class Reporter:
    """What a run tells while it goes on; this one keeps silent."""

    def begin(self, phase: Phase, steps: int, done: int) -> None:
        """A phase of `steps` steps begins, `done` of them done before."""

    def advance(self, steps: int, losses: dict[str, float]) -> None:
        """`steps` steps are done in this phase; losses are means over the stack."""

    def epoch(self, record: dict[str, Any], epochs: int) -> None:
        """An epoch is over; `record` is its line in metrics.jsonl."""

    def note(self, message: str) -> None:
        """Something the user should know."""


class Several(Reporter):
    """Tells every one of several reporters."""

    def __init__(self, *reporters: Reporter):
        self.reporters = reporters

    def begin(self, phase: Phase, steps: int, done: int) -> None:
        for reporter in self.reporters:
            reporter.begin(phase, steps, done)

    def advance(self, steps: int, losses: dict[str, float]) -> None:
        for reporter in self.reporters:
            reporter.advance(steps, losses)

    def epoch(self, record: dict[str, Any], epochs: int) -> None:
        for reporter in self.reporters:
            reporter.epoch(record, epochs)

    def note(self, message: str) -> None:
        for reporter in self.reporters:
            reporter.note(message)


class Run:
    """One training run in its folder.

    Args:
        folder: created, or opened and perhaps half done.
        reporter: told of the progress.
        check: called often; may raise Interrupted.
        dataset: the run's images, where they are loaded already.
        changes: settings that differ from the folder's config.yaml.

    Attributes:
        members: one for each normal class and seed.
        stacks: the members that are trained together, stack after stack.
        networks: {"teacher": GAN, "student": GAN} of all members; where there are several stacks
            in host memory, and those of one stack at a time on the device.
    """

    def __init__(
        self,
        folder: RunFolder,
        reporter: Reporter | None = None,
        check: Callable[[], None] = lambda: None,
        dataset: datasets.Dataset | None = None,
        **changes: Any,
    ):
        self.folder, self.reporter, self.check = folder, reporter or Reporter(), check
        config = config_from(folder.config(), folder.path / "config.yaml")
        self.config = config = replace(config, **changes)
        self.device = config.torch_device()
        self.use_graph = config.graph
        torch.backends.cudnn.allow_tf32 = False  # full float32, as on a CPU
        self.versions = {name: version(name) for name in PACKAGES}
        self.phases = config.phases()
        self.dataset = dataset or load_dataset(config)
        self.members = members_of(config, self.dataset)
        self.stacks = stacks_of(len(self.members), config.stack)
        home = self.device if len(self.stacks) == 1 else torch.device("cpu")
        test_images = datasets.resize(self.dataset.test_images, config.image_size)
        self.test_images = test_images.to(self.device)
        channels = self.test_images.shape[1]
        self.networks = make_networks(config, self.members, channels, home)
        self._check_progress()

    def train(self) -> dict[str, Any]:
        """Train what is left to train, write results.json and curves.png, return the results."""
        progress = self.folder.progress
        for phase in self.phases[: progress.phase]:
            self.load_phase(phase)
        if progress.phase < len(self.phases):
            config = self.config
            images = datasets.resize(self.dataset.train_images, config.image_size)
            labels, limit = self.dataset.train_labels, config.max_train_images
            held = hold_out(labels, config.held_out)
            held_out = [images[held & (labels == m.normal_class)] for m in self.members]
            images, labels = images[~held], labels[~held]
            if len(self.stacks) > 1:
                sizes = " + ".join(str(stack.stop - stack.start) for stack in self.stacks)
                self.reporter.note(
                    f"{len(self.members)} models in stacks of {sizes}, one after the other"
                )

            def data_of(stack: slice) -> TrainSet:
                return TrainSet(images, labels, self.members[stack], limit, self.device)

            for number in range(progress.phase, len(self.phases)):
                self._train_phase(number, data_of, held_out)
        elif (written := self.folder.results()) is not None:
            return written  # with the hardware and versions of the machine that trained
        write_atomically(
            self.folder.path / "curves.png",
            lambda p: plot_curves(p, self.folder.metrics, self.config.dataset),
        )
        results = self.results(self.folder.progress.auc)
        self.folder.write_json("results.json", results)
        return results

    def load_phase(self, phase: Phase) -> None:
        """Take the networks as `phase` left them; UserError if its checkpoint has others."""
        self._load(f"{phase.name}.safetensors", partial(load_networks, self._trained(phase)))

    def _trained(self, phase: Phase) -> dict[str, GAN]:
        return {name: self.networks[name] for name in phase.structure.trained}

    def _on_device(self, stack: slice) -> dict[str, GAN]:
        """The networks of a stack: the run's own where there is one stack, else copies."""
        if len(self.stacks) == 1:
            return self.networks
        return {k: part_of(gan, stack).to(self.device) for k, gan in self.networks.items()}

    def _load(self, name: str, take: Callable[[dict[str, torch.Tensor]], None]) -> None:
        tensors = self.folder.load_tensors(name)
        try:
            take(tensors)
        except UserError as error:
            path = self.folder.checkpoints / name
            raise UserError(
                f"checkpoint {path} does not fit config.yaml ({error}): restore both from a copy, "
                "or train again in a new folder"
            ) from error

    def evaluate(self, network: str) -> list[float]:
        """AUC of each member of a network on the test split; UserError as `test_scores`."""
        return auc_by_member(self.test_scores(network), self.dataset.test_labels, self.members)

    def test_scores(self, network: str, stride: int = 1) -> np.ndarray:
        """Scores (T, M) of every `stride`-th test image by each member of a network.

        Raises:
            UserError: a score is not finite; the message names the member.
        """
        found = [self._scores(self._on_device(s), s, network, stride) for s in self.stacks]
        return np.concatenate(found, 1)

    def _scores(
        self, networks: dict[str, GAN], stack: slice, network: str, stride: int
    ) -> np.ndarray:
        images, members = self.test_images[::stride], self.members[stack]
        scores = novelty_scores(networks[network].generator, images, len(members), self.check)
        for member, finite in zip(members, np.isfinite(scores).all(0), strict=True):
            if not finite:
                raise UserError(
                    f"scores of the {network} of {member} are not finite: train anew with a "
                    "lower --lr"
                )
        return scores

    def _curve_stride(self) -> int:
        """Take every so-manieth test image for curves; all, if some would miss a normal class."""
        labels = self.dataset.test_labels
        stride = max(1, len(labels) // CURVE_IMAGES)
        taken = labels[::stride]
        normal = [(taken == member.normal_class).any() for member in self.members]
        return stride if all(normal) and (taken != taken[0]).any() else 1

    def _check_progress(self) -> None:
        """UserError if progress.json speaks of another run than config.yaml."""
        progress = self.folder.progress
        finished = [phase.name for phase in self.phases[: progress.phase]]
        fits = len(finished) == progress.phase and finished == list(progress.auc)
        fits &= all(len(values) == len(self.members) for values in progress.auc.values())
        if progress.tensors:
            phase = self.phases[progress.phase :][:1]
            more = progress.stack + 1 < len(self.stacks)
            fits &= bool(phase) and progress.epoch < phase[0].epochs + more
            fits &= progress.stack < len(self.stacks)
        else:
            fits &= progress.stack == progress.epoch == progress.step == 0
        if not fits:
            raise UserError(
                f"{self.folder.path / 'progress.json'} does not fit config.yaml: "
                "restore both from a copy, or train again in a new folder"
            )

    def _keep_record(self, number: int, stack: slice, record: dict[str, Any]) -> None:
        """Put a stack's record of an epoch beside those of the stacks before it."""
        metrics = self.folder.metrics
        line = sum(phase.epochs for phase in self.phases[:number]) + record["epoch"] - 1
        if line == len(metrics):
            metrics.append(copy.deepcopy(record))
        kept = metrics[line]
        kept["auc"][stack.start :] = record["auc"]
        for network, losses in record["losses"].items():
            for loss, values in losses.items():
                kept["losses"][network][loss][stack.start :] = values

    def _go_without_graph(self, reason: str) -> None:
        """Steps cannot be captured here: say so once, and do not try in later phases."""
        self.use_graph = False
        self.reporter.note(f"no CUDA graph ({reason}): steps run kernel by kernel, more slowly")

    def _train_phase(
        self,
        number: int,
        data_of: Callable[[slice], TrainSet],
        held_out: list[torch.Tensor],
    ) -> None:
        """Train what is left of a phase, one stack after the other, and score what is held out."""
        phase = self.phases[number]
        test_scores: dict[str, torch.Tensor] = {}  # of the stacks that are done
        for index in range(self.folder.progress.stack, len(self.stacks)):
            progress = self._train_stack(number, index, data_of(self.stacks[index]), test_scores)
        progress.phase, progress.stack, progress.epoch = number + 1, 0, 0
        progress.auc = progress.auc | {phase.name: self.folder.metrics[-1]["auc"]}
        scores = [
            own
            for stack in self.stacks
            for own in own_scores(self._on_device(stack)[phase.judged].generator, held_out[stack])
        ]
        tensors = network_tensors(self._trained(phase))
        tensors |= {f"held_out.{k}": torch.from_numpy(own) for k, own in enumerate(scores)}
        tensors["test_scores"] = torch.cat(list(test_scores.values()), 1)
        self.folder.save_phase(phase.name, tensors, progress)

    def _train_stack(
        self, number: int, index: int, data: TrainSet, test_scores: dict[str, torch.Tensor]
    ) -> Progress:
        """Train a stack through a phase, add its `test_scores`; returns the progress then reached.

        Every checkpoint holds the trained networks of all stacks, and what else this stack needs.
        """
        phase, config, stack = self.phases[number], self.config, self.stacks[index]
        networks = self._on_device(stack)
        clock = _Clock(self.folder.progress.seconds.get(phase.name, 0.0))
        trainer = phase_trainer(
            config,
            number,
            networks,
            self.members[stack],
            data,
            self.check,
            use_graph=self.use_graph,
            told=self._go_without_graph,
        )
        progress = replace(self.folder.progress)

        def take(tensors: dict[str, torch.Tensor]) -> None:
            load_networks(self._trained(phase), tensors)
            trainer.load_state(tensors | network_tensors(self._on_device(stack)))
            kept = (name for name in tensors if name.startswith("test_scores."))
            test_scores.update({name: tensors[name] for name in sorted(kept)})

        if progress.tensors and progress.stack == index:
            self._load(progress.tensors, take)
        else:
            progress.stack, progress.epoch, progress.step = index, 0, 0
        length = max(trainer.steps)
        self.reporter.begin(phase, phase.epochs * length, progress.epoch * length + progress.step)

        def checkpoint() -> None:
            progress.seconds = progress.seconds | {phase.name: clock.seconds()}
            put_back(trainer.networks, self._trained(phase), stack)
            tensors = trainer.state(progress.step) | network_tensors(self._trained(phase))
            tensors |= test_scores
            self.folder.save_within_phase(tensors, replace(progress))

        saved = time.monotonic()
        try:
            while progress.epoch < phase.epochs:
                for step in trainer.epoch(progress.epoch, progress.step):
                    progress.step = step
                    self.reporter.advance(
                        progress.epoch * length + progress.step,
                        trainer.recent_losses(),
                    )
                    self.check()
                    if time.monotonic() - saved >= config.checkpoint_every:
                        checkpoint()
                        saved = time.monotonic()
                last = progress.epoch + 1 == phase.epochs
                stride = 1 if last else self._curve_stride()
                found = self._scores(networks, stack, phase.judged, stride)
                labels = self.dataset.test_labels[::stride]
                auc = auc_by_member(found, labels, self.members[stack])
                record = {
                    "phase": phase.name,
                    "epoch": progress.epoch + 1,
                    "network": phase.judged,
                    "auc": auc,
                    "test_images": len(found),
                    "losses": trainer.epoch_losses(),
                }
                self._keep_record(number, stack, record)
                self.reporter.epoch(record, phase.epochs)
                progress.epoch, progress.step = progress.epoch + 1, 0
                if last:
                    test_scores[f"test_scores.{index:06d}"] = torch.from_numpy(found)
        except Interrupted:
            checkpoint()
            raise
        if index + 1 < len(self.stacks):
            checkpoint()
        put_back(trainer.networks, self._trained(phase), stack)
        progress.seconds = progress.seconds | {phase.name: clock.seconds()}
        return progress

    def held_out_scores(self, phase: str) -> list[np.ndarray]:
        """Scores (n,) of each member's held-out images by the network that a finished phase judged.

        Raises:
            UserError: its checkpoint is damaged, or has no such scores.
        """
        name = f"{phase}.safetensors"
        tensors = self.folder.load_tensors(name, "held_out.")
        if len(tensors) != len(self.members):
            raise UserError(
                f"checkpoint {self.folder.checkpoints / name} has scores of held-out images for "
                f"{len(tensors)} of {len(self.members)} models: restore it from a copy, or train "
                "again in a new folder"
            )
        return [tensors[f"held_out.{k}"].numpy() for k in range(len(tensors))]

    def results(self, auc: dict[str, list[float]]) -> dict[str, Any]:
        """What results.json holds, for the AUC of each member after each phase."""
        config = self.config
        thresholds = {
            phase: [threshold(own, config.contamination) for own in self.held_out_scores(phase)]
            for phase in auc
        }
        return {
            "dataset": config.dataset,
            "data_sha256": self.dataset.digest,
            "classes": list(self.dataset.classes),
            "left_out": len(self.dataset.left_out),
            "channels": self.test_images.shape[1],
            "image_size": config.image_size,
            "config": config.as_dict(),
            "members": [
                {
                    "normal_class": member.normal_class,
                    "class_name": self.dataset.classes[member.normal_class],
                    "seed": member.seed,
                    "auc": {phase: values[k] for phase, values in auc.items()},
                    "threshold": {phase: values[k] for phase, values in thresholds.items()},
                }
                for k, member in enumerate(self.members)
            ],
            **summarize(auc, self.members),
            "cost": {name: vars(cost(gan.architecture)) for name, gan in self.networks.items()},
            "seconds": {
                name: round(spent, 1) for name, spent in self.folder.progress.seconds.items()
            },
            "hardware": device_name(self.device),
            "versions": {"python": platform.python_version(), **self.versions},
        }


def summarize(auc: dict[str, list[float]], members: list[Member]) -> dict[str, dict[str, float]]:
    """Mean AUC over classes for each phase, and its spread over seeds where there are several."""
    seeds = sorted({member.seed for member in members})
    by_seed = {
        phase: [mean(v for v, m in zip(values, members, strict=True) if m.seed == s) for s in seeds]
        for phase, values in auc.items()
    }
    summary = {"mean_auc": {phase: mean(values) for phase, values in by_seed.items()}}
    if len(seeds) > 1:
        summary["std_auc"] = {phase: stdev(values) for phase, values in by_seed.items()}
    return summary


class _Clock:
    """Seconds spent, those before a resume included."""

    def __init__(self, before: float):
        self._start = time.monotonic() - before

    def seconds(self) -> float:
        return time.monotonic() - self._start


def make_networks(
    config: TrainConfig, members: Sequence[Member], channels: int, device: torch.device
) -> dict[str, GAN]:
    """Teachers and students of a stack with their first weights, for images of `channels`."""
    return {
        name: GAN(
            config.architecture(name, channels), [member.first_weights(role) for member in members]
        ).to(device)
        for role, name in enumerate(NETWORKS)
    }


def phase_trainer(
    config: TrainConfig,
    number: int,
    networks: dict[str, GAN],
    members: Sequence[Member],
    data: TrainSet,
    check: Callable[[], None] = lambda: None,
    **options: Any,
) -> Trainer:
    """The trainer of phase `number` of a configuration, at its beginning."""
    phase = config.phases()[number]
    return Trainer(
        phase.structure,
        networks["teacher"],
        networks["student"],
        members,
        data,
        phase=number,
        batch_size=config.batch_size,
        lr=config.lr,
        decay_epochs=phase.epochs if config.lr_schedule == "linear" else math.inf,
        betas=config.betas,
        objective=Objective(config.weights, config.reduction),
        check=check,
        **options,
    )


def fitting_stack(
    config: TrainConfig, dataset: datasets.Dataset, members: Sequence[Member]
) -> int | None:
    """How many members to train together; None where all of them fit."""
    if config.stack or config.torch_device().type != "cuda" or len(members) == 1:
        return config.stack
    free = torch.cuda.mem_get_info()[0]
    size = largest_stack(
        lambda count: training_memory(config, dataset, members[:count]), int(USABLE_MEMORY * free)
    )
    return size if size < len(members) else None


def training_memory(
    config: TrainConfig, dataset: datasets.Dataset, members: Sequence[Member]
) -> int:
    """Bytes of GPU memory that a stack needs, measured in a step of each phase."""
    device, before = config.torch_device(), torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    images = datasets.resize(dataset.train_images, config.image_size)
    data = TrainSet(images, dataset.train_labels, members, config.max_train_images, device)
    networks = make_networks(config, members, images.shape[1], device)
    for number in range(len(config.phases())):
        trainer = phase_trainer(config, number, networks, members, data)
        trainer.begin_epoch(0)
        trainer.step()
        del trainer  # before the next phase's is made
    return torch.cuda.max_memory_allocated() - before


def load_dataset(config: TrainConfig) -> datasets.Dataset:
    """The data set of a run; UserError if its files are missing or damaged, or in other colours."""
    name, place = config.dataset, Path(config.data_dir) if config.data_dir else None
    if name in OWN_DATA and place is None:
        what = "a folder with train/good and test" if name == "folder" else "an .npz file"
        raise UserError(f"--dataset {name} needs --data-dir: {what}")
    if name == "folder":
        dataset = own_data.load_folder(place, config.image_size, config.channels, config.skip_bad)
    else:
        dataset = own_data.load_npz(place) if name == "npz" else datasets.load(name, place)
    channels = dataset.train_images.shape[1]
    if config.channels not in (None, channels):
        raise UserError(
            f"{name} has images of {channels} channel{'s' * (channels > 1)}, but --channels (or "
            f"config.yaml's) is {config.channels}: convert the images"
        )
    return dataset


def class_sizes(config: TrainConfig, dataset: datasets.Dataset) -> dict[int, int]:
    """Images of each normal class to train on: without those held out, and as many as are used.

    Of the user's own data "all" means the classes that have training images.

    Raises:
        UserError: a class cannot be trained or tested on.
    """
    labels = dataset.train_labels
    every = config.dataset in OWN_DATA and config.normal_class == "all"
    classes = np.unique(labels) if every else parse_classes(config.normal_class, dataset.classes)
    used = labels[~hold_out(labels, config.held_out)]
    sizes = {int(k): int((used == k).sum()) for k in classes}
    for k, size in sizes.items():
        if not (labels == k).any() or not (dataset.test_labels == k).any():
            raise UserError(f"{config.dataset} has no images of class {k}: choose another class")
        if size == 0:
            raise UserError(
                f"class {k} {dataset.classes[k]} has {(labels == k).sum()} training images, and "
                f"--held-out {config.held_out} leaves none to train on: it takes at least two"
            )
    return {k: min(size, config.max_train_images or size) for k, size in sizes.items()}


def members_of(config: TrainConfig, dataset: datasets.Dataset) -> list[Member]:
    """The stack of a run; UserError if a class cannot be trained or tested on.

    All classes of seed 0, then all of seed 1, and so on.
    """
    sizes = class_sizes(config, dataset)
    for k, size in sizes.items():
        if config.batch_size > size:
            raise UserError(
                f"--batch-size {config.batch_size} is larger than class {k} with its {size} "
                f"training images: choose at most {size}"
            )
    if (dataset.test_labels == dataset.test_labels[0]).all():
        raise UserError(f"the test split of {config.dataset} has only one class: nothing is novel")
    return [Member(k, seed) for seed in range(config.seeds) for k in sizes]


def check_memory(config: TrainConfig, dataset: datasets.Dataset) -> None:
    """UserError if not even the weights, gradients and moments of the networks can fit."""
    channels = dataset.train_images.shape[1]
    members = config.seeds * len(class_sizes(config, dataset))
    on_gpu = config.torch_device().type == "cuda"  # where stacks are as small as need be
    stack = min(config.stack or (1 if on_gpu else members), members)
    weights = max(cost(config.architecture(name, channels)).parameters for name in NETWORKS)
    need = 16 * stack * weights  # float32, four times
    if on_gpu:
        have = torch.cuda.mem_get_info()[1]
    else:
        have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > have:
        raise UserError(
            f"networks of these widths, {stack} in the stack, need {need / 2**30:,.0f} GiB, but "
            f"there are {have / 2**30:,.0f}: choose smaller widths or --latent, fewer classes or "
            "--seeds, or a smaller --stack"
        )


def start(config: TrainConfig, out: Path | None) -> tuple[RunFolder, datasets.Dataset]:
    """Check a configuration against its data, then begin a run folder for it."""
    resolved = config.resolved()
    resolved.torch_device()
    dataset = load_dataset(resolved)
    config = replace(config, channels=dataset.train_images.shape[1])
    few = min(class_sizes(resolved, dataset).values()) if config.dataset in OWN_DATA else None
    resolved = config.resolved(few)
    check_memory(resolved, dataset)
    members = members_of(resolved, dataset)
    resolved = replace(resolved, stack=fitting_stack(resolved, dataset, members))
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    out = out or Path("runs") / f"{config.dataset}-{stamp}"
    return RunFolder.create(out, resolved.as_dict()), dataset
