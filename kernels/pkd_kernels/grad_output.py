"""The backward pass of the losses: gradients of the forward kernel times the upstream gradient.

Forward leaves dL_m/dv for every value v of model m in one flat buffer; backward is u_m dL_m/dv, u_m
the gradient that arrives at model m's loss. It is read on the device: comparing it with 1 first
would make the host wait. `unit_upstream` is known to be 1 by being that very tensor: then backward
is the buffer itself.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from pkd_kernels.custom_op import opaque
from pkd_kernels.unit_grad import is_unit

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
def _kernel(
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
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = i < count
    row = tl.where(
        i < first_end,
        i // first_size,
        tl.where(i < second_end, (i - first_end) // second_size, (i - second_end) // third_size),
    )
    b_saved = tl.load(saved_ptr + i, mask=inside, other=0)
    b_upstream = tl.load(upstream_ptr + (row % stack) * stride_u, mask=inside, other=0)
    tl.store(out_ptr + i, b_saved * b_upstream, mask=inside)


def _like_saved(saved, upstream, segments, stack, dtype):
    return torch.empty_like(saved, dtype=dtype)


@opaque(fake=_like_saved)
def scale(
    saved: Tensor, upstream: Tensor, segments: list[int], stack: int, dtype: torch.dtype
) -> Tensor:
    """Multiply every model's saved gradients by its upstream gradient, in one launch.

    Args:
        saved: flat; three segments one behind the other, each of rows whose model is row % M.
        upstream: (M,), of any stride.
        segments: (rows, size of a row) of each segment, six numbers.
        stack: M.
        dtype: of the result.

    Returns:
        Flat, as long as `saved`.
    """
    count = saved.numel()
    if count >= 2**31:
        raise ValueError(f"gradients of {count} elements: the kernel counts to 2**31 - 1")
    out = _like_saved(saved, upstream, segments, stack, dtype)
    rows, sizes = segments[::2], [max(size, 1) for size in segments[1::2]]
    _kernel[(-(-count // BLOCK),)](
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


def save_gradients(
    ctx, grads: Tensor, leaves: Sequence[Tensor], segments: list[int], stack: int
) -> None:
    """Keep for `gradients` the flat gradients of leaves, laid out as `scale` says.

    Views of them are saved too, not made in backward: of a gradient that nobody else holds autograd
    makes the leaf's `grad`, and adds the next one into it. A retained graph has to survive that.
    """
    pieces = grads.split([t.numel() for t in leaves])
    views = (piece.view(t.shape) for piece, t in zip(pieces, leaves, strict=True))
    ctx.save_for_backward(grads, *views)
    ctx.dtypes = [t.dtype for t in leaves]
    ctx.segments, ctx.stack = segments, stack


def gradients(ctx, upstream: Tensor) -> Sequence[Tensor]:
    """Gradients of the leaves, times the upstream gradient, each of its leaf's type.

    `unit_upstream` takes no launch, unless gradients are saved in a wider type than a leaf's.
    """
    saved, *views = ctx.saved_tensors
    if is_unit(upstream) and all(dtype == saved.dtype for dtype in ctx.dtypes):
        return views
    dtype = ctx.dtypes[0] if len(set(ctx.dtypes)) == 1 else saved.dtype
    scaled = scale(saved, upstream, ctx.segments, ctx.stack, dtype)
    pieces = scaled.split([view.numel() for view in views])
    return [
        piece.view(view.shape).to(own)
        for piece, view, own in zip(pieces, views, ctx.dtypes, strict=True)
    ]
