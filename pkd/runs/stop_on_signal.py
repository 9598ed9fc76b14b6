"""Callback that stops training on SIGINT or SIGTERM, after a checkpoint."""

import signal
from types import FrameType, TracebackType

from pkd.training.callbacks import Callback, TrainingInterrupted


class StopOnSignal(Callback):
    """Context in which SIGINT and SIGTERM stop training after the current batch."""

    def __init__(self) -> None:
        self.requested = False

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

    def on_batch_end(self) -> None:
        if self.requested:
            raise TrainingInterrupted
