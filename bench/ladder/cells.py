"""The ladder: every rung and peer of a training step, by structure, student and number of models.

A cell is one structure, student and stack; its contenders are checked, timed in turn and counted. A
contender that fails is a row that says why. Each cell is measured in a process of its own with a
time limit: a hang takes no more than part of the time, a broken device no more than its cell, and
what counting launches costs a process no other cell.
"""

import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from multiprocessing.connection import Connection
from typing import Any

import torch

from bench.ladder.contenders import BASE, COMPILE, CONTENDERS, Contender, Problem
from bench.ladder.timing import (
    CHECK_STEPS,
    check,
    counted,
    interleaved,
    seconds_per_step,
    statistics,
    steps_for,
    synchronize,
)
from pkd.models.paper import PAPER_STUDENTS, TEACHER_WIDTHS
from pkd.training.structures import KDGAN, TEACHER

OK, FAILED, NOT_RUN = "ok", "failed", "not run"

STRUCTURES = {"KDGAN-2": KDGAN[2], "KDGAN-3": KDGAN[3], "teacher": TEACHER}

STUDENTS = {
    "-".join(map(str, widths)): (channels, widths)
    for channels, widths, *_ in PAPER_STUDENTS.values()
}

LARGE, SMALL = "8-16-64", "1-2-4"

STACKS = (1, 10, 30, 128)

CPU_STACKS = (1, 10, 30)

PART = 0.6  # of the time that is left: no cell takes more, so that a hang leaves time to others

LEAST_S = 8.0  # less time than a cell needs to begin

GRACE_S = 2.0  # of a cell's time, for it to end by itself

Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """What all cells have in common.

    Attributes:
        images: of a class; steps go round them.
        repeats, seconds: of timing, each contender in each cell.
    """

    device: torch.device
    teacher_widths: tuple[int, int, int] = TEACHER_WIDTHS
    images: int = 50
    repeats: int = 5
    seconds: float = 0.25
    threads: int = 1


@dataclass(frozen=True)
class Cell:
    """What is trained: keys of `STRUCTURES` and `STUDENTS`, and the number of models.

    Attributes:
        contenders: keys of `CONTENDERS`; empty is all that apply but torch.compile, which takes
            long.
    """

    structure: str
    student: str
    stack: int
    contenders: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What tells the cell from the others."""
        compiled = [name for name in self.contenders if name in COMPILE]
        network = "teacher" if self.structure == "teacher" else f"{self.structure}, {self.student}"
        return ", ".join([network, f"M = {self.stack}", *compiled])

    def names(self, device: torch.device) -> list[str]:
        """Contenders that take part on this device, the plain loop first."""
        return [
            name
            for name, entry in CONTENDERS.items()
            if entry.applies(STRUCTURES[self.structure], self.stack, device)
            and (name in self.contenders if self.contenders else name not in COMPILE)
        ]

    def problem(self, size: Size) -> Problem:
        channels, widths = STUDENTS[self.student]
        structure = STRUCTURES[self.structure]
        return Problem(size.teacher_widths, widths, size.images, size.device, channels, structure)


def plan(device: torch.device) -> list[Cell]:
    """All cells, what the targets need first."""
    ours = (BASE, "pkd, eager", "pkd, one graph")
    first = [
        *(Cell("KDGAN-2", LARGE, stack) for stack in (1, 30)),
        *(Cell("KDGAN-2", SMALL, stack) for stack in (128, 1)),
        Cell("teacher", LARGE, 1),
        *(
            Cell(structure, LARGE, 1, (*ours, name))
            for structure in ("KDGAN-2", "teacher")
            for name in COMPILE
        ),
    ]
    rest = [
        Cell(structure, student, stack)
        for structure, student in product(("KDGAN-2", "KDGAN-3"), (LARGE, SMALL, "2-4-8"))
        for stack in STACKS
    ]
    rest += [Cell("teacher", LARGE, stack) for stack in STACKS]
    return [cell for cell in dict.fromkeys(first + rest) if fits(cell, device)]


def fits(cell: Cell, device: torch.device) -> bool:
    """Whether a cell is for this device: a CPU trains no stack of teachers in time."""
    if device.type == "cuda":
        return True
    trains_teachers = STRUCTURES[cell.structure].teacher and cell.stack > 1
    asked = {name for name in cell.contenders if name in COMPILE}
    return cell.stack in CPU_STACKS and not trains_teachers and asked <= {*cell.names(device)}


def run(cells: Sequence[Cell], size: Size, budget: float) -> Iterator[tuple[Cell, list[Row]]]:
    """Measure all cells within `budget` seconds; each is given out when it is done.

    A cell for which there is no time has rows that say so.
    """
    end = time.time() + budget
    for cell in cells:
        left = end - time.time()
        limit = left if cell is cells[-1] else PART * left
        yield cell, measured_apart(cell, size, time.time() + limit)


def measured_apart(cell: Cell, size: Size, deadline: float) -> list[Row]:
    """Rows of a cell from a process that is killed at `deadline`, a time.time()."""
    start, names = time.time(), cell.names(size.device)
    if deadline - start < LEAST_S:
        return [row(cell, name, status=NOT_RUN) for name in names]
    # Its server has imported everything and touched no driver, so that a process begins at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=measure_here, args=(cell, size, deadline - GRACE_S, send))
    process.start()
    send.close()
    try:
        if receive.poll(deadline - time.time()):
            return receive.recv()
        status, error = NOT_RUN, f"stopped after {deadline - start:.0f} s"
    except EOFError:
        process.join(LEAST_S)
        status, error = FAILED, f"the process ended with exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()
        receive.close()
    return [row(cell, name, status=status, error=error) for name in names]


def measure_here(cell: Cell, size: Size, deadline: float, results: Connection) -> None:
    """What the process does."""
    torch.set_num_threads(size.threads)
    torch.backends.cudnn.allow_tf32 = False  # full float32, as `pkd train` computes
    results.send(measure(cell, size, deadline))


class OutOfTime(BaseException):
    """What was begun did not end in time; not for an `except Exception` on the way."""


@contextmanager
def until(moment: float) -> Iterator[None]:
    """Raise OutOfTime inside at a time.time(), as soon as Python runs; in the main thread only."""

    def stop(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(1e-3, moment - time.time()))
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def measure(cell: Cell, size: Size, deadline: float) -> list[Row]:
    """One row for each contender of a cell.

    Args:
        deadline: time.time() when contenders that are not ready are left out, less what it takes to
            time those that are.
    """
    problem, entries, rows, steps = cell.problem(size), {}, {}, {}
    for name in cell.names(size.device):
        start, reserve = time.time(), 2 * (len(entries) + 1) * size.repeats * size.seconds
        if start + reserve > deadline:
            rows[name] = row(cell, name, status=NOT_RUN)
            continue
        try:
            with until(deadline - reserve):
                contender, found = ready(problem, name, cell.stack)
                steps[name] = steps_for(contender, size.seconds, size.device)
            entries[name], rows[name] = contender, row(cell, name, status=OK, **found)
        except OutOfTime:
            error = f"not ready after {time.time() - start:.0f} s"
            rows[name] = row(cell, name, status=NOT_RUN, error=error)
        except Exception as error:  # whatever it is: a peer's failure is a result
            rows[name] = row(cell, name, status=FAILED, error=summary(error))
    if BASE not in entries:
        return [row(cell, n, status=NOT_RUN) if n in entries else rows[n] for n in rows]
    try:
        times = interleaved(entries, steps, size.repeats, size.device)
    except Exception as error:
        failed = {name: row(cell, name, status=FAILED, error=summary(error)) for name in entries}
        return list((rows | failed).values())
    for timed in statistics(entries, times):
        rows[timed.pop("name")] |= timed
    for name, contender in entries.items():
        rows[name] |= launches(name, contender, size.device, deadline)
    return list(rows.values())


def launches(name: str, contender: Contender, device: torch.device, deadline: float) -> Row:
    """`counted`, or why not: what was timed stands without it."""
    if device.type != "cuda" and name in COMPILE:  # it would be counted as if it were not compiled
        return {}
    try:
        with until(deadline):
            return counted(contender, device)
    except (Exception, OutOfTime) as error:
        return {"uncounted": summary(error)}


def row(cell: Cell, name: str, **found: Any) -> Row:
    """What a row is about, and what was found."""
    about = {"cell": cell.title, "structure": cell.structure, "student": cell.student}
    peer = CONTENDERS[name].peer
    return about | {"stack": cell.stack, "contender": name, "peer": peer} | found


def summary(error: BaseException) -> str:
    """Its type and first line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]


