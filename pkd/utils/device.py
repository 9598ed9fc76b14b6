"""The machine: in words, for result files, and what suits it."""

import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
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


def convolutions(images: int, flops: float) -> Callable[[], AbstractContextManager]:
    """The context for a network's convolutions on a CPU.

    oneDNN takes longer to prepare a small convolution than to compute it (rows "oneDNN off" of
    bench/README.md): a few images of a small network, `flops` each, go without it.
    """
    return without_onednn if images <= FEW_IMAGES and flops <= SMALL_FLOPS else nullcontext


def in_tf32(name: str, device: torch.device) -> bool:
    """Whether the precision of this name is TF32, and the device has it: no CPU has."""
    return name == "tf32" and device.type == "cuda" and torch.cuda.is_tf32_supported()


def precision(name: str, device: torch.device) -> AbstractContextManager:
    """The context for float32 on a device; a CPU, and what it computes, is left as it is.

    Args:
        name: "float32": products on a GPU are in full, whatever was chosen outside; or "tf32":
            their factors are rounded to 10 bits of mantissa, on GPUs that can do so.
    """
    return _products(in_tf32(name, device)) if device.type == "cuda" else nullcontext()


@contextmanager
def _products(tf32: bool) -> Iterator[None]:
    """Set PyTorch's switches for matrix products and convolutions, then put back what was there.

    The newer switches, by library, are what libraries and pkd_kernels follow; the older ones set
    them, and cannot be read where a newer one contradicts them.
    """
    cudnn, matmul, convolution = torch.backends.cudnn, None, None
    newer = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul, cudnn.conv, cudnn.rnn)
    before = [switch.fp32_precision for switch in newer]
    with suppress(RuntimeError):
        matmul = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        convolution = cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        cudnn.allow_tf32 = tf32
        cudnn.conv.fp32_precision = "tf32" if tf32 else "ieee"
        yield
    finally:
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        if convolution is not None:
            cudnn.allow_tf32 = convolution
        for switch, value in zip(newer, before, strict=True):
            switch.fp32_precision = value
