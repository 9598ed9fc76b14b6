"""Run hostile inputs, each in a process forked from this one, with limits on memory and time."""

import gc
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

MEMORY = 2**30  # bytes above those of the parent process
CPU_SECONDS, SECONDS = 10, 30  # processor time, and elapsed time on a busy machine
FILE_BYTES = 2**28

REFUSED, RIGHT, FINDING = "refused", "accepted and right", "findings"


class WrongError(Exception):
    """An input was accepted, but its result is not the right one."""


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        name: of the row in the table.
        check: called in the forked process with a choice of random numbers and an empty folder.
            It makes an input, uses it and compares the result; raises WrongError, or `refusals`.
        refusals: errors that a refused input may raise.
    """

    name: str
    check: Callable[[Random, Path], None]
    refusals: tuple[type[BaseException], ...]


@dataclass
class Outcome:
    """Result of the cases of a kind.

    Attributes:
        counts: REFUSED, RIGHT and FINDING -> number of cases.
        findings: case -> what happened.
        seconds: longest processor time of a case.
        mebibytes: largest memory of a case above that of the parent process.
    """

    counts: Counter[str] = field(default_factory=Counter)
    findings: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    mebibytes: float = 0.0

    def add(self, other: "Outcome") -> None:
        """Add the result of further cases."""
        self.counts += other.counts
        self.findings |= other.findings
        self.seconds = max(self.seconds, other.seconds)
        self.mebibytes = max(self.mebibytes, other.mebibytes)


def run_cases(kind: Kind, cases: range, seed: int) -> Outcome:
    """Run the cases of a kind, one after the other."""
    gc.collect()
    gc.freeze()  # the collector of a child writes to no page that it shares with its parent
    outcome = Outcome()
    for case in cases:
        folder = Path(tempfile.mkdtemp(prefix="pkd-fuzz-"))
        try:
            result, detail = _run(kind, Random(f"{seed} {kind.name} {case}"), folder, outcome)
        finally:
            shutil.rmtree(folder)
        outcome.counts[result] += 1
        if result == FINDING:
            outcome.findings[case] = detail
    return outcome


def _run(kind: Kind, choose: Random, folder: Path, outcome: Outcome) -> tuple[str, str]:
    """Run a case in a forked process; return its result and details."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _in_child(kind, choose, folder, writer)
    os.close(writer)
    content = b""
    try:
        while select.select([reader], [], [], SECONDS)[0]:
            part = os.read(reader, 65536)
            if not part:
                break
            content += part
        else:
            os.kill(child, signal.SIGKILL)
    finally:
        os.close(reader)
        _, status, usage = os.wait4(child, 0)
    outcome.seconds = max(outcome.seconds, usage.ru_utime + usage.ru_stime)
    if os.WIFSIGNALED(status):
        return FINDING, f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
    result, detail, mebibytes = json.loads(content)
    outcome.mebibytes = max(outcome.mebibytes, mebibytes)
    return result, detail


def _in_child(kind: Kind, choose: Random, folder: Path, writer: int) -> None:
    """Run a case, write its result, and end the process."""
    before = _peak_memory()
    result: tuple[str, str] = (FINDING, "no result")
    try:
        os.chdir(folder)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        resource.setrlimit(resource.RLIMIT_AS, (_virtual_memory() + MEMORY,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        kind.check(choose, folder)
        result = RIGHT, ""
    except kind.refusals:
        result = REFUSED, ""
    except BaseException:
        result = FINDING, traceback.format_exc()
    try:
        mebibytes = (_peak_memory() - before) / 1024
        result_name, detail = result
        os.write(writer, json.dumps([result_name, detail[-4000:], mebibytes]).encode())
    finally:
        os._exit(0)  # skips the clean-up of the interpreter


def _peak_memory() -> int:
    """Largest resident memory of this process in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _virtual_memory() -> int:
    """Bytes of the address space of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


def in_fork(function: Callable[[], Any]) -> None:
    """Call a function in a forked process, which may start threads; RuntimeError if it fails."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("the preparation of the inputs failed")
