"""Stage "machine": GPU, driver, clocks, packages, and the speed of a copy."""

import os
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import distributions

from bench.gpu.facts import Fact
from bench.gpu.tasks import Tasks

QUERY = (
    "name",
    "driver_version",
    "memory.total",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "power.limit",
    "temperature.gpu",
)


def nvidia_smi(*properties: str) -> dict[str, str]:
    """Return properties of the first GPU; empty without the command or a GPU."""
    command = ["nvidia-smi", f"--query-gpu={','.join(properties)}", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    first, *_ = result.stdout.splitlines() or [""]
    return dict(zip(properties, map(str.strip, first.split(",")), strict=False))


def machine(rehearse: bool) -> Tasks:
    """Return the tasks of the stage."""
    return Tasks({"system": _system, "torch": _torch})


def _system(deadline: float) -> Iterator[Fact]:
    """What is known without torch, whose import can take long on a new machine."""
    yield {"nvidia_smi": nvidia_smi(*QUERY)}
    yield {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
    }
    yield {"packages": {d.metadata["Name"]: d.version for d in distributions()}}


def _torch(deadline: float) -> Iterator[Fact]:
    import torch

    from bench.ladder.timing import copy_bandwidth
    from bench.step import environment

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    yield {"environment": environment(device)}
    yield {"copy_gb_per_s": copy_bandwidth(device)}
    if cuda:
        properties = torch.cuda.get_device_properties(device)
        yield {
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "memory_bytes": properties.total_memory,
        }
