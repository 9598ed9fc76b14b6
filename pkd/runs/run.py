"""A training run: its folder, settings, data and networks."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from pkd.models.ganomaly import GAN, load_networks
from pkd.models.stack import extract_stack, split_into_stacks
from pkd.runs.data import RunData, load_dataset, prepare
from pkd.runs.folder import RunFolder
from pkd.runs.memory import check_memory, fitting_stack
from pkd.runs.schema import check_epochs
from pkd.runs.teachers import Teachers
from pkd.scoring.score import ScoreRule
from pkd.training.config import DeviceName, ResolvedConfig, TrainConfig
from pkd.training.factory import make_networks
from pkd.training.settings import from_plain, to_plain
from pkd.training.structures import Phase
from pkd.utils.device import precision
from pkd.utils.errors import RESTORE, CheckpointError, PkdError
from pkd.utils.files import unused_folder

logger = logging.getLogger(__name__)

PACKAGES = ("pkdgan", "torch", "numpy", "scikit-learn")


class Run:
    """One training run in its folder.

    `create` makes a new run, `resume` opens one for training, `open` one to score with.

    Args:
        folder: files of the run.
        config: resolved settings.
        data: data of the run.

    Attributes:
        dataset: data set of the run.
        members: one for each normal class and seed.
        phases: phases of the training, in order.
        score_rule: how the constants of the novelty score are determined.
        stacks: slices of the members that are trained together, one stack after the other.
        device: device of the computation.
        test_images: (n, C, S, S) uint8 on the device.
        networks: name -> GAN of all members, of those networks that take part. With several stacks
            they are in host memory, and those of one stack at a time on the device.
    """

    def __init__(self, folder: RunFolder, config: ResolvedConfig, data: RunData):
        self.folder, self.config, self.data = folder, config, data
        self.dataset, self.members = data.dataset, data.members
        self.device, self.phases = config.torch_device(), config.phases()
        self.score_rule = ScoreRule(config.score, config.fused_weights)
        self.versions = {name: version(name) for name in PACKAGES}
        self.stacks = split_into_stacks(len(self.members), config.stack)
        self._check_progress()
        device = self.device if len(self.stacks) == 1 else torch.device("cpu")
        self.test_images = data.test_images.to(self.device)
        self.networks = make_networks(config, self.members, data.channels, device)

    @classmethod
    def create(cls, settings: TrainConfig, out: Path | None = None) -> "Run":
        """Prepare a new run and make its folder.

        Args:
            settings: of the user; missing values are filled in.
            out: new folder; default runs/<data set>-<time>.

        Raises:
            PkdError: a setting, the data or the folder cannot be used.
        """
        config, data = prepare(settings)
        check_memory(config, data.count, data.channels)
        if config.teacher:
            Teachers(config, data.dataset.digest, data.members)  # refuses those that do not fit
        config = replace(config, stack=fitting_stack(config, data))
        out = out or unused_folder(config.dataset)
        return cls(RunFolder.create(out, to_plain(config)), config, data)

    @classmethod
    def resume(cls, path: Path) -> "Run":
        """Open the run in a folder for training; PkdError if that is not possible."""
        folder = RunFolder.resume(path)
        try:
            return cls._open(folder)
        except BaseException:
            folder.release()
            raise

    @classmethod
    def open(cls, path: Path, device: DeviceName = "auto", data_dir: str | None = None) -> "Run":
        """Open the run in a folder to score with its networks.

        Args:
            path: run folder.
            device: "auto", "cpu" or "cuda".
            data_dir: folder of the images, if they have been moved.

        Raises:
            PkdError: the folder or the data cannot be used.
        """
        return cls._open(RunFolder.open(path), device, data_dir)

    @classmethod
    def _open(
        cls, folder: RunFolder, device: DeviceName | None = None, data_dir: str | None = None
    ) -> "Run":
        """Open a run; without `device` for training, on the device of its settings."""
        config = from_plain(folder.config(), folder.path / "config.yaml")
        config = replace(
            config, device=device or config.device, data_dir=data_dir or config.data_dir
        )
        data = RunData(config, load_dataset(config))
        data.check_batch_sizes(config.phases())
        if device is None:
            check_memory(config, data.count, data.channels)
        if not data.held_out.any():
            logger.warning(
                "%s was trained before images were held out: its thresholds come from its "
                "training images",
                folder.path,
            )
        return cls(folder, config, data)

    def _check_progress(self) -> None:
        """Raise CheckpointError if progress.json does not belong to config.yaml."""
        progress = self.folder.progress
        finished = [phase.name for phase in self.phases[: progress.phase]]
        fits = len(finished) == progress.phase and finished == list(progress.auc)
        fits &= all(len(values) == len(self.members) for values in progress.auc.values())
        if progress.tensors:
            phase = self.phases[progress.phase :][:1]
            # The checkpoint after the last epoch of a stack is followed by another stack.
            more = progress.stack + 1 < len(self.stacks)
            fits &= bool(phase) and progress.epoch < phase[0].epochs + more
            fits &= progress.stack < len(self.stacks)
        else:
            fits &= progress.stack == progress.epoch == progress.step == 0
        try:
            check_epochs(self.folder.metrics, self.phases[: progress.phase], len(self.members))
        except ValueError as error:
            raise CheckpointError(
                f"{self.folder.path} does not fit config.yaml, {error}: {RESTORE}"
            ) from error
        if not fits:
            raise CheckpointError(
                f"{self.folder.path / 'progress.json'} does not fit config.yaml: {RESTORE}"
            )

    def is_taken(self, phase: Phase) -> bool:
        """Whether a phase is not trained here, but its teachers come from other runs."""
        return phase.name == "teacher" and self.config.teacher is not None

    @cached_property
    def teachers(self) -> Teachers:
        """Teachers from other runs; PkdError if these runs have changed."""
        return Teachers(self.config, self.dataset.digest, self.members, beside=self.folder.path)

    def load_phase(self, phase: Phase) -> None:
        """Load the networks of a finished phase; CheckpointError if they do not fit."""
        if self.is_taken(phase):
            tensors = self.teachers.tensors(self.folder.progress.teacher_sha256)
            load_networks(self.trained(phase), tensors)
            return
        self.load(f"{phase.name}.safetensors", partial(load_networks, self.trained(phase)))

    def load(self, name: str, load: Callable[[dict[str, Tensor]], None]) -> None:
        """Pass the tensors of a checkpoint to `load`; CheckpointError if they do not fit."""
        tensors = self.folder.load_tensors(name)
        try:
            load(tensors)
        except PkdError as error:
            path = self.folder.checkpoints / name
            raise CheckpointError(
                f"checkpoint {path} does not fit config.yaml ({error}): {RESTORE}"
            ) from error

    def trained(self, phase: Phase) -> dict[str, GAN]:
        """Networks of all members that a phase trains."""
        return {name: self.networks[name] for name in phase.structure.trained}

    def on_device(self, stack: slice) -> dict[str, GAN]:
        """Networks of a stack on the device: the run's own if it has one stack, else copies."""
        if len(self.stacks) == 1:
            return self.networks
        return {k: extract_stack(gan, stack).to(self.device) for k, gan in self.networks.items()}

    def precision(self) -> AbstractContextManager[None]:
        """Context in which float32 products have the precision of the settings."""
        return precision(self.config.precision, self.device)
