"""Backward pass of the losses: gradients of the forward kernel times the upstream gradient.

The forward kernel writes dL_m/dv for every value v of model m to one flat buffer. Backward is
u_m dL_m/dv, with u_m the gradient of model m's loss. u_m is read on the device: a comparison with 1
would make the host wait. `unit_grad` is recognised by its identity: then backward returns the
buffer itself.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pkd_kernels.losses.grad_outputs import is_unit_grad
from pkd_kernels.operators import custom_operator

BLOCK, NUM_WARPS = 1024, 4


@triton.jit(
    do_not_specialize=[
        "first_end",
        "second_end",
        "first_size",
        "second_size",
        "third_size",
        "stack",
        "stride_u",
    ]
)
def scale_gradients_kernel(
    saved_ptr,
    upstream_ptr,
    out_ptr,
    count,
    first_end,
    second_end,
    first_size,
    second_size,
    third_size,
    stack,
    stride_u,
    BLOCK: tl.constexpr,
):
    """Multiply by the upstream gradient of the element's model, which follows from its offset."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    mask = i < count
    row = tl.where(
        i < first_end,
        i // first_size,
        tl.where(i < second_end, (i - first_end) // second_size, (i - second_end) // third_size),
    )
    b_saved = tl.load(saved_ptr + i, mask=mask, other=0)
    b_upstream = tl.load(upstream_ptr + (row % stack) * stride_u, mask=mask, other=0)
    tl.store(out_ptr + i, b_saved * b_upstream, mask=mask)


def _empty_outputs(
    saved: Tensor, upstream: Tensor, segments: list[int], stack: int, dtype: torch.dtype
) -> Tensor:
    return torch.empty_like(saved, dtype=dtype)


@custom_operator("scale_gradients", fake=_empty_outputs)
def scale_gradients(
    saved: Tensor, upstream: Tensor, segments: list[int], stack: int, dtype: torch.dtype
) -> Tensor:
    """Multiply every model's saved gradients by its upstream gradient, in one launch.

    Args:
        saved: flat; three consecutive segments of rows, where row r belongs to model r % M.
        upstream: (M,), of any stride.
        segments: (rows, elements of a row) of each segment, six numbers.
        stack: M.
        dtype: of the result.

    Returns:
        Flat, as long as `saved`.

    Raises:
        ValueError: `saved` has 2**31 elements or more.
    """
    count = saved.numel()
    if count >= 2**31:
        raise ValueError(f"{count} gradients: at most {2**31 - 1} elements are supported")
    out = _empty_outputs(saved, upstream, segments, stack, dtype)
    rows, sizes = segments[::2], [max(size, 1) for size in segments[1::2]]
    scale_gradients_kernel[(-(-count // BLOCK),)](
        saved,
        upstream,
        out,
        count,
        rows[0] * segments[1],
        rows[0] * segments[1] + rows[1] * segments[3],
        *sizes,
        stack,
        upstream.stride(0),
        BLOCK=BLOCK,
        num_warps=NUM_WARPS,
        enable_fp_fusion=True,
    )
    return out


class LossGradients(NamedTuple):
    """Gradients of one loss, as its forward kernel writes them.

    Attributes:
        flat: gradients of the leaves, one after the other.
        leaves: inputs that are differentiated.
        segments: layout of `flat`, see `scale_gradients`.
    """

    flat: Tensor
    leaves: Sequence[Tensor]
    segments: list[int]


def save_gradients(ctx: Any, losses: Sequence[LossGradients], stack: int) -> None:
    """Keep the gradients of some losses for `scaled_gradients`.

    Their views are saved too, not created in backward: autograd uses a gradient that nothing else
    references as the leaf's `grad` and adds the next one in place, which would corrupt the buffer
    of a retained graph.

    Args:
        ctx: of the autograd function.
        losses: of the autograd function, in the order of its outputs.
        stack: M.
    """
    tensors: list[Tensor] = []
    for loss in losses:
        pieces = loss.flat.split([t.numel() for t in loss.leaves])
        views = (piece.view(t.shape) for piece, t in zip(pieces, loss.leaves, strict=True))
        tensors += [loss.flat, *views]
    ctx.save_for_backward(*tensors)
    ctx.layouts = [([t.dtype for t in loss.leaves], loss.segments) for loss in losses]
    ctx.stack = stack


def scaled_gradients(ctx: Any, upstreams: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients of all losses' leaves, each loss's times its upstream gradient, in the leaf's type.

    `unit_grad` needs no launch, unless gradients are saved in a wider type than a leaf's. The
    leaves of a loss without an upstream gradient have none.
    """
    tensors = list(ctx.saved_tensors)
    grads: list[Tensor | None] = []
    for (dtypes, segments), upstream in zip(ctx.layouts, upstreams, strict=True):
        saved, *views = (tensors.pop(0) for _ in range(1 + len(dtypes)))
        if upstream is None:
            grads += [None] * len(views)
        else:
            grads += _scaled(saved, views, upstream, dtypes, segments, ctx.stack)
    return grads


def _scaled(
    saved: Tensor,
    views: Sequence[Tensor],
    upstream: Tensor,
    dtypes: Sequence[torch.dtype],
    segments: list[int],
    stack: int,
) -> Sequence[Tensor]:
    if is_unit_grad(upstream) and all(dtype == saved.dtype for dtype in dtypes):
        return views
    dtype = dtypes[0] if len(set(dtypes)) == 1 else saved.dtype
    scaled = scale_gradients(saved, upstream, segments, stack, dtype)
    pieces = scaled.split([view.numel() for view in views])
    return [
        piece.view(view.shape).to(leaf_dtype)
        for piece, view, leaf_dtype in zip(pieces, views, dtypes, strict=True)
    ]
