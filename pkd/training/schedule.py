"""Data order and learning rates of an epoch, for every member of a stack."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pkd.models.stack import Member


@dataclass(frozen=True)
class EpochSchedule:
    """Which images each member trains on in a step, and at which rate.

    Attributes:
        members: of the stack, in order.
        sizes: images of each member's class.
        batch_size: images per step and member.
        phase: number of the phase; it seeds the data order.
        lr: learning rate.
        decay_epochs: the rate decreases to 0, linearly over that many epochs; may be infinite.
    """

    members: Sequence[Member]
    sizes: Sequence[int]
    batch_size: int
    phase: int
    lr: float
    decay_epochs: float

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps of each member in an epoch: an incomplete batch is dropped."""
        return tuple(size // self.batch_size for size in self.sizes)

    def order(self, epoch: int) -> Tensor:
        """(steps, N, M) int64 rows of the images, local to each class.

        A class with fewer steps than the largest is idle at the end, on its row 0.
        """
        n = self.batch_size
        order = np.zeros((max(self.steps), n, len(self.members)), np.int64)
        members = zip(self.members, self.sizes, self.steps, strict=True)
        for k, (member, size, steps) in enumerate(members):
            rows = member.data_order(size, self.phase, epoch)
            order[:steps, :, k] = rows[: steps * n].reshape(steps, n)
        return torch.from_numpy(order)

    def rates(self, epoch: int) -> Tensor:
        """(steps, M) float64 learning rates; each decreases with the steps of its own member."""
        steps = torch.tensor(self.steps, dtype=torch.float64)
        epochs_done = epoch + torch.arange(max(self.steps))[:, None] / steps
        return self.lr * (1.0 - epochs_done / self.decay_epochs).clamp_min(0.0)
