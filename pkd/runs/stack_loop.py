"""The epochs of a phase for one stack: trained, judged, recorded, and checkpointed meanwhile."""

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pkd.models.ganomaly import load_networks, network_tensors
from pkd.models.stack import write_back
from pkd.runs.callbacks import Interrupted, Reporter
from pkd.runs.folder import Progress
from pkd.runs.run import Run
from pkd.scoring.metrics import auc_by_member
from pkd.training.trainer import Trainer

# Curves are measured on every 10th image of a large test split, results on the whole of it.
CURVE_IMAGES = 1000


class Clock:
    """Seconds spent, those before a resume included."""

    def __init__(self, before: float):
        self._start = time.monotonic() - before

    def seconds(self) -> float:
        return time.monotonic() - self._start


class Epochs:
    """A stack on its way through the phase that a run's folder stands in.

    Every checkpoint holds the trained networks of all stacks, and what else this stack needs.

    Args:
        run: its folder's progress tells the phase, and where in it this stack stands.
        index: of the stack.
        trainer: of the stack, at the beginning of the phase.
        clock: of the phase; it ran while the trainer was made.
        reporter: told of the progress.
        check: called often; may raise Interrupted.
        test_scores: of the stacks that are done, by name in a checkpoint; this stack's are added.
    """

    def __init__(
        self,
        run: Run,
        index: int,
        trainer: Trainer,
        clock: Clock,
        reporter: Reporter,
        check: Callable[[], None],
        test_scores: dict[str, Tensor],
    ):
        self.run, self.index, self.trainer, self.clock = run, index, trainer, clock
        self.reporter, self.check, self.test_scores = reporter, check, test_scores
        self.stack = run.stacks[index]
        self.progress = replace(run.folder.progress)
        self.phase = run.phases[self.progress.phase]

    def train(self) -> Progress:
        """Train what is left; returns the progress then reached.

        Raises:
            Interrupted: of `check`, after a checkpoint.
        """
        progress = self.progress
        if progress.tensors and progress.stack == self.index:
            self.run.load(progress.tensors, self._take)
        else:
            progress.stack, progress.epoch, progress.step = self.index, 0, 0
        self.reporter.begin(self.phase, self._steps(self.phase.epochs), self._steps_done())
        self._saved = time.monotonic()
        try:
            while progress.epoch < self.phase.epochs:
                self._train_epoch()
                self._judge_epoch()
        except Interrupted:
            self._checkpoint()
            raise
        if self.index + 1 < len(self.run.stacks):
            self._checkpoint()
        self._bring_back()
        return progress

    def _take(self, tensors: dict[str, Tensor]) -> None:
        """Continue from a checkpoint."""
        load_networks(self.run.trained(self.phase), tensors)
        self.trainer.load_state(tensors | network_tensors(self.run.on_device(self.stack)))
        kept = (name for name in tensors if name.startswith("test_scores."))
        self.test_scores.update({name: tensors[name] for name in sorted(kept)})

    def _bring_back(self) -> None:
        """Let the run have the networks, and the progress the time, of now."""
        write_back(self.trainer.networks, self.run.trained(self.phase), self.stack)
        self.progress.seconds = self.progress.seconds | {self.phase.name: self.clock.seconds()}

    def _checkpoint(self) -> None:
        self._bring_back()
        tensors = self.trainer.state(self.progress.step)
        tensors |= network_tensors(self.run.trained(self.phase)) | self.test_scores
        self.run.folder.save_within_phase(tensors, replace(self.progress))

    def _steps(self, epochs: int) -> int:
        return epochs * max(self.trainer.steps)

    def _steps_done(self) -> int:
        return self._steps(self.progress.epoch) + self.progress.step

    def _train_epoch(self) -> None:
        """Train what is left of an epoch."""
        progress = self.progress
        for step in self.trainer.epoch(progress.epoch, progress.step):
            progress.step = step
            self.reporter.advance(self._steps_done(), self.trainer.recent_losses())
            self.check()
            if time.monotonic() - self._saved >= self.run.config.checkpoint_every:
                self._checkpoint()
                self._saved = time.monotonic()

    def _judge_epoch(self) -> None:
        """Score the test split, or after all but the last epoch part of it; then on to the next."""
        run, progress, judged = self.run, self.progress, self.phase.judged
        last = progress.epoch + 1 == self.phase.epochs
        stride = 1 if last else self._curve_stride()
        found = run.scores(self.trainer.networks, self.stack, judged, stride, self.check)
        labels = run.dataset.test_labels[::stride]
        record = {
            "phase": self.phase.name,
            "epoch": progress.epoch + 1,
            "network": judged,
            "auc": auc_by_member(found, labels, run.members[self.stack]),
            "test_images": len(found),
            "losses": self.trainer.epoch_losses(),
        }
        self._keep_record(record)
        self.reporter.epoch(record, self.phase.epochs)
        progress.epoch, progress.step = progress.epoch + 1, 0
        if last:
            self.test_scores[f"test_scores.{self.index:06d}"] = torch.from_numpy(found)

    def _curve_stride(self) -> int:
        """Take every so-manieth test image for curves; all, if some would miss a normal class."""
        labels = self.run.dataset.test_labels
        stride = max(1, len(labels) // CURVE_IMAGES)
        taken = labels[::stride]
        normal = [(taken == member.normal_class).any() for member in self.run.members]
        return stride if all(normal) and (taken != taken[0]).any() else 1

    def _keep_record(self, record: dict[str, Any]) -> None:
        """Put a stack's record of an epoch beside those of the stacks before it."""
        metrics, begin = self.run.folder.metrics, self.stack.start
        before = self.run.phases[: self.progress.phase]
        line = sum(phase.epochs for phase in before) + record["epoch"] - 1
        if line == len(metrics):
            metrics.append(copy.deepcopy(record))
        kept = metrics[line]
        kept["auc"][begin:] = record["auc"]
        for network, losses in record["losses"].items():
            for loss, values in losses.items():
                kept["losses"][network][loss][begin:] = values
