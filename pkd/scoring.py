"""Novelty scores of whole image sets, and how well they tell novel from normal."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from pkd_kernels import novelty_score, to_unit
from sklearn.metrics import roc_auc_score
from torch import Tensor

from pkd.models import Generator
from pkd.training_set import Member

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
        made = generator(to_unit(batch))
        scores.append(novelty_score(made.z1, made.z2, stack=stack))
    generator.train(was_training)
    return torch.cat(scores).cpu().numpy()


def auc_by_member(scores: np.ndarray, labels: np.ndarray, members: Sequence[Member]) -> list[float]:
    """Area under the ROC curve of each model: its normal class against all the rest."""
    return [
        float(roc_auc_score(labels != member.normal_class, scores[:, k]))
        for k, member in enumerate(members)
    ]
