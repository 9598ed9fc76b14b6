"""Which path an op takes: Triton on CUDA, `reference` elsewhere.

PKD_BACKEND=triton or PKD_BACKEND=reference overrides that. Triton takes CPU tensors only through
its interpreter (TRITON_INTERPRET=1 with PKD_BACKEND=triton), which is for tests.
"""

import os
from collections.abc import Callable
from functools import wraps
from importlib import import_module

import torch
from torch import Tensor

from pkd_kernels import reference

try:
    import triton
except ImportError:
    triton = None

BACKEND = os.environ.get("PKD_BACKEND", "")
INTERPRETED = triton is not None and triton.knobs.runtime.interpret


def uses_triton(tensor: Tensor) -> bool:
    """Whether an op on this tensor runs in Triton.

    Raises:
        RuntimeError: PKD_BACKEND asks for what this machine or this tensor cannot do, or the
            tensor is on a GPU that is not the current one.
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


def _dispatched(name: str, module: str = "") -> Callable:
    definition = getattr(reference, name)
    # The module is loaded now: later its name would replace the op's in the package.
    kernel = getattr(import_module(f"pkd_kernels.{module or name}"), name) if triton else None

    @wraps(definition)
    def op(*args, **kwargs):
        tensor = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        if tensor is None:
            raise TypeError(f"{name} takes tensors, and got none")
        return (kernel if uses_triton(tensor) else definition)(*args, **kwargs)

    return op


generator_loss = _dispatched("generator_loss")
discriminator_loss = _dispatched("discriminator_loss")
novelty_score = _dispatched("novelty_score")
adam_step = _dispatched("adam_step")
conv_chain = _dispatched("conv_chain")
conv_chain_pair = _dispatched("conv_chain_pair", "conv_chain")
conv_norm_act = _dispatched("conv_norm_act", "conv_chain")
gather = _dispatched("gather")
record_step = _dispatched("record_step")
