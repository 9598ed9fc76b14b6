"""Callback that stops training on SIGINT or SIGTERM, after a checkpoint."""

import signal
from collections.abc import Callable
from types import FrameType, TracebackType

from typing_extensions import override

from pkd.training.callbacks import Callback, TrainingInterrupted


class StopOnSignal(Callback):
    """Context in which SIGINT and SIGTERM stop training after the current batch.

    Args:
        on_signal: called with each of these signals.

    Attributes:
        requested: whether there was such a signal.
    """

    def __init__(self, on_signal: Callable[[], None] = lambda: None) -> None:
        self.requested, self.on_signal = False, on_signal

    def __enter__(self) -> "StopOnSignal":
        self._previous = {
            number: signal.signal(number, self._request)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self.on_signal()

    @override
    def on_batch_end(self) -> None:
        if self.requested:
            raise TrainingInterrupted
