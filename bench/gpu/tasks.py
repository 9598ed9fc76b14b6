"""The process of one stage: run its tasks, each in its own process.

    python -m bench.gpu.tasks MODULE:FUNCTION STAGE FACTS CALL DEADLINE [--rehearse]

`bench.gpu.runner` starts this command. A task that fails, crashes or hangs becomes a fact, and the
other tasks still run. Tasks that an earlier call has done are left out.

A task can go on after an error, such as a contender or a tiling that fails on a GPU; the error is
then one of its facts. In a rehearsal nothing should fail, so there such a fact fails the task.
"""

import argparse
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from importlib import import_module
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from bench.gpu.facts import Fact, Facts
from bench.gpu.plan import MIN_S

MAX_FRACTION = 0.6  # of the remaining time for one task, so that a hang leaves time for others
GRACE_S = 2.0  # part of a task's time in which its process ends by itself
POLL_S = 0.2

DONE, FAILED, STOPPED = "done", "failed", "stopped"

# Takes the task's deadline, a time.time(); every value that it yields is written at once.
Task = Callable[[float], Iterable[Fact]]


class Tasks(NamedTuple):
    """The work of a stage.

    Attributes:
        run: tasks by name.
        processes: number of tasks that run at the same time.
    """

    run: dict[str, Task]
    processes: int = 1


class Running(NamedTuple):
    """A task in its process."""

    process: BaseProcess
    start: float
    deadline: float


class StageProcess:
    """Run the tasks of a stage.

    Args:
        stage: name of the stage.
        tasks: its tasks.
        facts: where results are written.
        deadline: end of the last task, a time.time().
        strict: a fact with an error fails its task.
    """

    def __init__(
        self, stage: str, tasks: Tasks, facts: Facts, deadline: float, strict: bool = False
    ):
        self.stage, self.tasks, self.facts, self.deadline = stage, tasks, facts, deadline
        self.strict = strict
        self.parent = os.getppid()
        self.running: dict[str, Running] = {}
        # A fork of this process has imported all modules. It can use the GPU, because this process
        # does not.
        self.context = multiprocessing.get_context("fork")

    def run(self) -> bool:
        """Run all tasks; return whether all are done, in this call or in an earlier one."""
        done = self.facts.finished_tasks(self.stage)
        waiting = [name for name in self.tasks.run if name not in done]
        while self.running or (waiting and self.left() > MIN_S):
            while waiting and len(self.running) < self.tasks.processes and self.left() > MIN_S:
                self.start(waiting.pop(0), last=not waiting)
            self.wait()
        return set(self.tasks.run) <= self.facts.finished_tasks(self.stage)

    def left(self) -> float:
        """Return the remaining seconds."""
        return self.deadline - time.time()

    def start(self, name: str, last: bool) -> None:
        """Start a task. In a sequence it may use only a part of the time unless it is the last."""
        share = 1.0 if last or self.tasks.processes > 1 else MAX_FRACTION
        deadline = time.time() + share * self.left()
        process = self.context.Process(target=self.run_task, args=(name, deadline - GRACE_S))
        sys.stdout.flush()
        process.start()
        self.running[name] = Running(process, time.time(), deadline)

    def run_task(self, name: str, deadline: float) -> None:
        """Run a task in this process and write its results."""
        start = time.time()
        outcome: Fact = {"ended": DONE}
        try:
            for fact in self.tasks.run[name](deadline):
                self.facts.append(self.stage, task=name, **fact)
                if self.strict and "error" in fact:
                    outcome = {"ended": FAILED, "error": fact["error"]}
        except Exception as error:  # any error: the other tasks must run
            traceback.print_exc()
            outcome = {"ended": FAILED, "error": first_line(error)}
        outcome["seconds"] = round(time.time() - start, 2)
        self.facts.append(self.stage, task=name, **outcome)

    def wait(self) -> None:
        """Wait until a task ends, for a short time; end tasks at their time limits."""
        connection.wait([task.process.sentinel for task in self.running.values()], POLL_S)
        if os.getppid() != self.parent:  # `bench.gpu.runner` was killed
            os.killpg(os.getpgrp(), signal.SIGKILL)
        for name, (process, start, deadline) in list(self.running.items()):
            seconds = round(time.time() - start, 2)
            if not process.is_alive():
                if process.exitcode:
                    error = f"the process ended with exit code {process.exitcode}"
                    self.end(name, ended=FAILED, error=error, seconds=seconds)
                del self.running[name]
            elif time.time() > deadline:
                process.kill()
                process.join()
                self.end(name, ended=STOPPED, seconds=seconds)
                del self.running[name]

    def end(self, name: str, **outcome: object) -> None:
        """Write the end of a task that could not write it."""
        self.facts.append(self.stage, task=name, **outcome)


def first_line(error: BaseException) -> str:
    """Return the type and the first line of an error."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]


def tasks_of(path: str, rehearse: bool) -> Tasks:
    """Call "module:function" for the tasks of a stage."""
    module, _, function = path.partition(":")
    return getattr(import_module(module), function)(rehearse)


def main() -> int:
    """Run a stage; return 0 if all of its tasks are done, else 1."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.tasks")
    parser.add_argument("tasks", metavar="MODULE:FUNCTION")
    parser.add_argument("stage")
    parser.add_argument("facts", type=Path)
    parser.add_argument("call", type=int)
    parser.add_argument("deadline", type=float)
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    facts = Facts(args.facts, args.call)
    tasks = tasks_of(args.tasks, args.rehearse)
    process = StageProcess(args.stage, tasks, facts, args.deadline, strict=args.rehearse)
    return 0 if process.run() else 1


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # without the teardown of torch, which takes time
