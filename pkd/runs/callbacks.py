"""What a run tells its user while it goes on, and how the user asks it to stop."""

import signal
from typing import Any

from pkd.training.config import Phase


class Interrupted(Exception):  # noqa: N818 (it is no error)
    """The user asked to stop; the run folder holds a checkpoint."""


class StopRequest:
    """Context in which SIGINT and SIGTERM ask training to stop instead of breaking it off."""

    def __init__(self):
        self.asked = False

    def __enter__(self) -> "StopRequest":
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, *_: object) -> None:
        self.asked = True

    def check(self) -> None:
        if self.asked:
            raise Interrupted


class Reporter:
    """What a run tells while it goes on; this one keeps silent."""

    def begin(self, phase: Phase, steps: int, done: int) -> None:
        """A phase of `steps` steps begins, `done` of them done before."""

    def advance(self, steps: int, losses: dict[str, float]) -> None:
        """`steps` steps are done in this phase; losses are means over the stack."""

    def epoch(self, record: dict[str, Any], epochs: int) -> None:
        """An epoch is over; `record` is its line in metrics.jsonl."""

    def note(self, message: str) -> None:
        """Something the user should know."""


class Several(Reporter):
    """Tells every one of several reporters."""

    def __init__(self, *reporters: Reporter):
        self.reporters = reporters

    def begin(self, phase: Phase, steps: int, done: int) -> None:
        for reporter in self.reporters:
            reporter.begin(phase, steps, done)

    def advance(self, steps: int, losses: dict[str, float]) -> None:
        for reporter in self.reporters:
            reporter.advance(steps, losses)

    def epoch(self, record: dict[str, Any], epochs: int) -> None:
        for reporter in self.reporters:
            reporter.epoch(record, epochs)

    def note(self, message: str) -> None:
        for reporter in self.reporters:
            reporter.note(message)
