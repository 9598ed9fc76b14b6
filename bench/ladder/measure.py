"""Measure the cells of the ladder: check contenders, time them in turn, count their launches.

Each cell runs in its own process with a time limit. A hang therefore costs only a part of the time,
a broken device costs one cell, and the profiler slows down no other cell. A contender that fails
becomes a row with its error.
"""

import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import torch

from bench.ladder.cells import Cell, Settings
from bench.ladder.contenders import BASE, COMPILE, CONTENDERS
from bench.ladder.loops import Contender
from bench.ladder.timing import (
    CHECK_STEPS,
    check,
    count_launches,
    interleaved,
    seconds_per_step,
    statistics,
    steps_for,
    synchronize,
)
from bench.ladder.training_setup import TrainingSetup

OK, FAILED, NOT_RUN = "ok", "failed", "not run"

MAX_FRACTION = 0.6  # of the remaining time for one cell, so that a hang leaves time for others

MIN_SECONDS = 8.0  # a cell is not started with less time

GRACE_S = 2.0  # part of a cell's time in which its process ends by itself

Row = dict[str, Any]


def run(
    cells: Sequence[Cell], settings: Settings, budget: float
) -> Iterator[tuple[Cell, list[Row]]]:
    """Measure all cells within `budget` seconds; yield the rows of each cell when it is done.

    The rows of a cell for which no time is left have the status `NOT_RUN`.
    """
    end = time.time() + budget
    for cell in cells:
        left = end - time.time()
        limit = left if cell is cells[-1] else MAX_FRACTION * left
        yield cell, measure_in_process(cell, settings, time.time() + limit)


def measure_in_process(cell: Cell, settings: Settings, deadline: float) -> list[Row]:
    """Measure a cell in a new process, which is killed at `deadline` (a time.time())."""
    start, names = time.time(), cell.names(settings.device)
    if deadline - start < MIN_SECONDS:
        return [make_row(cell, name, status=NOT_RUN) for name in names]
    # The fork server has imported all modules and initialised no driver: processes start at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receive, send = context.Pipe(duplex=False)
    arguments = (cell, settings, deadline - GRACE_S, send)
    process = context.Process(target=_send_measurement, args=arguments)
    process.start()
    send.close()
    try:
        if receive.poll(deadline - time.time()):
            return receive.recv()
        status, error = NOT_RUN, f"stopped after {deadline - start:.0f} s"
    except EOFError:
        process.join(MIN_SECONDS)
        status, error = FAILED, f"the process ended with exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()
        receive.close()
    return [make_row(cell, name, status=status, error=error) for name in names]


def _send_measurement(cell: Cell, settings: Settings, deadline: float, results: Connection) -> None:
    prepare_process(settings)
    results.send(measure(cell, settings, deadline))


def prepare_process(settings: Settings) -> None:
    """Set threads and precision of a process that measures."""
    torch.set_num_threads(settings.threads)
    torch.backends.cudnn.allow_tf32 = False  # full float32, as `pkd train` computes


class OutOfTime(BaseException):
    """The time limit is reached. A BaseException, so that `except Exception` does not catch it."""


@contextmanager
def time_limit(deadline: float) -> Iterator[None]:
    """Raise OutOfTime inside at `deadline` (a time.time()); in the main thread only."""

    def stop(*_: object) -> None:
        raise OutOfTime

    handler = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(1e-3, deadline - time.time()))
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def measure(cell: Cell, settings: Settings, deadline: float) -> list[Row]:
    """Measure all contenders of a cell.

    Args:
        cell: the cell.
        settings: sizes and device.
        deadline: end of all measurements as a time.time(). The time that the ready contenders need
            for timing is reserved; contenders that are not ready before are left out.

    Returns:
        One row for each contender.
    """
    setup = cell.training_setup(settings)
    rows: dict[str, Row] = {}
    entries: dict[str, Contender] = {}
    steps: dict[str, int] = {}
    for name in cell.names(settings.device):
        start, reserve = time.time(), 2 * (len(entries) + 1) * settings.repeats * settings.seconds
        if start + reserve > deadline:
            rows[name] = make_row(cell, name, status=NOT_RUN)
            continue
        try:
            with time_limit(deadline - reserve):
                contender, values = prepare(setup, name, cell.stack)
                steps[name] = steps_for(contender, settings.seconds, settings.device)
            entries[name], rows[name] = contender, make_row(cell, name, status=OK, **values)
        except OutOfTime:
            error = f"not ready after {time.time() - start:.0f} s"
            rows[name] = make_row(cell, name, status=NOT_RUN, error=error)
        except Exception as error:  # any error: the failure of a peer is a result
            rows[name] = make_row(cell, name, status=FAILED, error=_first_line(error))
    if BASE not in entries:
        rows |= {name: make_row(cell, name, status=NOT_RUN) for name in entries}
        return list(rows.values())
    try:
        times = interleaved(entries, steps, settings.repeats, settings.device)
    except Exception as error:
        failed = {"status": FAILED, "error": _first_line(error)}
        rows |= {name: make_row(cell, name, **failed) for name in entries}
        return list(rows.values())
    for timed in statistics(entries, times):
        rows[timed.pop("name")] |= timed
    for name, contender in entries.items():
        rows[name] |= _launches(name, contender, settings.device, deadline)
    return list(rows.values())


def prepare(setup: TrainingSetup, name: str, stack: int) -> tuple[Contender, Row]:
    """Build a contender and check it.

    Returns:
        The contender, and a row's values: `first_s` (seconds of the first two steps, which compile
        or capture), `memory_mb` (peak memory of the construction and these steps; None on a CPU),
        `disagreement` and `parameters` (trained parameters of one model).
    """
    device, on_gpu = setup.device, setup.device.type == "cuda"
    allocated = 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
    entry = CONTENDERS[name]
    contender = entry.build(setup, setup.members(stack))
    synchronize(device)
    values: Row = {"first_s": CHECK_STEPS * seconds_per_step(contender, CHECK_STEPS, device)}
    peak = (torch.cuda.max_memory_allocated(device) - allocated) / 2**20 if on_gpu else None
    values |= {"memory_mb": peak, "disagreement": check(setup, contender, entry.exact)}
    trained = contender.trained(0).values()
    values["parameters"] = sum(p.numel() for tensors in trained for p in tensors)
    return contender, values


def _launches(name: str, contender: Contender, device: torch.device, deadline: float) -> Row:
    """Counted launches, or why there are none: the times remain valid without them."""
    if device.type != "cuda" and name in COMPILE:  # the count would be that of the eager step
        return {}
    try:
        with time_limit(deadline):
            return count_launches(contender, device)
    except (Exception, OutOfTime) as error:
        return {"uncounted": _first_line(error)}


def make_row(cell: Cell, name: str, **values: Any) -> Row:
    """Return a row that identifies cell and contender, with these values."""
    labels = {"cell": cell.title, "structure": cell.structure, "student": cell.student}
    labels |= {"stack": cell.stack, "contender": name, "peer": CONTENDERS[name].peer}
    return labels | values


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]


def table(rows: Sequence[Row]) -> str:
    """Format the rows of a cell for the terminal."""
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
    """Format a number; a dash if it was not measured."""
    return "–" if value is None else format(value, form)
