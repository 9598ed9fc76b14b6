"""What the networks of a finished run say of the test split, against the truth."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, f1_score

from pkd.schedule import Run
from pkd.scoring import novelty_scores

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


def judge(
    run: Run, results: dict[str, Any], tick: Callable[[], None] = lambda: None
) -> dict[str, list[Verdicts]]:
    """Phase -> verdicts of each member by the network that the phase judged.

    Args:
        run: finished; its networks are left as the last phase left them.
        results: what its results.json holds: AUC and thresholds are taken from there.
        tick: called once a batch of images; may raise to stop.
    """
    verdicts = {}
    for phase in run.phases:
        run.load_phase(phase)
        generator = run.networks[phase.judged].generator
        scores = novelty_scores(generator, run.test_images, len(run.members), tick)
        verdicts[phase.name] = [
            Verdicts(
                scores[:, k],
                run.dataset.test_labels != member["normal_class"],
                member["threshold"][phase.name],
                member["auc"][phase.name],
            )
            for k, member in enumerate(results["members"])
        ]
    return verdicts
