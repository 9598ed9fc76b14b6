"""Metrics of novelty detection: AUC, average precision, and F1, recall and FPR at a threshold."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from pkd.models.stack import Member

MIN_SCORE_RATIO = 1e-6  # keeps score ratios and their inverses finite and positive for log axes


@dataclass(frozen=True)
class MemberMetrics:
    """Metrics of one member of a stack on the test split. The positive class is "novel".

    Attributes:
        y_true: (T,) bool, True for novel images.
        y_score: (T,) novelty scores, higher is more novel.
        threshold: an image is predicted novel if its score exceeds this value.
        auc: area under the ROC curve.
    """

    y_true: np.ndarray
    y_score: np.ndarray
    threshold: float
    auc: float

    @cached_property
    def y_pred(self) -> np.ndarray:
        """(T,) bool, True for images predicted novel."""
        return self.y_score > self.threshold

    @cached_property
    def average_precision(self) -> float:
        """Area under the precision-recall curve, without a threshold."""
        return float(average_precision_score(self.y_true, self.y_score))

    @cached_property
    def f1(self) -> float:
        """F1 score at the threshold."""
        return float(f1_score(self.y_true, self.y_pred))

    @cached_property
    def recall(self) -> float:
        """Fraction of the novel images that are predicted novel."""
        return float(self.y_pred[self.y_true].mean())

    @cached_property
    def false_positive_rate(self) -> float:
        """Fraction of the normal images that are predicted novel."""
        return float(self.y_pred[~self.y_true].mean())

    @cached_property
    def score_ratios(self) -> np.ndarray:
        """(T,) scores divided by the threshold, in [MIN_SCORE_RATIO, 1 / MIN_SCORE_RATIO]."""
        ratios = self.y_score.astype(float) / max(self.threshold, np.finfo(np.float32).tiny)
        return np.clip(ratios, MIN_SCORE_RATIO, 1 / MIN_SCORE_RATIO)


class Average(NamedTuple):
    """Mean of a metric over classes and seeds.

    Attributes:
        mean: mean over classes of the mean over the seeds of a class.
        std: standard deviation over seeds of the mean over classes; None for a single seed, and
            where classes have different seeds.
    """

    mean: float
    std: float | None


def average(values: Mapping[Member, float]) -> Average:
    """Average a metric over classes and seeds.

    Args:
        values: member -> metric; not empty.
    """
    by_class: dict[int, dict[int, float]] = {}
    for member, value in values.items():
        by_class.setdefault(member.normal_class, {})[member.seed] = value
    overall = mean(mean(seeds.values()) for seeds in by_class.values())
    first, *others = by_class.values()
    if len(first) == 1 or any(other.keys() != first.keys() for other in others):
        return Average(overall, None)
    by_seed = [mean(seeds[seed] for seeds in by_class.values()) for seed in first]
    return Average(overall, stdev(by_seed))


def auc_by_member(scores: np.ndarray, labels: np.ndarray, members: Sequence[Member]) -> list[float]:
    """Area under the ROC curve of each member: its normal class against all other classes.

    Args:
        scores: (T, M) novelty scores.
        labels: (T,) classes of the images.
        members: the M members.
    """
    return [
        float(roc_auc_score(labels != member.normal_class, scores[:, k]))
        for k, member in enumerate(members)
    ]


def threshold(scores: np.ndarray, contamination: float) -> float:
    """Compute the threshold from scores of held-out normal images (split conformal prediction).

    The result is the ceil((n + 1)(1 - contamination))-th smallest of the n scores. The score of a
    new normal image exceeds it with a probability of at most `contamination`. That guarantee needs
    n >= 1 / contamination - 1; with fewer scores the result is the largest score.

    Args:
        scores: (n,) novelty scores of held-out normal images, n at least 1.
        contamination: target false positive rate, in (0, 0.5].
    """
    rank = math.ceil((len(scores) + 1) * (1 - contamination))
    return float(np.sort(scores)[min(rank, len(scores)) - 1])
