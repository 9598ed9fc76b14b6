"""The training that all contenders of a cell perform: networks, images and their order.

Contenders start from equal weights and train on equal images in equal order, so that their updates
can be compared before they are timed. Pixels are random: the speed does not depend on them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from unittest import mock

import numpy as np
import torch
from pkd_kernels import scale_pixels
from torch import Tensor

from pkd.models.architecture import Architecture
from pkd.models.ganomaly import GAN, Layer
from pkd.models.stack import Member
from pkd.training.structures import KDGAN, Structure
from pkd.training.train_set import TrainSet

CLASSES = 10

ROLES = ("teacher", "student")


@dataclass(frozen=True)
class TrainingSetup:
    """Networks, structure, images and device of a training.

    Attributes:
        teacher_widths: channels of the teacher's layers.
        student_widths: channels of the student's layers.
        images_per_class: number of training images of each class.
        device: device of the training.
        channels: channels of the images.
        structure: the losses that are on.
    """

    teacher_widths: tuple[int, int, int]
    student_widths: tuple[int, int, int]
    images_per_class: int
    device: torch.device
    channels: int = 1
    structure: Structure = KDGAN[2]

    def members(self, stack: int) -> list[Member]:
        """Return the members of a stack: ten classes with seed 0, then with seed 1, and so on."""
        return [Member(m % CLASSES, m // CLASSES) for m in range(stack)]

    def gan(self, role: str, members: Sequence[Member]) -> GAN:
        """Return a stack of networks; members of one class start with equal weights."""
        widths = {"teacher": self.teacher_widths, "student": self.student_widths}[role]
        classes = list(dict.fromkeys(member.normal_class for member in members))
        seeds = tuple(Member(k, 0).initial_seed(ROLES.index(role)) for k in classes)
        initial = _initial_gan(Architecture(self.channels, widths), seeds, self.device)
        return _select_models(initial, [classes.index(member.normal_class) for member in members])

    def pixels(self) -> Tensor:
        """Return images of all classes, (classes, images, C, 32, 32) uint8 on the CPU."""
        shape = (CLASSES, self.images_per_class, self.channels, 32, 32)
        generator = torch.Generator().manual_seed(0)
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8)

    def train_set(self, members: Sequence[Member]) -> TrainSet:
        """Return the images as the data set of a `Trainer`."""
        labels = np.repeat(np.arange(CLASSES), self.images_per_class)
        return TrainSet(self.pixels().flatten(0, 1), labels, members, device=self.device)

    def images(self, members: Sequence[Member]) -> Tensor:
        """Return the images of each member's class, (M, images, C, 32, 32) in [-1, 1]."""
        classes = [member.normal_class for member in members]
        return scale_pixels(self.pixels()[classes]).to(self.device)

    def order(self, members: Sequence[Member]) -> Tensor:
        """Return the image of its class that each member trains on in each step, (images, M)."""
        orders = [member.data_order(self.images_per_class, phase=0, epoch=0) for member in members]
        return torch.from_numpy(np.stack(orders, 1))


@lru_cache(maxsize=8)
def _initial_gan(architecture: Architecture, seeds: tuple[int, ...], device: torch.device) -> GAN:
    """A shared stack, to be copied and not changed: its initialisation takes seconds."""
    return GAN(architecture, seeds).to(device)


@torch.no_grad()
def _select_models(gan: GAN, models: Sequence[int]) -> GAN:
    """A new stack whose m-th model is a copy of model `models[m]` of `gan`."""
    device = next(gan.parameters()).device
    with device, mock.patch.object(Layer, "initialize", return_value=None):
        # The numbers are no seeds here: without `initialize` nothing is drawn.
        selected = GAN(gan.architecture, models)
    for p, source in zip(selected.parameters(), gan.parameters(), strict=True):
        p.view(len(models), -1).copy_(source.view(gan.stack, -1)[models])
    return selected
