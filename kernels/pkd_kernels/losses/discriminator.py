"""The discriminator loss BCE(D(x), 1) + BCE(D(xh), 0) from logits, and its gradients.

One program owns one model: K logits of all its images, r of the real and f of the fake ones.

    L = Σ softplus(-r) / K + Σ softplus(f) / K        softplus(t) = max(t, 0) + log(1 + exp(-|t|))
    dL/dr = -σ(-r) / K        dL/df = σ(f) / K        σ(t) = 1 / (1 + exp(-t))

The argument of exp is never positive, so nothing overflows. With e = exp(-|t|) and s = e / (2 + e),
log(1 + e) = 2 artanh(s) = 2 (s + s³/3 + s⁵/5 + ...), s <= 1/3: 17 terms leave an error below 2⁻⁵³,
also where e is so small that 1 + e rounds to 1.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pkd_kernels.losses.saved_gradients import (
    LossGradients,
    save_gradients,
    scaled_gradients,
)
from pkd_kernels.operators import custom_operator, once_differentiable
from pkd_kernels.reference import accumulator, check_pair

BLOCK, NUM_WARPS = 256, 4


@triton.jit
def _softplus_and_sigmoid(t):
    """softplus(t) and σ(t) of a block."""
    e = tl.exp(-tl.abs(t))
    s = e / (2 + e)
    series = tl.zeros_like(t)
    for k in tl.static_range(16, -1, -1):
        series = series * s * s + 1.0 / (2 * k + 1)
    return tl.maximum(t, 0) + 2 * s * series, tl.where(t >= 0, 1, e) / (1 + e)


@triton.jit
def model_logits(
    m,
    batch,
    stack,
    real_ptr,
    fake_ptr,
    loss_ptr,
    grad_ptr,
    size,
    stride_rn,
    stride_rc,
    stride_fn,
    stride_fc,
    BLOCK: tl.constexpr,
):
    """The loss of model m, and the gradients of all its logits."""
    acc: tl.constexpr = grad_ptr.dtype.element_ty
    count = batch * size
    per_logit = 1 / count.to(acc)
    b_loss = tl.zeros([BLOCK], acc)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)  # [BLOCK]
        mask = i < count
        n = (i // size).to(tl.int64)
        c = m * size + i % size
        b_real = tl.load(real_ptr + n * stride_rn + c * stride_rc, mask=mask, other=0).to(acc)
        b_fake = tl.load(fake_ptr + n * stride_fn + c * stride_fc, mask=mask, other=0).to(acc)
        b_loss_real, b_sigmoid_real = _softplus_and_sigmoid(-b_real)
        b_loss_fake, b_sigmoid_fake = _softplus_and_sigmoid(b_fake)
        b_loss += tl.where(mask, b_loss_real + b_loss_fake, 0)
        offset = n * stack * size + c
        tl.store(grad_ptr + offset, -b_sigmoid_real * per_logit, mask=mask)
        tl.store(grad_ptr + count * stack + offset, b_sigmoid_fake * per_logit, mask=mask)
    tl.store(loss_ptr + m, tl.sum(b_loss) / count.to(acc))


SIZES = ["size", "stride_rn", "stride_rc", "stride_fn", "stride_fc"]


@triton.jit(do_not_specialize=["batch", *SIZES])
def discriminator_loss_kernel(
    pointers,
    batch,
    size,
    stride_rn,
    stride_rc,
    stride_fn,
    stride_fc,
    BLOCK: tl.constexpr,
):
    """One model a program."""
    model_logits(
        tl.program_id(0),
        batch,
        tl.num_programs(0),
        *pointers,
        size,
        stride_rn,
        stride_rc,
        stride_fn,
        stride_fc,
        BLOCK,
    )


class LogitPointers(NamedTuple):
    """Tensors that `model_logits` reads and writes."""

    real: Tensor
    fake: Tensor
    loss: Tensor
    grad: Tensor


def _empty_outputs(logits_real: Tensor, logits_fake: Tensor, stack: int) -> tuple[Tensor, Tensor]:
    dtype, device = accumulator(logits_real, logits_fake), logits_real.device
    loss = torch.empty(stack, dtype=dtype, device=device)
    return loss, torch.empty(2 * logits_real.numel(), dtype=dtype, device=device)


@custom_operator("discriminator_loss", fake=_empty_outputs)
def launch(logits_real: Tensor, logits_fake: Tensor, stack: int) -> tuple[Tensor, Tensor]:
    """Losses (M,) and the flat gradients [logits_real | logits_fake]."""
    loss, grads = _empty_outputs(logits_real, logits_fake, stack)
    pointers, sizes = logit_launch(logits_real, logits_fake, loss, grads, stack)
    discriminator_loss_kernel[(stack,)](
        pointers, len(logits_real), *sizes, BLOCK=BLOCK, num_warps=NUM_WARPS, enable_fp_fusion=True
    )
    return loss, grads


def logit_launch(
    logits_real: Tensor, logits_fake: Tensor, loss: Tensor, grads: Tensor, stack: int
) -> tuple[LogitPointers, tuple[int, ...]]:
    """Pointers and `SIZES` of the launch of `model_logits`."""
    real, fake = logits_real.flatten(1), logits_fake.flatten(1)  # views, of any strides
    sizes = (real.shape[1] // stack, *real.stride(), *fake.stride())
    return LogitPointers(real, fake, loss, grads), sizes


def logit_gradients(
    grads: Tensor, logits_real: Tensor, logits_fake: Tensor, stack: int
) -> LossGradients:
    """The flat gradients of the logits, for the backward pass."""
    rows = len(logits_real) * stack
    segments = [2 * rows, logits_real.numel() // rows, 0, 0, 0, 0]
    return LossGradients(grads, [logits_real, logits_fake], segments)


class _DiscriminatorLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_real: Tensor, logits_fake: Tensor, stack: int) -> Tensor:
        loss, grads = launch(logits_real, logits_fake, stack)
        save_gradients(ctx, [logit_gradients(grads, logits_real, logits_fake, stack)], stack)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return *scaled_gradients(ctx, [upstream]), None


def discriminator_loss(logits_real: Tensor, logits_fake: Tensor, *, stack: int = 1) -> Tensor:
    """`reference.discriminator_loss` in one launch, for any number of images."""
    check_pair(logits_real, logits_fake, stack)
    return _DiscriminatorLoss.apply(logits_real, logits_fake, stack)
