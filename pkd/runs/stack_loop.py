"""Train one stack for one phase, with checkpoints."""

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pkd.models.ganomaly import load_networks, network_tensors
from pkd.models.stack import write_back
from pkd.runs.run import Run
from pkd.runs.run_parts import compute_stack_parts
from pkd.training.callbacks import Callback, TrainingInterrupted
from pkd.training.factory import make_trainer

# Curves use about this many images of a large test split, results all of them.
CURVE_IMAGES = 1000


class StackLoop:
    """Train one stack for one phase, with checkpoints.

    A checkpoint holds the trained networks of all stacks and the state of this stack's trainer.

    Args:
        run: the run; its progress selects the phase.
        index: number of the stack.
        scores: stack -> (T, M, 3) parts of test scores, of the stacks that are finished.
        callback: hooks of the training.
        use_graph: on a GPU, capture the step as a CUDA graph.
        on_graph_failure: called with the reason if the capture fails.

    Attributes:
        progress: position of the training.
    """

    def __init__(
        self,
        run: Run,
        index: int,
        scores: dict[int, Tensor],
        callback: Callback,
        use_graph: bool,
        on_graph_failure: Callable[[str], None],
    ):
        self.run, self.index, self.scores, self.callback = run, index, scores, callback
        self.progress = replace(run.folder.progress)
        self.phase, self.stack = run.phases[self.progress.phase], run.stacks[index]
        self._start = time.monotonic() - self.progress.seconds.get(self.phase.name, 0.0)
        members = run.members[self.stack]
        self.trainer = make_trainer(
            run.config,
            self.phase,
            run.on_device(self.stack),
            members,
            run.data.train_set(members, run.device, self.phase.max_train_images),
            callback,
            use_graph=use_graph,
            on_graph_failure=on_graph_failure,
        )

    def train(self) -> dict[int, Tensor]:
        """Train the remaining epochs; return the parts of test scores up to this stack.

        Raises:
            TrainingInterrupted: raised by a callback, passed on after a checkpoint.
        """
        progress = self.progress
        if progress.tensors and progress.stack == self.index:
            self.run.load(progress.tensors, self._load)
        else:
            progress.stack, progress.epoch, progress.step = self.index, 0, 0
        self.callback.on_phase_start(self.phase, self._steps(self.phase.epochs), self._steps_done())
        self._saved = time.monotonic()
        try:
            while progress.epoch < self.phase.epochs:
                for step in self.trainer.epoch(progress.epoch, progress.step):
                    progress.step = step
                    self._after_steps()
                self._evaluate_epoch()
        except TrainingInterrupted:
            self._checkpoint()
            raise
        if self.index + 1 < len(self.run.stacks):
            self._checkpoint()
        self._write_back()
        return self.scores

    def _after_steps(self) -> None:
        """Report the steps done, and write a checkpoint if it is time for one."""
        self.callback.on_train_steps_end(self._steps_done(), self.trainer.history.recent())
        self.callback.on_batch_end()
        if time.monotonic() - self._saved >= self.run.config.checkpoint_every:
            self._checkpoint()
            self._saved = time.monotonic()

    def _evaluate_epoch(self) -> None:
        """Score the test split, a part of it after all but the last epoch, and record the AUC."""
        run, progress, network = self.run, self.progress, self.phase.network
        last = progress.epoch + 1 == self.phase.epochs
        stride = 1 if last else self._curve_stride
        parts = compute_stack_parts(
            run,
            self.trainer.networks,
            self.stack,
            network,
            stride,
            self.callback.on_batch_end,
            held_out=run.config.score == "fused",  # its constants come from them
        )
        labels = run.dataset.test_labels[::stride]
        record = {
            "phase": self.phase.name,
            "epoch": progress.epoch + 1,
            "network": network,
            "auc": parts.auc(run.score_rule, labels, run.members[self.stack]),
            "test_images": len(labels),
            "losses": self.trainer.history.epoch_means(),
        }
        self._add_to_metrics(record)
        self.callback.on_epoch_end(record, self.phase.epochs)
        progress.epoch, progress.step = progress.epoch + 1, 0
        if last:
            self.scores = self.scores | {self.index: torch.from_numpy(parts.test)}

    @cached_property
    def _curve_stride(self) -> int:
        """Stride that subsamples the test split for training curves.

        It is 1 if a subsample would lack a normal class or have one class only.
        """
        labels = self.run.dataset.test_labels
        stride = max(1, len(labels) // CURVE_IMAGES)
        sample = labels[::stride]
        complete = all((sample == member.normal_class).any() for member in self.run.members)
        return stride if complete and (sample != sample[0]).any() else 1

    def _add_to_metrics(self, record: dict[str, Any]) -> None:
        """Merge a record of this stack into the epoch's line, beside earlier stacks' members."""
        metrics, begin = self.run.folder.metrics, self.stack.start
        earlier = self.run.phases[: self.progress.phase]
        line = sum(phase.epochs for phase in earlier) + record["epoch"] - 1
        if line == len(metrics):
            metrics.append(copy.deepcopy(record))
        merged = metrics[line]
        merged["auc"][begin:] = record["auc"]
        for network, losses in record["losses"].items():
            for loss, values in losses.items():
                merged["losses"][network][loss][begin:] = values

    def _load(self, tensors: dict[str, Tensor]) -> None:
        """Continue from a checkpoint."""
        load_networks(self.run.trained(self.phase), tensors)
        self.trainer.load_state(tensors | network_tensors(self.run.on_device(self.stack)))

    def _checkpoint(self) -> None:
        self._write_back()
        tensors = self.trainer.state(self.progress.step)
        tensors |= network_tensors(self.run.trained(self.phase))
        tensors |= {f"test_scores.{k:06d}": scores for k, scores in self.scores.items()}
        self.run.folder.save_progress(tensors, replace(self.progress))

    def _write_back(self) -> None:
        """Copy the trained weights to the run's networks, and the time spent to the progress."""
        write_back(self.trainer.networks, self.run.trained(self.phase), self.stack)
        seconds = time.monotonic() - self._start
        self.progress.seconds = self.progress.seconds | {self.phase.name: seconds}

    def _steps(self, epochs: int) -> int:
        return epochs * max(self.trainer.steps)

    def _steps_done(self) -> int:
        return self._steps(self.progress.epoch) + self.progress.step
