"""How contenders are checked, timed in turn, and counted."""

import math
import time
from collections.abc import Sequence
from functools import lru_cache
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.ladder.contenders import Contender, Plain, Problem
from bench.profiling import gpu_events, measured
from pkd.models.stack import Member

CHECK_STEPS = 2

# Of `disagreement`. Seen where the teacher is frozen: up to 4e-6; a missing term 7e-4 and more.
# Where it learns, many tiny gradients are noise to Adam: up to 5e-3; a missing term 1e-1 and more.
FROZEN_TOLERANCE, LEARNING_TOLERANCE = 3e-4, 3e-2

PROFILED_STEPS = 8

COPIED_BYTES = 2**30


class Disagreement(Exception):  # noqa: N818 (it says what was found)
    """A contender does not do the plain loop's work."""


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All values in one vector, of float64 so that nothing is lost in comparing."""
    return torch.cat([t.flatten() for t in tensors]).double()


class PlainUpdate(NamedTuple):
    """Of a network in the plain loop's first steps, its parameters in one vector each."""

    before: Tensor
    after: Tensor
    gradient: Tensor  # root mean square over the steps, 1 where nothing is trained


@lru_cache(maxsize=4)
def plain_updates(problem: Problem, member: Member) -> dict[str, PlainUpdate]:
    """What a contender has to do, for every network that the structure trains."""
    plain = Plain(problem, [member])
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


def disagreement(problem: Problem, contender: Contender) -> dict[str, float]:
    """How far a contender's first `CHECK_STEPS` steps, just made, differ from the plain loop's.

    Adam's first steps are as long for a gradient near zero, whose sign is a matter of rounding, as
    for any other. So updates u are weighted with the gradients g of the plain loop.

    Returns:
        ‖g (u - plain u)‖ / ‖g plain u‖ of the last member, for every network that is trained.
    """
    index = len(contender.members) - 1
    found = {}
    for name, plain in plain_updates(problem, contender.members[index]).items():
        error = flat(contender.trained(index)[name]) - plain.after
        update = plain.after - plain.before
        found[name] = ((plain.gradient * error).norm() / (plain.gradient * update).norm()).item()
    return found


def check(problem: Problem, contender: Contender, exact: bool = True) -> float:
    """The largest `disagreement`, or the exception if it is no rounding.

    Args:
        exact: it is rounding of float32, not that of TF32.
    """
    found = max(disagreement(problem, contender).values())
    strict = exact and not problem.structure.teacher
    if not found < (FROZEN_TOLERANCE if strict else LEARNING_TOLERANCE):
        raise Disagreement(f"updates differ from the plain loop's by {found:.1e} of their size")
    return found


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_step(contender: Contender, steps: int, device: torch.device) -> float:
    """Wall time of `steps` steps, with one synchronisation; none may be pending."""
    start = time.perf_counter()
    contender.advance(steps)
    synchronize(device)
    return (time.perf_counter() - start) / steps


def steps_for(contender: Contender, seconds: float, device: torch.device) -> int:
    """Warm up for a quarter of `seconds` or more, and find how many steps take about as long."""
    synchronize(device)
    steps, pace = 1, seconds_per_step(contender, 1, device)
    while steps * pace < seconds / 4:
        steps *= 2
        pace = seconds_per_step(contender, steps, device)
    return max(1, round(seconds / pace))


def interleaved(
    entries: dict[str, Contender], steps: dict[str, int], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds per step of every contender in every repeat; each repeat begins with another."""
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
    """One row a contender.

    `ratio` is the median over repeats of its images/s by those of the first contender in the same
    repeat.
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


def counted(contender: Contender, device: torch.device) -> dict[str, float | None]:
    """Launches of a step, and on a GPU the time it spends in them.

    On a GPU both are the profiler's: kernels, copies and fills, those inside a CUDA graph one by
    one. Elsewhere they are operations that compute.

    Returns:
        launches: a step; None where the profiler sees none.
        gpu_ms: the sum of their times a step; None without a GPU, or as above.
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
    """GB/s that a large copy reads and writes on a GPU, together; None elsewhere."""
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
    torch.cuda.empty_cache()  # the memory is for what is measured next, in other processes
    return 2e-9 * COPIED_BYTES / median(times)
