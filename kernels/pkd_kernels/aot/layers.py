"""A table of the launches of layers in a training step: programs, loop trips, estimated cycles.

The estimate counts what a single program waits for: each trip of a loop over products is a round of
address arithmetic, loads and multiplications that the next trip follows, and programs beyond those
that the multiprocessors hold at once wait for a place. It is arithmetic, not a measurement.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton

from pkd_kernels.aot.launches import step_on_meta_tensors
from pkd_kernels.conv import gan
from pkd_kernels.conv.backward import MapProblem, SumProblem, WeightProblem
from pkd_kernels.conv.tiling import tap_terms

# (widths, M) of the headline models: the narrowest student, the widest, a stack, the teacher.
MODELS = (((1, 2, 4), 1), ((8, 16, 64), 1), ((8, 16, 64), 30), ((64, 128, 256), 1))
MULTIPROCESSORS, WARPS = 132, 64  # of an H200, and warps of one of them
LATENCY = 800  # cycles of a trip: addresses, loads from the L2 cache, their use
INSTRUCTIONS = 12  # of a product: its share of two loads, masks, addresses, one multiplication
LANES = 128  # instructions of single threads that a multiprocessor issues in a cycle


class LaunchEstimate(NamedTuple):
    """One launch of layers.

    Attributes:
        direction: "forward" or "backward".
        problems: that it solves.
        programs: of all problems.
        trips: of the longest loop of a program.
        cycles: estimated, of the launch.
    """

    direction: str
    problems: int
    programs: int
    trips: int
    cycles: int


def launches(widths: tuple[int, int, int], stack: int) -> list[LaunchEstimate]:
    """The launches of layers in a step of a GAN at batch size 1, in order."""
    found: list[LaunchEstimate] = []

    def record(direction: str) -> Any:
        def launch(problems: Sequence[Any], stack: int) -> None:
            found.append(_estimate(direction, problems, stack))

        return launch

    with (
        mock.patch.object(gan, "launch_layers", record("forward")),
        mock.patch.object(gan, "launch_gradients", record("backward")),
    ):
        step_on_meta_tensors(torch.float32, widths, stack)
    return found


def _estimate(direction: str, problems: Sequence[Any], stack: int) -> LaunchEstimate:
    shares = [_programs_and_trips(problem, stack) for problem in problems]
    programs, trips = sum(p for p, _, _ in shares), max(t for _, t, _ in shares)
    warps = max([p.tiling.warps for p in problems if not isinstance(p, SumProblem)], default=1)
    waves = triton.cdiv(programs, MULTIPROCESSORS * (WARPS // warps))
    slowest = max(t * (LATENCY + elements * INSTRUCTIONS / LANES) for _, t, elements in shares)
    return LaunchEstimate(direction, len(problems), programs, trips, round(waves * slowest))


def _programs_and_trips(problem: Any, stack: int) -> tuple[int, int, int]:
    """Programs of a problem, trips of each, and products of a trip."""
    if isinstance(problem, SumProblem):
        return 1, problem.images, 128
    tiling = problem.tiling
    if isinstance(problem, WeightProblem):
        side = problem.geometry.side
        terms = 1 if side == 1 else tiling.terms
        trips = triton.cdiv(problem.images * side * side, terms)
        return stack * tiling.programs, trips, tiling.rows * tiling.columns * terms
    images = problem.images if isinstance(problem, MapProblem) else len(problem.pointers.y)
    elements = tiling.channels * tiling.pixels
    if not problem.arguments:
        return images * stack * tiling.programs, 1, elements
    up, side, inputs = problem.arguments[:3]
    trips = triton.cdiv(tap_terms(up, side, inputs), tiling.products)
    readers = len(problem.pointers.dc) if isinstance(problem, MapProblem) else 1
    return images * stack * tiling.programs, trips * readers, elements * tiling.products


def table() -> str:
    """Format the launches of all models."""
    lines = [
        f"{'layers of a step':18} {'M':>3} {'launch':>11} {'problems':>8} {'programs':>8} "
        f"{'trips':>6} {'cycles':>8}"
    ]
    for widths, stack in MODELS:
        rows = launches(widths, stack)
        name = "-".join(map(str, widths))
        for number, row in enumerate(rows):
            launch = f"{row.direction[:8]} {number % (len(rows) // 2) + 1}"
            lines.append(
                f"{name:18} {stack:3} {launch:>11} {row.problems:8} {row.programs:8} "
                f"{row.trips:6} {row.cycles:8,}"
            )
        total = sum(row.cycles for row in rows)
        lines.append(f"{name:18} {stack:3} {'all':>11} {'':8} {'':8} {'':6} {total:8,}")
    return "\n".join(lines)
