"""The score beyond which an image is called novel: from normal images that nothing trained on."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from pkd_kernels import novelty_score, to_unit
from torch import Tensor

from pkd.models import Generator

CONTAMINATION = 0.05
BATCH = 64


def hold_out(labels: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """Which images are held out of training: a random share of each class, rounded up.

    Args:
        labels: (n,) int64 classes.
        share: in (0, 1).
        seed: of the choice; a class's depends on nothing but its own images.

    Returns:
        (n,) bool.
    """
    held = np.zeros(len(labels), bool)
    for k in np.unique(labels):
        rows = np.flatnonzero(labels == k)
        chosen = np.random.default_rng([seed, k]).permutation(rows)
        held[chosen[: math.ceil(share * len(rows))]] = True
    return held


def threshold(scores: np.ndarray, contamination: float) -> float:
    """The score that a new normal image exceeds with a probability of at most `contamination`.

    Of n held-out scores the ceil((n + 1)(1 - contamination))-th smallest (split conformal
    prediction); the largest where n is less than 1 / contamination - 1, too few for that promise.

    Args:
        scores: (n,) of held-out normal images, n at least 1.
        contamination: in (0, 0.5].
    """
    rank = math.ceil((len(scores) + 1) * (1 - contamination))
    return float(np.sort(scores)[min(rank, len(scores)) - 1])


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
        made = generator(to_unit(batch.to(weight.device)).to(weight.dtype))
        found.append(novelty_score(made.z1, made.z2, stack=len(images)))
    generator.train(was_training)
    scores = torch.cat(found).double().cpu().numpy()
    return [scores[: len(own), k] for k, own in enumerate(images)]
