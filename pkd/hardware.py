"""The machine: in words, for result files, and what suits it."""

import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

FEW_IMAGES, SMALL_FLOPS = 5, 3e6  # at once, and multiply-adds for one of them


def device_name(device: torch.device) -> str:
    """Name of the GPU, or of the processor with the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


@contextmanager
def without_onednn() -> Iterator[None]:
    """On a CPU PyTorch's own convolutions, which start at once; oneDNN prepares every call anew."""
    mkldnn = torch.backends.mkldnn
    before, mkldnn.enabled = mkldnn.enabled, False
    try:
        yield
    finally:
        mkldnn.enabled = before


def convolutions(images: int, flops: int) -> Callable[[], AbstractContextManager]:
    """The context for a network's convolutions on a CPU.

    oneDNN takes longer to prepare a small convolution than to compute it (rows "oneDNN off" of
    bench/README.md): a few images of a small network, `flops` each, go without it.
    """
    return without_onednn if images <= FEW_IMAGES and flops <= SMALL_FLOPS else nullcontext
