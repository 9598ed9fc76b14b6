"""What the networks of a finished run say of the test split, against the truth."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, f1_score

from pkd.errors import UserError
from pkd.run import Run
from pkd.scoring import auc_by_member

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


def judge(run: Run, results: dict[str, Any]) -> dict[str, list[Verdicts]]:
    """Phase -> verdicts of each member by the network that the phase judged.

    Args:
        run: finished.
        results: what its results.json holds: AUC and thresholds are taken from there.

    Raises:
        UserError: a checkpoint is damaged, or lacks the scores of the test split, or they are not
            those that results.json speaks of.
    """
    labels = run.dataset.test_labels
    verdicts = {}
    for phase in run.phases:
        name = f"{phase.name}.safetensors"
        scores = run.folder.load_tensors(name, "test_scores").get("test_scores")
        if scores is None or scores.shape != (len(labels), len(run.members)):
            raise UserError(
                f"checkpoint {run.folder.checkpoints / name} is damaged or of another version of "
                "pkd, it lacks scores of the test split: restore it from a copy, or train again in "
                "a new folder"
            )
        written = [member["auc"][phase.name] for member in results["members"]]
        if not np.allclose(auc_by_member(scores.numpy(), labels, run.members), written):
            raise UserError(
                f"checkpoint {run.folder.checkpoints / name} has scores of another AUC than "
                "results.json: restore both from a copy, or train again in a new folder"
            )
        verdicts[phase.name] = [
            Verdicts(
                own,
                labels != member["normal_class"],
                member["threshold"][phase.name],
                auc,
            )
            for own, member, auc in zip(scores.T.numpy(), results["members"], written, strict=True)
        ]
    return verdicts
