"""A run as its folder has it: settings, images, members and networks, and how well they score."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from pkd.data.arrays import resize
from pkd.data.dataset import Dataset
from pkd.models.ganomaly import GAN, load_networks
from pkd.models.stack import extract_stack, split_into_stacks
from pkd.runs.data import load_dataset, members_of
from pkd.runs.folder import RunFolder
from pkd.scoring.metrics import auc_by_member
from pkd.scoring.novelty import novelty_scores
from pkd.training.config import Phase
from pkd.training.factory import make_networks
from pkd.training.settings import config_from
from pkd.utils.device import precision
from pkd.utils.errors import PkdError

PACKAGES = ("pkdgan", "torch", "numpy", "scikit-learn")


class Run:
    """One training run in its folder.

    Args:
        folder: created, or opened and perhaps half done.
        dataset: the run's images, where they are loaded already.
        changes: settings that differ from the folder's config.yaml.

    Attributes:
        members: one for each normal class and seed.
        stacks: the members that are trained together, stack after stack.
        networks: {"teacher": GAN, "student": GAN} of all members; where there are several stacks
            in host memory, and those of one stack at a time on the device.
    """

    def __init__(self, folder: RunFolder, dataset: Dataset | None = None, **changes: Any):
        self.folder = folder
        config = config_from(folder.config(), folder.path / "config.yaml")
        self.config = config = replace(config, **changes)
        self.device = config.torch_device()
        self.versions = {name: version(name) for name in PACKAGES}
        self.phases = config.phases()
        self.dataset = dataset or load_dataset(config)
        self.members = members_of(config, self.dataset)
        self.stacks = split_into_stacks(len(self.members), config.stack)
        home = self.device if len(self.stacks) == 1 else torch.device("cpu")
        test_images = resize(self.dataset.test_images, config.image_size)
        self.test_images = test_images.to(self.device)
        channels = self.test_images.shape[1]
        self.networks = make_networks(config, self.members, channels, home)
        self._check_progress()

    def _check_progress(self) -> None:
        """PkdError if progress.json speaks of another run than config.yaml."""
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
            raise PkdError(
                f"{self.folder.path / 'progress.json'} does not fit config.yaml: "
                "restore both from a copy, or train again in a new folder"
            )

    def load_phase(self, phase: Phase) -> None:
        """Take the networks as `phase` left them; PkdError if its checkpoint has others."""
        self.load(f"{phase.name}.safetensors", partial(load_networks, self.trained(phase)))

    def load(self, name: str, take: Callable[[dict[str, torch.Tensor]], None]) -> None:
        """Let `take` have the tensors of a checkpoint; PkdError if it has others than it wants."""
        tensors = self.folder.load_tensors(name)
        try:
            take(tensors)
        except PkdError as error:
            path = self.folder.checkpoints / name
            raise PkdError(
                f"checkpoint {path} does not fit config.yaml ({error}): restore both from a copy, "
                "or train again in a new folder"
            ) from error

    def trained(self, phase: Phase) -> dict[str, GAN]:
        """The networks of all members that a phase trains."""
        return {name: self.networks[name] for name in phase.structure.trained}

    def on_device(self, stack: slice) -> dict[str, GAN]:
        """The networks of a stack: the run's own where there is one stack, else copies."""
        if len(self.stacks) == 1:
            return self.networks
        return {k: extract_stack(gan, stack).to(self.device) for k, gan in self.networks.items()}

    def precision(self) -> AbstractContextManager:
        """The context in which the networks compute as the settings say."""
        return precision(self.config.precision, self.device)

    def evaluate(self, network: str) -> list[float]:
        """AUC of each member of a network on the test split; PkdError as `scores`."""
        with self.precision():
            found = [self.scores(self.on_device(stack), stack, network) for stack in self.stacks]
        return auc_by_member(np.concatenate(found, 1), self.dataset.test_labels, self.members)

    def scores(
        self,
        networks: dict[str, GAN],
        stack: slice,
        network: str,
        stride: int = 1,
        check: Callable[[], None] = lambda: None,
    ) -> np.ndarray:
        """Scores (T, M) of every `stride`-th test image by each member of a stack.

        Args:
            networks: of the stack, on the device.
            network: which of them scores.
            check: called between batches; may raise to stop.

        Raises:
            PkdError: a score is not finite; the message names the member.
        """
        images, members = self.test_images[::stride], self.members[stack]
        scores = novelty_scores(networks[network].generator, images, len(members), check)
        for member, finite in zip(members, np.isfinite(scores).all(0), strict=True):
            if not finite:
                raise PkdError(
                    f"scores of the {network} of {member} are not finite: train anew with a "
                    "lower --lr"
                )
        return scores

    def held_out_scores(self, phase: str) -> list[np.ndarray]:
        """Scores (n,) of each member's held-out images by the network that a finished phase judged.

        Raises:
            PkdError: its checkpoint is damaged, or has no such scores.
        """
        name = f"{phase}.safetensors"
        tensors = self.folder.load_tensors(name, "held_out.")
        if len(tensors) != len(self.members):
            raise PkdError(
                f"checkpoint {self.folder.checkpoints / name} has scores of held-out images for "
                f"{len(tensors)} of {len(self.members)} models: restore it from a copy, or train "
                "again in a new folder"
            )
        return [tensors[f"held_out.{k}"].numpy() for k in range(len(tensors))]
