"""Parts of the novelty scores of image sets by the models of a stack, see `pkd.scoring.score`."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from pkd_kernels import novelty_parts, scale_pixels
from torch import Tensor

from pkd.models.ganomaly import Generator

# Batch size times models: large enough to use a device fully, small enough for its caches.
MODEL_IMAGES_PER_BATCH = 1024

# Images of each model in a batch where every model scores different images.
MEMBER_BATCH_SIZE = 64


def score_parts(
    generator: Generator,
    images: Tensor,
    stack: int,
    on_batch_end: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Score every image by every model of a stack.

    All models share the images, which are not copied for each of them.

    Args:
        generator: a stack of M models.
        images: (T, C, H, W) uint8.
        stack: M.
        on_batch_end: called after each batch; may raise to stop.

    Returns:
        (T, M, 3) float32, or float64 for a generator in float64.
    """
    batches = images.split(max(1, MODEL_IMAGES_PER_BATCH // stack))
    return _score_batches(generator, batches, stack, on_batch_end)


def score_parts_per_member(
    generator: Generator,
    images: Sequence[Tensor],
    on_batch_end: Callable[[], None] = lambda: None,
) -> list[np.ndarray]:
    """Score different images by each model of a stack.

    Args:
        generator: a stack of M models.
        images: M tensors (n, C, H, W) uint8, n at least 1 and possibly different.
        on_batch_end: called after each batch; may raise to stop.

    Returns:
        M arrays (n, 3) float64, computed in the generator's precision.
    """
    parts = _score_batches(generator, _stacked_batches(images), len(images), on_batch_end)
    return [parts[: len(part), k].astype(np.float64) for k, part in enumerate(images)]


def _stacked_batches(images: Sequence[Tensor]) -> Iterator[Tensor]:
    """Batches (N, M*C, H, W) of M image sets; shorter sets repeat their last image."""
    longest = max(map(len, images))
    for start in range(0, longest, MEMBER_BATCH_SIZE):
        rows = torch.arange(start, min(start + MEMBER_BATCH_SIZE, longest))
        yield torch.cat([part[rows.clamp(max=len(part) - 1)] for part in images], 1)


@torch.no_grad()
def _score_batches(
    generator: Generator,
    batches: Iterable[Tensor],
    stack: int,
    on_batch_end: Callable[[], None],
) -> np.ndarray:
    """Parts (n, M, 3) of the scores of uint8 batches.

    The batches are moved to the generator's device and converted to its precision.
    """
    weight = next(generator.parameters())
    parts = []
    with _evaluation_mode(generator):
        for batch in batches:
            x = scale_pixels(batch.to(weight.device)).to(weight.dtype)
            z1, xh, z2 = generator(x)
            parts.append(novelty_parts(z1, z2, x, xh, stack=stack))
            on_batch_end()
    return torch.cat(parts).cpu().numpy()


@contextmanager
def _evaluation_mode(generator: Generator) -> Iterator[None]:
    """Put the generator into evaluation mode for the body."""
    was_training = generator.training
    generator.eval()
    try:
        yield
    finally:
        generator.train(was_training)
