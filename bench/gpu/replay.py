"""Stage "replay": every node of the training step's CUDA graph, and the floor of its launches.

The profiler reports the start, duration and grid of each node. The gap of a node is the time
between the end of the node before and its start. The floor is a graph of as many empty kernels.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
import triton

from bench.gpu.facts import Fact
from bench.gpu.steps import settings_and_cells
from bench.gpu.tasks import Tasks
from bench.ladder.cells import Cell, Settings
from bench.ladder.loops import Pkd
from bench.ladder.measure import prepare_process
from bench.ladder.timing import CHECK_STEPS, seconds_per_step, synchronize
from bench.profiling import measured
from pkd.training import cuda_graph

REPLAYS = 8
FLOOR_CALLS = 20
GPU_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")

Event = dict[str, Any]


@triton.jit
def empty_kernel(pointer):
    """Do nothing."""


def replay(rehearse: bool) -> Tasks:
    """Return one task for each headline cell."""
    settings, cells = settings_and_cells(rehearse)
    return Tasks({cell.title: partial(_profile, cell, settings) for cell in cells})


def _profile(cell: Cell, settings: Settings, deadline: float) -> Iterator[Fact]:
    """Time first: the profiler can slow down its process."""
    prepare_process(settings)
    device, setup = settings.device, cell.training_setup(settings)
    contender = Pkd(setup, setup.members(cell.stack), graph=True)
    contender.advance(CHECK_STEPS)
    seconds = [seconds_per_step(contender, REPLAYS, device) for _ in range(settings.repeats)]
    yield {"cell": cell.title, "replay_us": 1e6 * median(seconds)}
    trainer = contender.trainer
    trainer.counter.zero_()  # the first step of an epoch: an epoch has few images
    with measured() as traffic:
        trainer.step()
    launches = len(traffic.launches)
    floor_us = 1e6 * floor_seconds(launches, device)
    yield {"cell": cell.title, "launches": launches, "floor_us": floor_us}
    trainer.counter.zero_()
    events = profiled([trainer.advance] * REPLAYS, device)
    try:
        rows = nodes(events, REPLAYS)
    except ValueError:
        keys = ("name", "ts", "dur")
        yield {"cell": cell.title, "events": [{k: event[k] for k in keys} for event in events]}
        raise
    yield {"cell": cell.title, "nodes": rows}


def floor_seconds(launches: int, device: torch.device) -> float:
    """Return the time of a graph of that many empty kernels."""
    tensor = torch.zeros(1, device=device)

    def launch_all() -> None:
        for _ in range(launches):
            empty_kernel[(1,)](tensor)

    call = cuda_graph.capture_call(launch_all)
    return seconds_per_call(call, FLOOR_CALLS if device.type == "cuda" else 1, device)


def seconds_per_call(call: Callable[[], object], calls: int, device: torch.device) -> float:
    """Return the wall time per call, after a first call."""
    clock = _Calls(call)
    seconds_per_step(clock, 1, device)
    return seconds_per_step(clock, calls, device)


class _Calls:
    """A call as a contender of `bench.ladder.timing`."""

    def __init__(self, call: Callable[[], object]):
        self.call = call

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            self.call()


def profiled(calls: Sequence[Callable[[], object]], device: torch.device) -> list[Event]:
    """Profile the calls; return their GPU events (on a CPU: its operations) in order of start."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        for call in calls:
            call()
        synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    categories = GPU_CATEGORIES if device.type == "cuda" else ("cpu_op",)
    return sorted((e for e in events if e.get("cat") in categories), key=lambda e: e["ts"])


def nodes(events: Sequence[Event], replays: int) -> list[Fact]:
    """Return one row for each node of a graph, with medians over its replays.

    Args:
        events: the events of all replays, in order of start.
        replays: number of replays.

    Raises:
        ValueError: the replays do not have equally many events of equal names.
    """
    count, rest = divmod(len(events), replays)
    names = [event["name"] for event in events]
    if not count or rest or names != names[:count] * replays:
        raise ValueError(f"{len(events)} events are not {replays} equal replays")
    gaps = [None, *(b["ts"] - a["ts"] - a["dur"] for a, b in pairwise(events))]
    return [
        _node(events[i::count], [gap for gap in gaps[i::count] if gap is not None])
        for i in range(count)
    ]


def _node(events: Sequence[Event], gaps: Sequence[float]) -> Fact:
    arguments = events[0].get("args", {})
    return {
        "name": events[0]["name"],
        "us": round(median(event["dur"] for event in events), 3),
        "gap_us": round(median(gaps), 3),
        "grid": arguments.get("grid"),
        "block": arguments.get("block"),
        "registers": arguments.get("registers per thread"),
        "shared_bytes": arguments.get("shared memory"),
    }
