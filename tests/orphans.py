"""End every process of a test run with it, also when the run is killed by SIGKILL.

`watch` marks the environment, which all descendants inherit, and starts a watcher outside the
run's session. When the marked process ends, for any reason, the watcher kills the processes
with its mark: xdist workers, command lines under test, their compile workers.

A process that is forked without a new program keeps the environment of its parent's start, so a
direct fork of the marked process itself is not covered; the tests contain none.
"""

import os
import select
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

MARK = "PKD_TEST_RUN"


def watch() -> subprocess.Popen | None:
    """Mark this process and start its watcher; None inside a run that is already watched."""
    if MARK in os.environ:
        return None
    mark = uuid.uuid4().hex
    environment = dict(os.environ)  # of the watcher: without the mark
    os.environ[MARK] = mark
    return subprocess.Popen(
        [sys.executable, "-S", __file__, str(os.getpid()), mark],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a signal to the run's process group does not reach the watcher
    )


def marked(mark: str, variable: str = MARK) -> list[int]:
    """Ids of the processes that were started with the mark in their environment."""
    entry = f"{variable}={mark}".encode()
    pids = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            entries = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended, or belongs to another user
            continue
        if entry in entries:
            pids.append(int(folder.name))
    return pids


def kill_marked(mark: str, variable: str = MARK) -> None:
    """Kill until none is left: a process may start another between the list and the signal."""
    while pids := marked(mark, variable):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def main(pid: int, mark: str) -> None:
    """Wait for the end of process `pid`, then kill all processes with the mark."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:  # it has ended already
        pass
    else:
        select.select([process], [], [])
    kill_marked(mark)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
