"""The novelty score, mean square of z1 - z2, for each image and model.

One program owns `ROWS` rows; a row is the D latents of one image of one model:

    s = Σ (z1 - z2)² / D        ds/dz1 = 2 (z1 - z2) / D = -ds/dz2

Scoring needs no gradient, so the forward kernel computes none; backward uses PyTorch's operations.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pkd_kernels.operators import custom_operator, once_differentiable
from pkd_kernels.reference import accumulator, check_pair

ROWS, BLOCK, NUM_WARPS = 4, 256, 4


@triton.jit(do_not_specialize=["rows"])
def novelty_score_kernel(
    z1_ptr, z2_ptr, score_ptr, rows, size, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """Scores of `ROWS` rows."""
    acc: tl.constexpr = score_ptr.dtype.element_ty
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    offset = row[:, None].to(tl.int64) * size
    b_sum = tl.zeros([ROWS, BLOCK], acc)
    for start in range(0, size, BLOCK):
        i = start + tl.arange(0, BLOCK)[None, :]  # [1, BLOCK]
        mask = (row[:, None] < rows) & (i < size)
        b_z1 = tl.load(z1_ptr + offset + i, mask=mask, other=0).to(acc)
        b_z2 = tl.load(z2_ptr + offset + i, mask=mask, other=0).to(acc)
        b_sum += (b_z1 - b_z2) * (b_z1 - b_z2)
    tl.store(score_ptr + row, tl.sum(b_sum, 1) / size, mask=row < rows)


def _empty_scores(z1: Tensor, z2: Tensor, stack: int) -> Tensor:
    return torch.empty(z1.shape[0], stack, dtype=accumulator(z1, z2), device=z1.device)


@custom_operator("novelty_score", fake=_empty_scores)
def launch(z1: Tensor, z2: Tensor, stack: int) -> Tensor:
    """Scores (N, M)."""
    score = _empty_scores(z1, z2, stack)
    rows = score.numel()
    novelty_score_kernel[(-(-rows // ROWS),)](
        z1.contiguous(),
        z2.contiguous(),
        score,
        rows,
        z1.numel() // max(rows, 1),
        ROWS=ROWS,
        BLOCK=BLOCK,
        num_warps=NUM_WARPS,
        enable_fp_fusion=True,
    )
    return score


class _NoveltyScore(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z1: Tensor, z2: Tensor, stack: int) -> Tensor:
        ctx.save_for_backward(z1, z2)
        return launch(z1, z2, stack)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        z1, z2 = ctx.saved_tensors
        acc = upstream.dtype
        difference = (z1.to(acc) - z2.to(acc)).reshape(*upstream.shape, -1)  # [N, M, D]
        grad = difference * (upstream * (2 / difference.shape[2]))[..., None]
        grad = grad.reshape(z1.shape)
        return grad.to(z1.dtype), grad.neg().to(z2.dtype), None


def novelty_score(z1: Tensor, z2: Tensor, *, stack: int = 1) -> Tensor:
    """`reference.novelty_score` in one launch."""
    check_pair(z1, z2, stack)
    return _NoveltyScore.apply(z1, z2, stack)
