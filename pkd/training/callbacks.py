"""Callbacks: hooks through which a training run reports its progress and can be stopped."""

from collections.abc import Iterable
from typing import Any

from typing_extensions import override

from pkd.training.structures import Phase


class TrainingInterrupted(Exception):  # noqa: N818 (a request of the user, not an error)
    """The user requested a stop; the run folder holds a checkpoint to continue from."""


class Callback:
    """Hooks of a training run. All of them do nothing; subclasses override some."""

    def on_phase_start(self, phase: Phase, steps: int, steps_done: int) -> None:
        """Called before a stack trains a phase.

        Args:
            phase: the phase.
            steps: steps of the stack in this phase.
            steps_done: steps done before an interruption.
        """

    def on_batch_end(self) -> None:
        """Called after each batch of training, teacher caching and scoring.

        Raises:
            TrainingInterrupted: to stop the run after a checkpoint.
        """

    def on_train_steps_end(self, steps_done: int, losses: dict[str, float]) -> None:
        """Called about four times a second while a stack trains.

        Args:
            steps_done: steps done in this phase.
            losses: name -> loss of the last step, mean over the stack.
        """

    def on_epoch_end(self, record: dict[str, Any], epochs: int) -> None:
        """Called after each epoch.

        Args:
            record: the epoch's line of metrics.jsonl.
            epochs: epochs of the phase.
        """

    def on_message(self, message: str) -> None:
        """Called with information for the user."""


class CallbackList(Callback):
    """Calls each hook of several callbacks in order."""

    def __init__(self, callbacks: Iterable[Callback]):
        self.callbacks = list(callbacks)

    @override
    def on_phase_start(self, phase: Phase, steps: int, steps_done: int) -> None:
        for callback in self.callbacks:
            callback.on_phase_start(phase, steps, steps_done)

    @override
    def on_batch_end(self) -> None:
        for callback in self.callbacks:
            callback.on_batch_end()

    @override
    def on_train_steps_end(self, steps_done: int, losses: dict[str, float]) -> None:
        for callback in self.callbacks:
            callback.on_train_steps_end(steps_done, losses)

    @override
    def on_epoch_end(self, record: dict[str, Any], epochs: int) -> None:
        for callback in self.callbacks:
            callback.on_epoch_end(record, epochs)

    @override
    def on_message(self, message: str) -> None:
        for callback in self.callbacks:
            callback.on_message(message)
