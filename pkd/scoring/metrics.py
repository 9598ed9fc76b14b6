"""What the networks of a finished run say of the test split, against the truth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from pkd.models.stack import Member

LEAST_RATIO = 1e-6


@dataclass(frozen=True)
class Verdicts:
    """How one model, at its threshold and without, tells novel test images from normal ones.

    Attributes:
        scores: (T,) higher is more novel.
        novel: (T,) bool, the truth.
        threshold: from held-out normal images; a score beyond it is called novel.
        auc: area under the ROC curve.
    """

    scores: np.ndarray
    novel: np.ndarray
    threshold: float
    auc: float

    @cached_property
    def called(self) -> np.ndarray:
        """(T,) bool, the images beyond the threshold."""
        return self.scores > self.threshold

    @cached_property
    def average_precision(self) -> float:
        return float(average_precision_score(self.novel, self.scores))

    @cached_property
    def f1(self) -> float:
        """F1 at the threshold; novel is the positive class."""
        return float(f1_score(self.novel, self.called))

    @cached_property
    def found(self) -> float:
        """Share of the novel images that are beyond the threshold."""
        return float(self.called[self.novel].mean())

    @cached_property
    def false_alarms(self) -> float:
        """Share of the normal images that are beyond the threshold."""
        return float(self.called[~self.novel].mean())

    @cached_property
    def ratios(self) -> np.ndarray:
        """(T,) scores over the threshold, within [LEAST_RATIO, 1 / LEAST_RATIO]."""
        ratios = self.scores.astype(float) / max(self.threshold, np.finfo(np.float32).tiny)
        return np.clip(ratios, LEAST_RATIO, 1 / LEAST_RATIO)


def auc_by_member(scores: np.ndarray, labels: np.ndarray, members: Sequence[Member]) -> list[float]:
    """Area under the ROC curve of each model: its normal class against all the rest."""
    return [
        float(roc_auc_score(labels != member.normal_class, scores[:, k]))
        for k, member in enumerate(members)
    ]


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
