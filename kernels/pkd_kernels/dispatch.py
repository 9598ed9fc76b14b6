"""The public ops: each runs as a Triton kernel on CUDA tensors and as its definition elsewhere.

The environment variable PKD_BACKEND=triton or PKD_BACKEND=reference, read at import, overrides the
choice. CPU tensors run in Triton only through its interpreter (TRITON_INTERPRET=1 with
PKD_BACKEND=triton), for tests.
"""

import os
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from pkd_kernels import reference

try:
    import triton
except ImportError:
    triton = None

P = ParamSpec("P")
R = TypeVar("R")

BACKEND = os.environ.get("PKD_BACKEND", "")
INTERPRETED = triton is not None and triton.knobs.runtime.interpret


def uses_triton(tensor: Tensor) -> bool:
    """Whether an op on this tensor runs in Triton.

    Raises:
        RuntimeError: PKD_BACKEND is invalid or requires Triton where it cannot run, or the tensor
            is on a GPU other than the current one.
    """
    if BACKEND == "reference" or (BACKEND == "" and (triton is None or not tensor.is_cuda)):
        return False
    if BACKEND not in ("", "triton"):
        raise RuntimeError(f"PKD_BACKEND must be 'triton' or 'reference', not {BACKEND!r}")
    if triton is None:
        raise RuntimeError("PKD_BACKEND=triton, but triton is not installed")
    if not (tensor.is_cuda or INTERPRETED):
        raise RuntimeError(
            f"PKD_BACKEND=triton, but the tensors are on {tensor.device}: Triton needs CUDA, "
            "or its interpreter (TRITON_INTERPRET=1)"
        )
    if (
        tensor.is_cuda
        and not torch.compiler.is_compiling()
        and tensor.device.index != torch.cuda.current_device()
    ):
        raise RuntimeError(
            f"the tensors are on {tensor.device}, but the current device is "
            f"{torch.cuda.current_device()}: call the op under torch.cuda.device(tensor.device)"
        )
    return True


def _dispatched(definition: Callable[P, R], module: str) -> Callable[P, R]:
    """The op of this definition: its kernel in `pkd_kernels.<module>`, or the definition itself."""
    name = definition.__name__
    kernel = getattr(import_module(f"pkd_kernels.{module}"), name) if triton else definition

    @wraps(definition)
    def op(*args: P.args, **kwargs: P.kwargs) -> R:
        tensor = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        if tensor is None:
            raise TypeError(f"{name} requires tensors, but received none")
        return (kernel if uses_triton(tensor) else definition)(*args, **kwargs)

    return op


generator_loss = _dispatched(reference.generator_loss, "losses.generator")
discriminator_loss = _dispatched(reference.discriminator_loss, "losses.discriminator")
novelty_parts = _dispatched(reference.novelty_parts, "novelty")
novelty_score = _dispatched(reference.novelty_score, "novelty")
adam_prepare = _dispatched(reference.adam_prepare, "adam")
adam_step = _dispatched(reference.adam_step, "adam")
conv_chain = _dispatched(reference.conv_chain, "conv.autograd")
conv_norm_act = _dispatched(reference.conv_norm_act, "conv.autograd")
gan_losses = _dispatched(reference.gan_losses, "losses.gan")
gan_pass = _dispatched(reference.gan_pass, "conv.gan")
gather = _dispatched(reference.gather, "indexing")
record_step = _dispatched(reference.record_step, "history")
