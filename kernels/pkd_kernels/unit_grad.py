"""The upstream gradient of a training step: ones, which the fused losses need not multiply by."""

from functools import cache

import torch
from torch import Tensor


@cache
def _ones(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.ones(shape, dtype=dtype, device=device)


def unit_upstream(loss: Tensor) -> Tensor:
    """Ones like the loss, the same tensor at every call: do not write into it.

    The fused losses recognise it and hand out the gradients of their forward pass as they are:

        torch.autograd.grad(losses, parameters, [unit_upstream(loss) for loss in losses])

    Call it once before a CUDA graph is captured, so that the graph does not have to fill it.
    """
    return _ones(loss.shape, loss.dtype, loss.device)


def is_unit(upstream: Tensor) -> bool:
    """Whether this is the tensor that `unit_upstream` gives out, told without reading a value.

    A loss that was scaled or summed before backward gets another tensor, whatever it holds, and
    so does a graph of torch.compile, which cannot know what address it will be called with.
    """
    return not torch.compiler.is_compiling() and upstream is unit_upstream(upstream)
