"""Training images of a stack and cached outputs of its frozen teacher, on the device."""

from collections.abc import Sequence

import numpy as np
import torch
from pkd_kernels import gather
from torch import Tensor

from pkd.models.ganomaly import GAN
from pkd.models.stack import Member
from pkd.training.callbacks import Callback

CACHE_BATCH = 64


class TrainSet:
    """Training images of the members' classes, on the device as uint8.

    Args:
        images: (n, C, H, W) uint8, the training images of all classes.
        labels: (n,) their classes.
        members: the stack.
        limit: use only the first `limit` images of each class; None uses all.
        device: device of the images.

    Attributes:
        images: (R, C, H, W) uint8, class after class.
        sizes: images of each member's class.
        first: (M,) row of the first image of each member's class; members of a class share rows.
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
        selected = torch.from_numpy(np.concatenate([rows[k] for k in classes]))
        self.images = images[selected].to(device)
        self.sizes = tuple(len(rows[member.normal_class]) for member in members)
        self.first = torch.tensor([int(starts[m.normal_class]) for m in members], device=device)

    @property
    def source(self) -> tuple[Tensor, Tensor]:
        """Images and first rows: a source of `pkd_kernels.gather`."""
        return self.images, self.first


class TeacherCache:
    """Outputs of a frozen teacher for every training image of every member, computed once.

    Args:
        teacher: teachers of the stack, in evaluation mode.
        data: images of the members.
        callback: `on_batch_end` is called after each batch.

    Attributes:
        sources: sources of `pkd_kernels.gather` for z1, xh and z2: the outputs of all members, and
            (M,) the row of each member's first output.
    """

    def __init__(self, teacher: GAN, data: TrainSet, callback: Callback):
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
            local = torch.arange(begin, min(begin + CACHE_BATCH, max(data.sizes)), device=device)
            rows = torch.minimum(local[:, None], last)  # smaller classes repeat their last image
            (x,) = gather([data.source], rows[None], step)
            for (values, _), output in zip(self.sources, teacher.generator(x), strict=True):
                values[(rows + first).flatten()] = output.reshape(rows.numel(), *values.shape[1:])
            callback.on_batch_end()
