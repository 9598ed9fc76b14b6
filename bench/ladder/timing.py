"""Compare contenders with the plain loop, time them in turn and count their launches."""

import math
import time
from collections.abc import Sequence
from functools import lru_cache
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.ladder.loops import Contender, Plain
from bench.ladder.training_setup import TrainingSetup
from bench.profiling import gpu_events, measured
from pkd.models.stack import Member

CHECK_STEPS = 2

# Limits of `disagreement`. Measured with a frozen teacher: up to 4e-6; with a missing loss term
# 7e-4 and more. With a trained teacher, Adam amplifies the rounding of many tiny gradients: up to
# 5e-3; with a missing loss term 1e-1 and more.
FROZEN_TOLERANCE, LEARNING_TOLERANCE = 3e-4, 3e-2

PROFILED_STEPS = 8

COPIED_BYTES = 2**30


class DisagreementError(Exception):
    """The updates of a contender differ from those of the plain loop."""


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Return all values as one float64 vector, so that the comparison adds no rounding."""
    return torch.cat([t.flatten() for t in tensors]).double()


class PlainUpdate(NamedTuple):
    """A network's parameters in the first steps of the plain loop, as vectors.

    Attributes:
        before: before the steps.
        after: after the steps.
        gradient: root mean square of the gradients; 1 for parameters that are not trained.
    """

    before: Tensor
    after: Tensor
    gradient: Tensor


@lru_cache(maxsize=4)
def plain_updates(setup: TrainingSetup, member: Member) -> dict[str, PlainUpdate]:
    """Return the expected updates of every network that the structure trains."""
    plain = Plain(setup, [member])
    before = {name: flat(tensors) for name, tensors in plain.trained(0).items()}
    plain.advance(CHECK_STEPS)
    state = {p: s for adam in plain.optimizers() for p, s in adam.state.items()}
    squares = {
        name: [
            state[p]["exp_avg_sq"] if p in state else torch.ones_like(p)
            for p in network.parameters()
        ]
        for name, network in plain.networks.items()
    }
    return {
        name: PlainUpdate(before[name], flat(tensors), flat(squares[name]).sqrt())
        for name, tensors in plain.trained(0).items()
    }


def disagreement(setup: TrainingSetup, contender: Contender) -> dict[str, float]:
    """Compare a contender with the plain loop after its first `CHECK_STEPS` steps.

    Adam's first steps have the same length for all gradients, even for a gradient near zero, whose
    sign depends on rounding. The updates u are therefore weighted with the gradients g of the plain
    loop.

    Returns:
        ‖g (u - plain u)‖ / ‖g plain u‖ of the last member, for every trained network.
    """
    index = len(contender.members) - 1
    errors = {}
    for name, plain in plain_updates(setup, contender.members[index]).items():
        error = flat(contender.trained(index)[name]) - plain.after
        update = plain.after - plain.before
        errors[name] = ((plain.gradient * error).norm() / (plain.gradient * update).norm()).item()
    return errors


def check(setup: TrainingSetup, contender: Contender, exact: bool = True) -> float:
    """Return the largest `disagreement` if rounding can explain it.

    Args:
        setup: networks and images of the contender.
        contender: a contender after its first `CHECK_STEPS` steps.
        exact: the contender rounds to float32, not to TF32.

    Raises:
        DisagreementError: the updates differ by more than rounding.
    """
    error = max(disagreement(setup, contender).values())
    strict = exact and not setup.structure.teacher
    if not error < (FROZEN_TOLERANCE if strict else LEARNING_TOLERANCE):
        raise DisagreementError(
            f"updates differ from the plain loop's by {error:.1e} of their size"
        )
    return error


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished; do nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_step(contender: Contender, steps: int, device: torch.device) -> float:
    """Return the wall time per step of `steps` steps, with one synchronisation at the end.

    No work may be pending on the device.
    """
    start = time.perf_counter()
    contender.advance(steps)
    synchronize(device)
    return (time.perf_counter() - start) / steps


def steps_for(contender: Contender, seconds: float, device: torch.device) -> int:
    """Warm up for at least a quarter of `seconds`; return how many steps take about `seconds`."""
    synchronize(device)
    steps, step_seconds = 1, seconds_per_step(contender, 1, device)
    while steps * step_seconds < seconds / 4:
        steps *= 2
        step_seconds = seconds_per_step(contender, steps, device)
    return max(1, round(seconds / step_seconds))


def interleaved(
    entries: dict[str, Contender], steps: dict[str, int], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Return the seconds per step of every contender in every repeat.

    Contenders are timed in turn, so that a disturbance of the machine affects all of them. Each
    repeat begins with another contender.
    """
    times: dict[str, list[float]] = {name: [math.nan] * repeats for name in entries}
    names = list(entries)
    for repeat in range(repeats):
        shift = repeat % len(names)
        for name in names[shift:] + names[:shift]:
            times[name][repeat] = seconds_per_step(entries[name], steps[name], device)
    return times


def statistics(
    entries: dict[str, Contender], times: dict[str, list[float]]
) -> list[dict[str, Any]]:
    """Return one row for each contender.

    `ratio` is the contender's images/s divided by those of the first contender in the same repeat;
    the median over repeats.
    """
    rates = {name: [len(entries[name].members) / t for t in times[name]] for name in entries}
    first = rates[next(iter(rates))]
    return [
        {
            "name": name,
            "models": len(entries[name].members),
            "ms_per_step": [1e3 * t for t in times[name]],
            "ms_per_step_median": 1e3 * median(times[name]),
            "images_per_second": median(rates[name]),
            "ratio": median(rate / base for rate, base in zip(rates[name], first, strict=True)),
        }
        for name in entries
    ]


def count_launches(contender: Contender, device: torch.device) -> dict[str, float | None]:
    """Count the launches of a step and, on a GPU, add up their times.

    On a GPU the profiler counts kernels, copies and fills, including each node of a CUDA graph. On
    a CPU a launch is an operation that computes.

    Returns:
        launches: launches per step; None if the profiler lists none.
        gpu_ms: sum of their times per step; None on a CPU, or if the profiler lists none.
    """
    if device.type != "cuda":
        with measured() as traffic:
            contender.advance(1)
        return {"launches": len(traffic.launches), "gpu_ms": None}
    events = gpu_events(lambda: contender.advance(PROFILED_STEPS))
    if not events:
        return {"launches": None, "gpu_ms": None}
    busy = sum(event.time_range.elapsed_us() for event in events)
    return {
        "launches": len(events) / PROFILED_STEPS,
        "gpu_ms": 1e-3 * busy / PROFILED_STEPS,
    }


def copy_bandwidth(device: torch.device) -> float | None:
    """Return the GB/s that a large copy on a GPU reads plus writes; None on a CPU."""
    if device.type != "cuda":
        return None
    source = torch.empty(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(10):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        stop.record()
        stop.synchronize()
        times.append(1e-3 * start.elapsed_time(stop))
    del source, target
    torch.cuda.empty_cache()  # other processes measure next and need the memory
    return 2e-9 * COPIED_BYTES / median(times)