def ready(problem: Problem, name: str, stack: int) -> tuple[Contender, Row]:
    """A contender, made and checked.

    Returns:
        The contender, and: `first_s` (seconds of its first two steps, with compilation or capture),
        `memory_mb` (peak of making it and of these steps, None on a CPU), `disagreement` and
        `parameters` (trained, of one model).
    """
    device, on_gpu = problem.device, problem.device.type == "cuda"
    before = 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    entry = CONTENDERS[name]
    contender = entry.build(problem, problem.members(stack))
    synchronize(device)
    found: Row = {"first_s": CHECK_STEPS * seconds_per_step(contender, CHECK_STEPS, device)}
    peak = (torch.cuda.max_memory_allocated(device) - before) / 2**20 if on_gpu else None
    found |= {"memory_mb": peak, "disagreement": check(problem, contender, entry.exact)}
    trained = contender.trained(0).values()
    found["parameters"] = sum(p.numel() for tensors in trained for p in tensors)
    return contender, found


def table(rows: Sequence[Row]) -> str:
    """Rows of a cell for the screen."""
    lines = [
        f"{'':31}{'ms/step':>9}{'(min - max)':>20}{'images/s':>11}{'ratio':>9}{'launches':>10}"
        f"{'GPU ms':>9}{'first s':>9}{'MB':>8}"
    ]
    for row in rows:
        if row["status"] != OK:
            lines.append(
                f"{row['contender']:31}{row['status']}: {row.get('error', 'no time left')}"
            )
            continue
        spread = f"({min(row['ms_per_step']):.3f} - {max(row['ms_per_step']):.3f})"
        lines.append(
            f"{row['contender']:31}{row['ms_per_step_median']:9.3f}{spread:>20}"
            f"{row['images_per_second']:11.0f}{row['ratio']:8.1f}x"
            f"{number(row.get('launches'), '.0f'):>10}{number(row.get('gpu_ms'), '.3f'):>9}"
            f"{row['first_s']:9.1f}{number(row['memory_mb'], '.0f'):>8}"
        )
    return "\n".join(lines)


def number(value: float | None, form: str) -> str:
    """A number, or a dash where it could not be had."""
    return "–" if value is None else format(value, form)
