"""One Adam step on one flat buffer that holds every parameter of M models, in one launch.

One program owns a piece of the buffer, which belongs to one model m and to parameters with one
factor f of the rate. With t = step_m + 1,

    a = β1 a + (1 - β1) g        v = β2 v + (1 - β2) g²
    p = p - f lr_m / (1 - β1ᵗ) · a / (√v / √(1 - β2ᵗ) + ε)

βᵗ is computed in float64, because 1 - βᵗ cancels where t is small. All programs of a model read
step_m, so the program that finishes last increments it. An integer counter of finished programs
identifies that program. The programs of an inactive model load and store no elements.
"""

import math
import sys
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from operator import itemgetter

import torch
import triton
import triton.language as tl
from torch import Tensor

from pkd_kernels.reference import check_adam_inputs

BLOCK, NUM_WARPS = 1024, 4
STEPS = 128  # steps incremented at once; sharing BLOCK's range would spread the body's loads


@triton.jit(do_not_specialize=["stack"])
def adam_step_kernel(
    param_ptr,
    grad_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    step_ptr,
    lr_ptr,
    active_ptr,
    pieces_ptr,
    factors_ptr,
    arrivals_ptr,
    stack,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    LOG2_BETA1: tl.constexpr,
    LOG2_BETA2: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Update one piece; the last program increments the steps of the active models."""
    acc: tl.constexpr = tl.float64 if param_ptr.dtype.element_ty == tl.float64 else tl.float32
    piece = tl.program_id(0)
    begin = tl.load(pieces_ptr + 3 * piece)
    m = tl.load(pieces_ptr + 3 * piece + 2)
    end = tl.where(tl.load(active_ptr + m), tl.load(pieces_ptr + 3 * piece + 1), begin)
    i = begin + tl.arange(0, BLOCK)  # [BLOCK]
    b_param = tl.load(param_ptr + i, mask=i < end, other=0).to(acc)
    b_grad = tl.load(grad_ptr + i, mask=i < end, other=0).to(acc)
    b_avg = tl.load(exp_avg_ptr + i, mask=i < end, other=0).to(acc)
    b_sq = tl.load(exp_avg_sq_ptr + i, mask=i < end, other=0).to(acc)
    t = tl.load(step_ptr + m).to(tl.float64) + 1
    correction1 = 1 - tl.exp2(t * LOG2_BETA1)
    correction2 = 1 - tl.exp2(t * LOG2_BETA2)
    lr = tl.load(lr_ptr + m).to(tl.float64) * tl.load(factors_ptr + piece)
    rate = (lr / correction1).to(acc)
    root2 = tl.sqrt(correction2).to(acc)

    b_avg += (1 - BETA1) * (b_grad - b_avg)
    b_sq = BETA2 * b_sq + (1 - BETA2) * b_grad * b_grad
    b_param -= rate * (b_avg / (tl.sqrt(b_sq) / root2 + EPS))
    tl.store(param_ptr + i, b_param, mask=i < end)
    tl.store(exp_avg_ptr + i, b_avg, mask=i < end)
    tl.store(exp_avg_sq_ptr + i, b_sq, mask=i < end)

    tl.debug_barrier()  # all threads have read the step before the program is counted
    if tl.atomic_add(arrivals_ptr, 1) == tl.num_programs(0) - 1:
        for first in range(0, stack, STEPS):
            j = first + tl.arange(0, STEPS)  # [STEPS]
            b_step = tl.load(step_ptr + j, mask=j < stack, other=0)
            b_active = tl.load(active_ptr + j, mask=j < stack, other=0).to(b_step.dtype)
            tl.store(step_ptr + j, b_step + b_active, mask=j < stack)
        tl.store(arrivals_ptr, 0)


@cache
def _pieces(
    sizes: tuple[int, ...], factors: tuple[float, ...], stack: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Table of the programs; neighbouring pieces of one model and one factor are merged.

    Returns:
        (programs, 3) int64 begin, end and model, and (programs,) float64 factors of the rate.
    """
    blocks = [
        ((m, factor), size)
        for size, factor in zip(sizes, factors, strict=True)
        for m in range(stack)
    ]
    pieces: list[tuple[int, int, int]] = []
    piece_factors: list[float] = []
    offset = 0
    for (m, factor), merged in groupby(blocks, key=itemgetter(0)):
        end = offset + sum(size for _, size in merged)
        begins = range(offset, end, BLOCK)
        pieces += [(begin, min(begin + BLOCK, end), m) for begin in begins]
        piece_factors += [factor] * len(begins)
        offset = end
    # int64: a stack may exceed 2**31 parameters.
    table = torch.tensor(pieces, dtype=torch.int64, device=device)
    return table, torch.tensor(piece_factors, dtype=torch.float64, device=device)


def _log2(beta: float) -> float:
    # For beta = 0 the smallest float: its powers vanish beside 1.
    return math.log2(max(beta, sys.float_info.min))


def adam_step(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    lr: Tensor,
    active: Tensor,
    *,
    sizes: Sequence[int],
    betas: tuple[float, float],
    eps: float,
    lr_factors: Sequence[float] | None = None,
    arrivals: Tensor | None = None,
) -> None:
    """`reference.adam_step` in one launch."""
    check_adam_inputs(param, grad, exp_avg, exp_avg_sq, step, sizes, lr_factors)
    if arrivals is None:
        arrivals = torch.zeros(1, dtype=torch.int32, device=param.device)
    factors = (1.0,) * len(sizes) if lr_factors is None else tuple(lr_factors)
    pieces, piece_factors = _pieces(tuple(sizes), factors, step.numel(), param.device)
    adam_step_kernel[(len(pieces),)](
        param,
        grad,
        exp_avg,
        exp_avg_sq,
        step,
        lr,
        active,
        pieces,
        piece_factors,
        arrivals,
        step.numel(),
        BETA1=betas[0],
        BETA2=betas[1],
        LOG2_BETA1=_log2(betas[0]),
        LOG2_BETA2=_log2(betas[1]),
        EPS=eps,
        BLOCK=BLOCK,
        STEPS=STEPS,
        num_warps=NUM_WARPS,
        enable_fp_fusion=True,
    )
