"""The driver of a sweep: starts the shards of a plan, and collects their results."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from pkd.runs.stop_on_signal import StopOnSignal
from pkd.sweep.engines import Engine, Handle, WorkerError
from pkd.sweep.plan import FILE, Plan, Shard, shard_folder
from pkd.sweep.progress import ProgressDisplay, stop_file
from pkd.sweep.results import SweepResults
from pkd.sweep.shard import train_shard
from pkd.utils.errors import CheckpointError, OutputError, PkdError


@dataclass
class Outcome:
    """How a sweep ended.

    Attributes:
        failed: name of a failed shard -> its error.
        interrupted: whether a signal stopped the sweep.
        signal: its number; None if another process received it.
    """

    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    signal: int | None = None


def sweep_command(directory: Path) -> str:
    """Command that continues a sweep."""
    return f"pkd sweep --resume {shlex.quote(str(directory))}"


def check_unused(directory: Path) -> None:
    """Check that a folder can be used for a new sweep: it is empty, or does not exist.

    Raises:
        OutputError: it is not empty, or cannot be read.
    """
    try:
        names = {path.name for path in directory.iterdir()} if directory.exists() else set()
    except OSError as error:
        raise OutputError.from_os_error(directory, error) from error
    if FILE in names:
        raise OutputError(
            f"{directory} holds another sweep: continue it with {sweep_command(directory)}, or "
            "choose another folder for `out`"
        )
    # A process that was killed before the plan was written leaves these files.
    if any(name != ".lock" and not name.startswith(f".{FILE}.") for name in names):
        raise OutputError(f"{directory} is not empty: choose another folder for `out`")


@contextmanager
def new_folder(directory: Path) -> Iterator[None]:
    """Make the folder of a new sweep, and lock it.

    Raises:
        OutputError: the folder is not empty, or cannot be written.
        PkdError: another process uses it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError.from_os_error(directory, error) from error
    with lock(directory):
        check_unused(directory)
        yield


@contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Keep other drivers from a sweep; PkdError if one uses it."""
    file_lock = FileLock(directory / ".lock", timeout=0)
    try:
        file_lock.acquire()
    except Timeout as error:
        raise PkdError(f"another process runs the sweep in {directory}: wait for it") from error
    except OSError as error:
        raise OutputError.from_os_error(directory, error) from error
    try:
        yield
    finally:
        file_lock.release()


class Driver:
    """Runs the shards of a plan that are not finished.

    A shard starts as soon as the shards that train its teachers are finished. The failure of a
    shard stops only the shards that need its teachers.

    Args:
        directory: folder of the sweep, with plan.json; locked by the caller.
        plan: its plan.
        engine: runs the tasks.
        display: shows the progress.
        command: command that continues the sweep, for messages.
    """

    def __init__(
        self,
        directory: Path,
        plan: Plan,
        engine: Engine,
        display: ProgressDisplay,
        command: str,
    ):
        self.command = command
        self.directory, self.plan = directory.absolute(), plan
        self.engine, self.display = engine, display
        self.results = SweepResults(self.directory, plan)
        self.outcome = Outcome()
        self._waiting: list[Shard] = []
        self._running: dict[Handle, Shard] = {}

    def run(self) -> Outcome:
        """Run until every shard is finished or failed, or until a signal stops the sweep.

        Raises:
            OutputError: sweep.json or sweep.csv cannot be written.
        """
        stop = stop_file(self.directory)
        stop.unlink(missing_ok=True)  # of a sweep that was stopped
        self._waiting = [shard for shard in self.plan.shards if not self._is_finished(shard)]
        with StopOnSignal(self._request_stop) as signals, self.display:
            while self._submit_ready(signals) or self._running:
                self._wait()
        self.outcome.interrupted |= bool(self._waiting)
        self.outcome.signal = signals.number
        stop.unlink(missing_ok=True)
        self._write_results()
        return self.outcome

    def _request_stop(self) -> None:
        """Stop the running shards after a checkpoint."""
        with suppress(OSError):  # a full disk: the submitted shards go on
            stop_file(self.directory).touch()

    def _is_finished(self, shard: Shard) -> bool:
        folder = shard_folder(self.directory, shard.name)
        if not (folder / "results.json").is_file():
            return False
        try:
            self.results.add(shard)
        except CheckpointError:
            return False  # its task reports what is damaged
        self.display.finished.add(shard.name)
        return True

    def _submit_ready(self, signals: StopOnSignal) -> bool:
        """Submit the shards whose teachers are finished; return whether there are any."""
        if signals.requested or self.outcome.interrupted:
            return False
        self._fail_without_teachers()
        ready = [s for s in self._waiting if self.display.finished.issuperset(s.teachers)]
        for shard in sorted(ready, key=self._priority):
            self._submit(shard)
        return bool(ready)

    def _priority(self, shard: Shard) -> tuple[bool, float]:
        """Sort key: teachers first, which other shards wait for, then the longest shards."""
        return not self.plan.trains_teachers(shard), -shard.seconds

    def _fail_without_teachers(self) -> None:
        for shard in list(self._waiting):
            for name in shard.teachers:
                if name in self.outcome.failed:
                    self._waiting.remove(shard)
                    self._fail(shard, f"its teachers are missing: the shard {name} failed")
                    break

    def _submit(self, shard: Shard) -> None:
        if shard in self._waiting:
            self._waiting.remove(shard)
        handle = self.engine.submit(train_shard, str(self.directory), shard.name)
        self._running[handle] = shard
        self.display.running.add(shard.name)

    def _wait(self) -> None:
        """Wait for the end of one task, and act on its result."""
        try:
            handle, result = self.engine.wait(list(self._running))
        except WorkerError as error:
            handle, result = error.handle, {"status": "failed", "error": str(error)}
        shard = self._running.pop(handle)
        self.display.running.discard(shard.name)
        if result["status"] == "finished":
            self._finish(shard)
        elif result["status"] == "interrupted":
            self._waiting.append(shard)
            self.outcome.interrupted = True
        elif result["status"] == "out_of_memory" and shard.stack > 1:
            self._halve_stack(shard)
        elif result["status"] == "out_of_memory":
            self._fail(shard, f"{result['error']}; choose a smaller `batch_size`, then start again")
        else:
            self._fail(shard, result["error"])

    def _finish(self, shard: Shard) -> None:
        try:
            self.results.add(shard)
        except CheckpointError as error:
            self._fail(shard, str(error))
            return
        self.display.finished.add(shard.name)
        with suppress(OutputError):  # a full disk: `run` writes them again at the end
            self._write_results()

    def _halve_stack(self, shard: Shard) -> None:
        shard.stack = (shard.stack + 1) // 2
        self.display.message(
            f"{shard.name}: out of GPU memory, continues in stacks of {shard.stack}"
        )
        try:
            self.plan.write(self.directory)
        except OutputError as error:
            self._fail(shard, str(error))
            return
        self._submit(shard)

    def _fail(self, shard: Shard, error: str) -> None:
        self.outcome.failed[shard.name] = error
        self.display.message(f"{shard.name} failed: {error}")

    def _write_results(self) -> None:
        self.results.write(self.outcome.failed, self.command)
