"""The images a stack trains on, and a frozen teacher's answers to them, as device tensors."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from pkd_kernels import gather
from torch import Tensor

from pkd.models.ganomaly import GAN
from pkd.models.stack import Member

CACHE_BATCH = 64


class TrainSet:
    """Training images of the members' classes, on the device as uint8.

    Args:
        images: (n, C, 32, 32) uint8, the whole training split.
        labels: (n,) their classes.
        members: the stack.
        limit: use only the first `limit` images of each class; None uses all.
        device: where the images shall lie.

    Attributes:
        images: (R, C, 32, 32) uint8, class after class.
        sizes: images of each member's class.
        first: (M,) row at which each member's class begins; members of a class share its images.
    """

    def __init__(
        self,
        images: Tensor,
        labels: np.ndarray,
        members: Sequence[Member],
        limit: int | None = None,
        device: torch.device | str = "cpu",
    ):
        classes = sorted({member.normal_class for member in members})
        rows = {k: np.flatnonzero(labels == k)[:limit] for k in classes}
        starts = dict(zip(classes, np.cumsum([0, *(len(rows[k]) for k in classes)]), strict=False))
        chosen = torch.from_numpy(np.concatenate([rows[k] for k in classes]))
        self.images = images[chosen].to(device)
        self.sizes = tuple(len(rows[member.normal_class]) for member in members)
        self.first = torch.tensor([int(starts[m.normal_class]) for m in members], device=device)

    @property
    def source(self) -> tuple[Tensor, Tensor]:
        """Images and first rows, as `pkd_kernels.gather` takes them."""
        return self.images, self.first


class TeacherCache:
    """Outputs of a frozen teacher for every training image of every member, computed once.

    Args:
        teacher: the stack's teachers, in evaluation mode.
        data: images of the members.
        check: called between batches; may raise to stop.

    Attributes:
        sources: of z1, xh and z2 for `pkd_kernels.gather`: the outputs of all members, and (M,)
            the row at which each member's begin.
    """

    def __init__(self, teacher: GAN, data: TrainSet, check: Callable[[], None]):
        device = data.first.device
        offsets = np.cumsum([0, *data.sizes])
        first = torch.tensor(offsets[:-1], device=device)
        latent, image = (teacher.architecture.latent,), data.images.shape[1:]
        self.sources = [
            (torch.empty(int(offsets[-1]), *shape, device=device), first)
            for shape in (latent, image, latent)
        ]
        last = torch.tensor(data.sizes, device=device) - 1
        step = torch.zeros(1, dtype=torch.int64, device=device)
        for begin in range(0, max(data.sizes), CACHE_BATCH):
            check()
            local = torch.arange(begin, min(begin + CACHE_BATCH, max(data.sizes)), device=device)
            rows = torch.minimum(local[:, None], last)  # smaller classes repeat their last
            (x,) = gather([data.source], rows[None], step)
            for (store, _), output in zip(self.sources, teacher.generator(x), strict=True):
                store[(rows + first).flatten()] = output.reshape(rows.numel(), *store.shape[1:])
