"""One Adam step on one flat buffer that holds every parameter of M models.

`adam_prepare` counts the steps t of all active models and computes, in one small program,

    rate_m = lr_m / (1 - β1ᵗ)        root_m = √(1 - β2ᵗ)

in float64, because 1 - βᵗ cancels where t is small. `record_step` does the same beside its own
work. `adam_step` is the update: with factor f of the rate,

    a = β1 a + (1 - β1) g        v = β2 v + (1 - β2) g²
    p = p - f rate_m a / (√v / root_m + ε)

One of its programs owns a piece of the buffer, of parameters with one factor. Usually it belongs to
one model, and its begin and length are multiples of 4: it is read by 128 bits. In other pieces, as
in a parameter of many small models, each element looks its model up.
"""

import math
import sys
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pkd_kernels.reference import check_adam_inputs

BLOCK, NUM_WARPS = 1024, 4
MODELS = 32  # of `adam_prepare`, at once
VECTOR = 4  # elements of 32 bits that one instruction loads
SMALL = 256  # a parameter with fewer elements for each of several models is not divided by models


@triton.jit
def prepare_models(
    m,
    mask,
    active,
    lr,
    step_ptr,
    corrections_ptr,
    stack,
    LOG2_BETA1: tl.constexpr,
    LOG2_BETA2: tl.constexpr,
):
    """Count the steps of active models m, and store the rate and the root of all of them."""
    b_step = tl.load(step_ptr + m, mask=mask, other=0)
    t = b_step.to(tl.float64) + 1
    rate = lr.to(tl.float64) / (1 - tl.exp2(t * LOG2_BETA1))
    root = tl.sqrt(1 - tl.exp2(t * LOG2_BETA2))
    tl.store(corrections_ptr + m, rate, mask=mask)
    tl.store(corrections_ptr + stack + m, root, mask=mask)
    tl.store(step_ptr + m, b_step + active.to(b_step.dtype), mask=mask)


@triton.jit(do_not_specialize=["stack"])
def adam_prepare_kernel(
    step_ptr,
    lr_ptr,
    active_ptr,
    corrections_ptr,
    stack,
    LOG2_BETA1: tl.constexpr,
    LOG2_BETA2: tl.constexpr,
    MODELS: tl.constexpr,
):
    """All models in one program."""
    for first in range(0, stack, MODELS):
        m = first + tl.arange(0, MODELS)  # [MODELS]
        mask = m < stack
        b_active = tl.load(active_ptr + m, mask=mask, other=0)
        b_lr = tl.load(lr_ptr + m, mask=mask, other=0)
        prepare_models(
            m, mask, b_active, b_lr, step_ptr, corrections_ptr, stack, LOG2_BETA1, LOG2_BETA2
        )


@triton.jit
def _update(
    param_ptr,
    grad_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    i,
    mask,
    rate,
    root,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPS: tl.constexpr,
    acc: tl.constexpr,
):
    """Update elements i; rate and root are those of a model, or of each element's model."""
    b_param = tl.load(param_ptr + i, mask=mask, other=0).to(acc)
    b_grad = tl.load(grad_ptr + i, mask=mask, other=0).to(acc)
    b_avg = tl.load(exp_avg_ptr + i, mask=mask, other=0).to(acc)
    b_sq = tl.load(exp_avg_sq_ptr + i, mask=mask, other=0).to(acc)
    b_avg += (1 - BETA1) * (b_grad - b_avg)
    b_sq = BETA2 * b_sq + (1 - BETA2) * b_grad * b_grad
    b_param -= rate * (b_avg / (tl.sqrt(b_sq) / root + EPS))
    tl.store(param_ptr + i, b_param, mask=mask)
    tl.store(exp_avg_ptr + i, b_avg, mask=mask)
    tl.store(exp_avg_sq_ptr + i, b_sq, mask=mask)


