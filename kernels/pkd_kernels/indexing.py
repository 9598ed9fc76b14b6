"""Gather the inputs of a training step by the step number on the device, in one launch.

One program owns block p of image n of model m, in every source:

    r = first_m + order[step, n, m]        out[n, m] = rows[r], or rows[r] / 127.5 - 1 of uint8

All sources are loaded by the same program, so the loads of a model's images and of its teacher's
outputs overlap. A step after the last one, as a replay of a CUDA graph too many would take, reads
the last. The kernel does not check that a row exists: that would make the host wait.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from pkd_kernels.operators import custom_operator

SOURCES = 4  # at most
BLOCK, NUM_WARPS = 512, 4


@triton.jit
def _scale_pixels(b_image, dtype: tl.constexpr):
    """uint8 [0, 255] to [-1, 1]."""
    # IEEE division, as PyTorch on a CPU: the operator / is not correctly rounded in float32.
    if dtype == tl.float64:
        b_scaled = b_image.to(tl.float64) / 127.5
    else:
        b_scaled = tl.div_rn(b_image.to(tl.float32), 127.5)
    return b_scaled - 1


@triton.jit
def _copy(rows_ptr, first_ptr, out_ptr, size, local, m, row, i):
    """Copy elements i of one row of one source."""
    r = tl.load(first_ptr + m) + local
    b_row = tl.load(rows_ptr + r * size + i, mask=i < size, other=0)  # [BLOCK]
    if rows_ptr.dtype.element_ty == tl.uint8:
        b_row = _scale_pixels(b_row, out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * size + i, b_row, mask=i < size)


@triton.jit(do_not_specialize=["stack", "length"])
def gather_kernel(
    rows0_ptr,
    rows1_ptr,
    rows2_ptr,
    rows3_ptr,
    first0_ptr,
    first1_ptr,
    first2_ptr,
    first3_ptr,
    out0_ptr,
    out1_ptr,
    out2_ptr,
    out3_ptr,
    size0,
    size1,
    size2,
    size3,
    order_ptr,
    step_ptr,
    stack,
    length,
    BLOCK: tl.constexpr,
):
    """Copy one block of one row of every source; a source of size 0 is masked off."""
    row = tl.program_id(0).to(tl.int64)  # image n of model m is row n * M + m
    m = tl.program_id(0) % stack
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    step = tl.minimum(tl.load(step_ptr), length - 1)
    local = tl.load(order_ptr + step * tl.num_programs(0) + row)
    _copy(rows0_ptr, first0_ptr, out0_ptr, size0, local, m, row, i)
    _copy(rows1_ptr, first1_ptr, out1_ptr, size1, local, m, row, i)
    _copy(rows2_ptr, first2_ptr, out2_ptr, size2, local, m, row, i)
    _copy(rows3_ptr, first3_ptr, out3_ptr, size3, local, m, row, i)


def _empty_outputs(
    rows: list[Tensor],
    firsts: list[Tensor],
    order: Tensor,
    step: Tensor,
    image_dtype: torch.dtype,
) -> list[Tensor]:
    _, n, m = order.shape
    return [
        torch.empty(
            (n, m * t.shape[1], *t.shape[2:]),
            dtype=image_dtype if t.dtype == torch.uint8 else t.dtype,
            device=t.device,
        )
        for t in rows
    ]


@custom_operator("gather", fake=_empty_outputs)
def launch(
    rows: list[Tensor],
    firsts: list[Tensor],
    order: Tensor,
    step: Tensor,
    image_dtype: torch.dtype,
) -> list[Tensor]:
    """(N, M*C, ...) for each source; images in `image_dtype`."""
    outputs = _empty_outputs(rows, firsts, order, step, image_dtype)
    _, n, m = order.shape
    sizes = [t.shape[1:].numel() for t in rows]
    absent = SOURCES - len(rows)  # of size 0, with any valid pointer
    gather_kernel[(n * m, -(-max(sizes) // BLOCK))](
        *rows,
        *rows[:1] * absent,
        *firsts,
        *firsts[:1] * absent,
        *outputs,
        *outputs[:1] * absent,
        *sizes,
        *(0,) * absent,
        order,
        step,
        m,
        len(order),
        BLOCK=BLOCK,
        num_warps=NUM_WARPS,
        enable_fp_fusion=True,
    )
    return outputs


def _check(sources: Sequence[tuple[Tensor, Tensor]], order: Tensor, step: Tensor) -> None:
    if not 1 <= len(sources) <= SOURCES:
        raise ValueError(f"gather takes 1 to {SOURCES} sources, not {len(sources)}")
    if order.dim() != 3 or step.shape != (1,):
        shapes = tuple(order.shape), tuple(step.shape)
        raise ValueError(f"order and step have shapes {shapes}, not (steps, N, M) and (1,)")
    for rows, first in sources:
        if first.shape != order.shape[2:]:
            raise ValueError(f"first has shape {tuple(first.shape)}, not ({order.shape[2]},)")
        if rows.dim() < 2 or not rows.is_contiguous():
            raise ValueError(
                "rows must be (R, C, ...) and contiguous: the kernel reads them in place"
            )
    indices = order, step, *(first for _, first in sources)
    if any(t.dtype != torch.int64 or not t.is_contiguous() for t in indices):
        raise ValueError("order, step and first must be int64 and contiguous")


def gather(
    sources: Sequence[tuple[Tensor, Tensor]], order: Tensor, step: Tensor
) -> tuple[Tensor, ...]:
    """`reference.gather` of up to four sources in one launch; does not check that a row exists.

    Raises:
        ValueError: a tensor is not contiguous, or has another shape or type than required.
    """
    _check(sources, order, step)
    rows, firsts = (list(tensors) for tensors in zip(*sources, strict=True))
    return tuple(launch(rows, firsts, order, step, torch.get_default_dtype()))
