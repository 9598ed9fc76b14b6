"""Stages that check and time training steps: "check", "headline", "compile" and "ladder"."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from bench.gpu import rehearsal
from bench.gpu.facts import Fact
from bench.gpu.tasks import Tasks
from bench.ladder import measure
from bench.ladder.cells import LARGE, SMALL, Cell, Settings, plan
from bench.ladder.contenders import BASE

GRAPH = "pkd, one graph"
HEADLINE = (BASE, "plain graph", "plain graph, teacher cached", GRAPH)
# In order of importance: a stage that runs out of time loses the last ones.
CELLS = (
    Cell("KDGAN-2", LARGE, 1, HEADLINE),
    Cell("KDGAN-2", LARGE, 30, HEADLINE),
    Cell("KDGAN-2", SMALL, 128, HEADLINE),
    Cell("teacher", LARGE, 1, HEADLINE),
    Cell("teacher", LARGE, 10, HEADLINE),
)
MODES = ("torch.compile, max-autotune", "torch.compile, reduce-overhead")


def settings_and_cells(rehearse: bool, interpret: bool = False) -> tuple[Settings, Sequence[Cell]]:
    """Return the sizes and the headline cells.

    Args:
        rehearse: tiny sizes on a CPU.
        interpret: a rehearsal runs the kernels in the interpreter, not their definitions.
    """
    if rehearse:
        rehearsal.install(interpret)
        cells = rehearsal.INTERPRETED if interpret else rehearsal.CELLS
        return rehearsal.SETTINGS, [Cell(*sizes, HEADLINE) for sizes in cells]
    return Settings(torch.device("cuda")), CELLS


def check(rehearse: bool) -> Tasks:
    """Compare eager steps with the plain loop; this also fills Triton's cache."""
    settings, cells = settings_and_cells(rehearse, interpret=True)
    tasks = {cell.title: partial(_check, cell, settings) for cell in cells}
    return Tasks(tasks, processes=1 if rehearse else len(tasks))


def _check(cell: Cell, settings: Settings, deadline: float) -> Iterator[Fact]:
    measure.prepare_process(settings)
    _, values = measure.prepare(cell.training_setup(settings), "pkd, eager", cell.stack)
    yield {"cell": cell.title} | values


def headline(rehearse: bool) -> Tasks:
    """Time the plain loop, the plain graphs and pkd's graph."""
    settings, cells = settings_and_cells(rehearse)
    return _timed(cells, settings)


def compiled(rehearse: bool) -> Tasks:
    """Time torch.compile, one mode after the other: nothing else uses the GPU."""
    settings, cells = settings_and_cells(rehearse)
    one = next(cell for cell in cells if cell.stack == 1)
    modes = MODES[:1] if rehearse else MODES
    return _timed([replace(one, contenders=(BASE, GRAPH, mode)) for mode in modes], settings)


def ladder(rehearse: bool) -> Tasks:
    """Time all contenders of all cells; those with targets come first."""
    settings, _ = settings_and_cells(rehearse)
    return _timed(rehearsal.LADDER if rehearse else plan(settings.device), settings)


def _timed(cells: Sequence[Cell], settings: Settings) -> Tasks:
    return Tasks({cell.title: partial(_measure, cell, settings) for cell in cells})


def _measure(cell: Cell, settings: Settings, deadline: float) -> Iterator[Fact]:
    measure.prepare_process(settings)
    rows = measure.measure(cell, settings, deadline)
    print(f"\n{cell.title}\n{measure.table(rows)}", flush=True)
    yield from rows
    if any(row["status"] == measure.NOT_RUN for row in rows):
        raise TimeoutError("not all contenders are timed")
