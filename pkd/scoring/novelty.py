"""Novelty scores of whole image sets, and how well they tell novel from normal."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from pkd_kernels import novelty_score, scale_pixels
from torch import Tensor

from pkd.models.ganomaly import Generator

# Images of a batch times models: enough to fill a device, little enough to stay near its caches.
SCORED_AT_ONCE = 1024


@torch.no_grad()
def novelty_scores(
    generator: Generator,
    images: Tensor,
    stack: int,
    check: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Score every image by every model of a stack: mean square of z1 - z2 (Eq. 3).

    One pass: all models look at the same images, which are not copied for them.

    Args:
        generator: of the stack, on the images' device; put into evaluation mode meanwhile.
        images: (T, C, 32, 32) uint8.
        stack: M.
        check: called between batches; may raise to stop.

    Returns:
        (T, M) float32, higher is more novel.
    """
    was_training = generator.training
    generator.eval()
    scores = []
    for batch in images.split(max(1, SCORED_AT_ONCE // stack)):
        check()
        made = generator(scale_pixels(batch))
        scores.append(novelty_score(made.z1, made.z2, stack=stack))
    generator.train(was_training)
    return torch.cat(scores).cpu().numpy()


BATCH = 64


@torch.no_grad()
def own_scores(generator: Generator, images: Sequence[Tensor]) -> list[np.ndarray]:
    """Novelty scores of each model's own images, in the generator's precision.

    Args:
        generator: of a stack of M models; put into evaluation mode meanwhile.
        images: M times (n, C, H, W) uint8, n at least 1.

    Returns:
        M times (n,) float64, higher is more novel.
    """
    was_training, weight = generator.training, next(generator.parameters())
    generator.eval()
    longest, found = max(map(len, images)), []
    for begin in range(0, longest, BATCH):
        rows = torch.arange(begin, min(begin + BATCH, longest))
        # a model with fewer images repeats its last
        batch = torch.cat([own[rows.clamp(max=len(own) - 1)] for own in images], 1)
        made = generator(scale_pixels(batch.to(weight.device)).to(weight.dtype))
        found.append(novelty_score(made.z1, made.z2, stack=len(images)))
    generator.train(was_training)
    scores = torch.cat(found).double().cpu().numpy()
    return [scores[: len(own), k] for k, own in enumerate(images)]
