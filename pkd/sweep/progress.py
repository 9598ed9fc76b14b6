"""Progress of a sweep: a file that each running shard rewrites, and the display that reads them."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text
from typing_extensions import override

from pkd.runs.folder import RunFolder
from pkd.sweep.plan import Plan
from pkd.training.callbacks import Callback, TrainingInterrupted
from pkd.training.structures import Phase
from pkd.utils.duration import format_duration
from pkd.utils.errors import OutputError
from pkd.utils.files import atomic_write, read_text

SECONDS = 1.0  # between two progress files of a shard, and two looks at the stop file
LINE_SECONDS = 10.0  # between two lines where there is no terminal
SHOWN_SHARDS = 8


def stop_file(directory: Path) -> Path:
    """File that stops every shard of a sweep after a checkpoint."""
    return directory / "stop"


def progress_folder(directory: Path) -> Path:
    """Folder with the progress file of each shard."""
    return directory / "progress"


class StopFile(Callback):
    """Stop training, after a checkpoint, when a file exists.

    Args:
        path: the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self._next = 0.0

    @override
    def on_batch_end(self) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + SECONDS
            if self.path.exists():
                raise TrainingInterrupted


class ProgressFile(Callback):
    """Write the progress of a shard to DIR/progress/NAME.json about once a second.

    Args:
        directory: folder of the sweep.
        name: name of the shard.
        steps: trained phase -> steps of each stack.
        folder: run folder of the shard.
    """

    def __init__(
        self, directory: Path, name: str, steps: Mapping[str, list[int]], folder: RunFolder
    ):
        self.path = progress_folder(directory) / f"{name}.json"
        self.steps, self.folder = steps, folder
        self.total = sum(map(sum, steps.values()))
        self._phase, self._stack = "", 0
        self._next = 0.0

    @override
    def on_phase_start(self, phase: Phase, steps: int, steps_done: int) -> None:
        same = phase.name == self._phase
        self._stack = self._stack + 1 if same else self.folder.progress.stack
        self._phase = phase.name
        self._write(steps_done, {})

    @override
    def on_train_steps_end(self, steps_done: int, losses: dict[str, float]) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + SECONDS
            self._write(steps_done, losses)

    def finish(self) -> None:
        """Write that all steps are done."""
        self._phase, self._stack = "", 0
        self._write(self.total, {})

    def _write(self, steps_done: int, losses: dict[str, float]) -> None:
        names = list(self.steps)
        if self._phase:
            earlier = names[: names.index(self._phase)]
            steps_done += sum(sum(self.steps[name]) for name in earlier)
            steps_done += sum(self.steps[self._phase][: self._stack])
        record = {
            "steps_done": steps_done,
            "steps": self.total,
            "phase": self._phase,
            "losses": losses,
            "time": time.time(),
        }
        # the display alone reads it: a full disk stops no training here
        with suppress(OSError, OutputError):
            self.path.parent.mkdir(exist_ok=True)
            with atomic_write(self.path) as temporary:
                temporary.write_text(json.dumps(record), "utf-8")


class ProgressDisplay:
    """Context that shows the progress of a sweep: a bar on a terminal, else a line now and then.

    Args:
        directory: folder of the sweep.
        plan: its plan.
        console: where to print.
        spelling: converts the settings in messages, which are in backticks.

    Attributes:
        running: names of the shards whose tasks are submitted and have not ended.
        finished: names of the shards that are finished.
    """

    def __init__(
        self,
        directory: Path,
        plan: Plan,
        console: Console,
        spelling: Callable[[str], str] = str,
    ):
        self.folder, self.console, self.spelling = progress_folder(directory), console, spelling
        self.running: set[str] = set()
        self.finished: set[str] = set()
        self._steps = {shard.name: plan.total_steps(shard) for shard in plan.shards}
        self._seconds = {shard.name: shard.seconds for shard in plan.shards}
        self._bar = Progress(
            TextColumn("sweep"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TaskProgressColumn(),
            TextColumn("{task.fields[eta]}"),
            console=console,
        )
        self._task = self._bar.add_task("", total=sum(self._steps.values()), eta="")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> "ProgressDisplay":
        for path in self.folder.glob("*.json"):  # of an earlier process
            path.unlink(missing_ok=True)
        self._start = time.monotonic()
        self._work_before = self._work_done(self._records())
        self._live = Live(console=self.console, auto_refresh=False, transient=True)
        if self.console.is_terminal:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._live.stop()

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(self.spelling(text), soft_wrap=True)

    def _show(self) -> None:
        terminal = self.console.is_terminal
        while not self._ended.wait(SECONDS if terminal else LINE_SECONDS):
            records = self._records()
            if terminal:
                self._show_bar(records)
            else:
                self.message(self._line(records))

    def _records(self) -> dict[str, dict[str, Any]]:
        """Progress files of the running shards."""
        records = {}
        for name in sorted(self.running.copy()):
            with suppress(OSError, ValueError):  # not written yet
                records[name] = json.loads(read_text(self.folder / f"{name}.json"))
        return records

    def _steps_done(self, records: Mapping[str, dict[str, Any]]) -> int:
        running = sum(record["steps_done"] for record in records.values())
        return running + sum(self._steps[name] for name in self.finished - records.keys())

    def _work_done(self, records: Mapping[str, dict[str, Any]]) -> float:
        """Estimated seconds of the steps done: steps of different networks take unequal times."""
        done = sum(self._seconds[name] for name in self.finished - records.keys())
        for name, record in records.items():
            done += self._seconds[name] * record["steps_done"] / max(1, record["steps"])
        return done

    def _eta(self, records: Mapping[str, dict[str, Any]]) -> str:
        done, total = self._work_done(records), sum(self._seconds.values())
        gained, elapsed = done - self._work_before, time.monotonic() - self._start
        return f"ETA {format_duration(elapsed * (total - done) / gained)}" if gained > 0 else ""

    def _show_bar(self, records: Mapping[str, dict[str, Any]]) -> None:
        self._bar.update(self._task, completed=self._steps_done(records), eta=self._eta(records))
        lines = [_describe(name, record) for name, record in records.items()]
        if len(lines) > SHOWN_SHARDS:
            lines[SHOWN_SHARDS:] = [f"and {len(lines) - SHOWN_SHARDS} more"]
        self._live.update(Group(self._bar, *map(Text, lines)), refresh=True)

    def _line(self, records: Mapping[str, dict[str, Any]]) -> str:
        done, total = self._steps_done(records), sum(self._steps.values())
        parts = [f"{done}/{total} steps, {len(self.finished)}/{len(self._steps)} shards"]
        parts += filter(None, [self._eta(records)])
        parts += [_describe(name, record) for name, record in [*records.items()][:SHOWN_SHARDS]]
        return "; ".join(parts)


def _describe(name: str, record: Mapping[str, Any]) -> str:
    losses = "  ".join(f"{name} {value:.3g}" for name, value in record["losses"].items())
    return f"{name} {record['phase']} {record['steps_done']}/{record['steps']} {losses}".rstrip()
