"""Callback that stops training on SIGINT, SIGTERM or SIGPIPE, after a checkpoint."""

import signal
from collections.abc import Callable
from types import FrameType, TracebackType

from typing_extensions import override

from pkd.training.callbacks import Callback, TrainingInterrupted


class StopOnSignal(Callback):
    """Context in which SIGINT, SIGTERM and SIGPIPE stop training after the current batch.

    SIGPIPE means that nobody reads standard output any more, as after `pkd train | head -1`.

    Args:
        on_signal: called with each of these signals.

    Attributes:
        number: the last of these signals; None if there was none.
    """

    def __init__(self, on_signal: Callable[[], None] = lambda: None) -> None:
        self.on_signal = on_signal
        self.number: int | None = None

    @property
    def requested(self) -> bool:
        """Whether there was such a signal."""
        return self.number is not None

    def __enter__(self) -> "StopOnSignal":
        self._previous = {
            number: signal.signal(number, self._request)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)
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
        self.number = number
        self.on_signal()

    @override
    def on_batch_end(self) -> None:
        if self.requested:
            raise TrainingInterrupted
