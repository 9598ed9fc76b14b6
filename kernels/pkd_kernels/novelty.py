"""The novelty score, mean square of z1 - z2, for each image and model.

One program owns `ROWS` rows; a row is the D latents of one image of one model:

    s = Σ (z1 - z2)² / D        ds/dz1 = 2 (z1 - z2) / D = -ds/dz2

Scoring needs no gradient, so the forward kernel computes none; backward uses PyTorch's operations.

`novelty_parts` computes what other scores need as well. One program owns one row, its latents and
its pixels, and reads each of them once.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pkd_kernels.operators import custom_operator, once_differentiable
from pkd_kernels.reference import NOVELTY_PARTS, accumulator, check_novelty_inputs, check_pair

ROWS, BLOCK, NUM_WARPS = 4, 256, 4
PIXELS = 1024  # that a program of `novelty_parts` reads at once


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


@triton.jit(do_not_specialize=["rows_per_image"])
def novelty_parts_kernel(
    z1_ptr,
    z2_ptr,
    x_ptr,
    xh_ptr,
    parts_ptr,
    rows_per_image,
    latents,
    pixels,
    BLOCK: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Parts of one row; `rows_per_image` consecutive rows have the same image x."""
    acc: tl.constexpr = parts_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    b_latent = tl.zeros([BLOCK], acc)
    b_energy = tl.zeros([BLOCK], acc)
    for start in range(0, latents, BLOCK):
        i = start + tl.arange(0, BLOCK)  # [BLOCK]
        b_z1 = tl.load(z1_ptr + row * latents + i, mask=i < latents, other=0).to(acc)
        b_z2 = tl.load(z2_ptr + row * latents + i, mask=i < latents, other=0).to(acc)
        b_latent += (b_z1 - b_z2) * (b_z1 - b_z2)
        b_energy += b_z1 * b_z1
    b_error = tl.zeros([PIXELS], acc)
    for start in range(0, pixels, PIXELS):
        i = start + tl.arange(0, PIXELS)  # [PIXELS]
        image = row // rows_per_image
        b_x = tl.load(x_ptr + image * pixels + i, mask=i < pixels, other=0).to(acc)
        b_xh = tl.load(xh_ptr + row * pixels + i, mask=i < pixels, other=0).to(acc)
        b_error += tl.abs(b_x - b_xh)
    tl.store(parts_ptr + 3 * row, tl.sum(b_latent, 0) / latents)
    tl.store(parts_ptr + 3 * row + 1, tl.sum(b_energy, 0) / latents)
    tl.store(parts_ptr + 3 * row + 2, tl.sum(b_error, 0) / pixels)


def _empty_parts(z1: Tensor, z2: Tensor, x: Tensor, xh: Tensor, stack: int, shared: bool) -> Tensor:
    shape = (z1.shape[0], stack, len(NOVELTY_PARTS))
    return torch.empty(shape, dtype=accumulator(z1, z2, x, xh), device=z1.device)


@custom_operator("novelty_parts", fake=_empty_parts)
def launch_parts(z1: Tensor, z2: Tensor, x: Tensor, xh: Tensor, stack: int, shared: bool) -> Tensor:
    """Parts (N, M, 3)."""
    parts = _empty_parts(z1, z2, x, xh, stack, shared)
    rows = z1.shape[0] * stack
    novelty_parts_kernel[(rows,)](
        z1.contiguous(),
        z2.contiguous(),
        x.contiguous(),
        xh.contiguous(),
        parts,
        stack if shared else 1,
        z1.numel() // rows,
        xh.numel() // rows,
        BLOCK=BLOCK,
        PIXELS=PIXELS,
        num_warps=NUM_WARPS,
        enable_fp_fusion=True,
    )
    return parts


@torch.no_grad()
def novelty_parts(z1: Tensor, z2: Tensor, x: Tensor, xh: Tensor, *, stack: int = 1) -> Tensor:
    """`reference.novelty_parts` in one launch."""
    shared = check_novelty_inputs(z1, z2, x, xh, stack)
    return launch_parts(z1, z2, x, xh, stack, shared)
