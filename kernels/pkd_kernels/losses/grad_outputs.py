"""The upstream gradient of a training step: ones that the fused losses recognise."""

from functools import cache

import torch
from torch import Tensor


@cache
def _ones(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.ones(shape, dtype=dtype, device=device)


def unit_grad(loss: Tensor) -> Tensor:
    """Ones shaped like the loss, the same tensor at every call: do not write into it.

    The fused losses recognise this tensor and return the gradients of their forward pass unscaled:

        torch.autograd.grad(losses, parameters, [unit_grad(loss) for loss in losses])

    Call it once before a CUDA graph is captured, so that the graph does not contain the fill.
    """
    return _ones(loss.shape, loss.dtype, loss.device)


def is_unit_grad(grad_output: Tensor) -> bool:
    """Whether this is the tensor that `unit_grad` returns; reads no value on the device.

    A loss that was scaled or summed before backward receives another tensor. So does a graph of
    torch.compile, which cannot depend on the identity of a tensor.
    """
    return not torch.compiler.is_compiling() and grad_output is unit_grad(grad_output)