@triton.jit(do_not_specialize=["stack"])
def adam_step_kernel(
    param_ptr,
    grad_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    corrections_ptr,
    active_ptr,
    pieces_ptr,
    factors_ptr,
    stack,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Update one piece of one model, or of a parameter of many models."""
    acc: tl.constexpr = tl.float64 if param_ptr.dtype.element_ty == tl.float64 else tl.float32
    piece = tl.program_id(0)
    begin = tl.load(pieces_ptr + 4 * piece)
    length = tl.load(pieces_ptr + 4 * piece + 1).to(tl.int32)
    first = tl.load(pieces_ptr + 4 * piece + 2)
    size = tl.load(pieces_ptr + 4 * piece + 3).to(tl.int32)
    factor = tl.load(factors_ptr + piece).to(acc)
    i = tl.arange(0, BLOCK)
    if size == 0:
        begin = tl.multiple_of(begin, VECTOR)
        length = tl.multiple_of(tl.where(tl.load(active_ptr + first), length, 0), VECTOR)
        _update(
            param_ptr + begin,
            grad_ptr + begin,
            exp_avg_ptr + begin,
            exp_avg_sq_ptr + begin,
            i,
            i < length,
            tl.load(corrections_ptr + first).to(acc) * factor,
            tl.load(corrections_ptr + stack + first).to(acc),
            BETA1,
            BETA2,
            EPS,
            acc,
        )
    else:
        # `first` is the number of the first element in its parameter; padding is the last model's.
        m = tl.minimum((first + i) // size, stack - 1)
        mask = (i < length) & (tl.load(active_ptr + m) != 0)
        _update(
            param_ptr + begin,
            grad_ptr + begin,
            exp_avg_ptr + begin,
            exp_avg_sq_ptr + begin,
            i,
            mask,
            tl.load(corrections_ptr + m).to(acc) * factor,
            tl.load(corrections_ptr + stack + m).to(acc),
            BETA1,
            BETA2,
            EPS,
            acc,
        )


class _Piece(NamedTuple):
    """Neighbouring elements of the buffer with one factor.

    Attributes:
        begin: first element.
        length: number of elements.
        model: all elements belong to it; None where there may be several.
        origin: begin of the parameter.
        size: elements of one model in the parameter.
    """

    begin: int
    length: int
    model: int | None
    origin: int
    size: int

    @property
    def row(self) -> tuple[int, int, int, int]:
        """Numbers of the kernel: begin, length, model and 0, or first element and size."""
        if self.model is not None and self.begin % VECTOR == self.length % VECTOR == 0:
            return (self.begin, self.length, self.model, 0)
        return (self.begin, self.length, self.begin - self.origin, self.size)


@cache
def _pieces(
    sizes: tuple[int, ...],
    lengths: tuple[int, ...],
    factors: tuple[float, ...],
    stack: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Table of the programs; neighbouring pieces of one model and one factor are merged.

    Returns:
        (programs, 4) int64, see `_Piece.row`, and (programs,) float64 factors of the rate.
    """
    parts: list[tuple[float, _Piece]] = []
    origins = accumulate(lengths, initial=0)
    for size, length, factor, origin in zip(sizes, lengths, factors, origins, strict=False):
        if stack > 1 and (size % VECTOR or size < SMALL):
            parts.append((factor, _Piece(origin, length, None, origin, size)))
            continue
        padding = length - stack * size
        for m in range(stack):
            whole = size + (padding if m == stack - 1 else 0)
            begin = origin + m * size
            if parts and stack == 1 and parts[-1][0] == factor:
                before = parts.pop()[1]
                parts.append((factor, before._replace(length=before.length + whole)))
            else:
                parts.append((factor, _Piece(begin, whole, m, origin, size)))
    pieces = [
        (part._replace(begin=begin, length=min(BLOCK, part.begin + part.length - begin)), factor)
        for factor, part in parts
        for begin in range(part.begin, part.begin + part.length, BLOCK)
    ]
    # int64: a stack may exceed 2**31 parameters.
    table = torch.tensor([piece.row for piece, _ in pieces], dtype=torch.int64, device=device)
    return table, torch.tensor([f for _, f in pieces], dtype=torch.float64, device=device)


def log2(beta: float) -> float:
    """Base-2 logarithm of a decay rate; of 0 that of the smallest float, whose powers vanish."""
    return math.log2(max(beta, sys.float_info.min))


def adam_prepare(
    step: Tensor, lr: Tensor, active: Tensor, corrections: Tensor, *, betas: tuple[float, float]
) -> None:
    """`reference.adam_prepare` in one launch of one program."""
    adam_prepare_kernel[(1,)](
        step,
        lr,
        active,
        corrections,
        step.numel(),
        LOG2_BETA1=log2(betas[0]),
        LOG2_BETA2=log2(betas[1]),
        MODELS=MODELS,
        num_warps=1,
        enable_fp_fusion=True,
    )


def adam_step(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    lr: Tensor,
    active: Tensor,
    corrections: Tensor,
    *,
    sizes: Sequence[int],
    betas: tuple[float, float],
    eps: float,
    lengths: Sequence[int] | None = None,
    lr_factors: Sequence[float] | None = None,
) -> None:
    """`reference.adam_step` in one launch; step and lr are in the corrections.

    It is fastest where the lengths are multiples of 4.
    """
    flat = (param, grad, exp_avg, exp_avg_sq)
    check_adam_inputs(*flat, step, corrections, sizes, lengths, lr_factors)
    stack, sizes = step.numel(), tuple(sizes)
    taken = tuple(stack * size for size in sizes) if lengths is None else tuple(lengths)
    factors = (1.0,) * len(sizes) if lr_factors is None else tuple(lr_factors)
    pieces, piece_factors = _pieces(sizes, taken, factors, stack, param.device)
    adam_step_kernel[(len(pieces),)](
        param,
        grad,
        exp_avg,
        exp_avg_sq,
        corrections,
        active,
        pieces,
        piece_factors,
        stack,
        BETA1=betas[0],
        BETA2=betas[1],
        EPS=eps,
        BLOCK=BLOCK,
        VECTOR=VECTOR,
        num_warps=NUM_WARPS,
        enable_fp_fusion=True,
    )
