"""Devices: their names, and contexts for convolutions and float32 precision."""

import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch

# Below these sizes PyTorch's own convolutions are faster than oneDNN's: images per call, and
# multiply-adds per image.
FEW_IMAGES, SMALL_FLOPS = 5, 3e6


def device_name(device: torch.device) -> str:
    """Name of the GPU, or of the processor with the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


@contextmanager
def without_onednn() -> Iterator[None]:
    """Context with PyTorch's own convolutions on a CPU; oneDNN has a set-up cost in every call."""
    mkldnn: Any = torch.backends.mkldnn
    before, mkldnn.enabled = mkldnn.enabled, False
    try:
        yield
    finally:
        mkldnn.enabled = before


def convolutions(images: int, flops: float) -> Callable[[], AbstractContextManager[None]]:
    """Context for a network's convolutions on a CPU: without oneDNN if they are few and small.

    oneDNN takes longer to prepare a small convolution than to compute it (rows "oneDNN off" of
    bench/README.md).

    Args:
        images: images per call.
        flops: multiply-adds per image.
    """
    return without_onednn if images <= FEW_IMAGES and flops <= SMALL_FLOPS else nullcontext


def in_tf32(name: str, device: torch.device) -> bool:
    """Whether `name` is "tf32" and the device supports TF32; no CPU does."""
    return name == "tf32" and device.type == "cuda" and torch.cuda.is_tf32_supported()


def precision(name: str, device: torch.device) -> AbstractContextManager[None]:
    """Context with the precision of float32 products on a GPU. On a CPU it changes nothing.

    Args:
        name: "float32" computes products in full precision; "tf32" rounds their factors to 10 bits
            of mantissa, on GPUs that support it.
        device: device of the computation.
    """
    return _products(in_tf32(name, device)) if device.type == "cuda" else nullcontext()


@contextmanager
def _products(tf32: bool) -> Iterator[None]:
    """Set PyTorch's switches for matrix products and convolutions, and restore them at the end.

    Libraries and pkd_kernels follow the newer switches, one per library. The older switches set the
    newer ones, and raise RuntimeError when they are read while the newer ones disagree.
    """
    backends: Any = torch.backends
    cudnn, matmul, convolution = backends.cudnn, None, None
    newer = (backends.cuda.matmul, backends.mkldnn.matmul, cudnn.conv, cudnn.rnn)
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
