"""Losses of a GAN's generator and discriminator, and all their gradients, in one launch.

The first programs own an image of a model each, as in `generator`, the others a model, as in
`discriminator`. A second launch averages the generator's terms over images; one image needs none.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pkd_kernels.losses.discriminator import (
    BLOCK,
    logit_gradients,
    logit_launch,
    model_logits,
)
from pkd_kernels.losses.generator import (
    MAX_REGISTERS,
    VALUES,
    generator_row,
    row_gradients,
    row_launch,
    values_by_image,
)
from pkd_kernels.losses.saved_gradients import save_gradients, scaled_gradients
from pkd_kernels.operators import custom_operator, once_differentiable
from pkd_kernels.reference import accumulator, check_generator_inputs, check_pair


@triton.jit(
    do_not_specialize=[
        "stride_w",
        "has_x",
        "has_teacher",
        "size",
        "stride_rn",
        "stride_rc",
        "stride_fn",
        "stride_fc",
        "batch",
        "stack",
    ]
)
def gan_losses_kernel(
    generator,
    discriminator,
    image,
    latent,
    feature,
    stride_w,
    has_x,
    has_teacher,
    size,
    stride_rn,
    stride_rc,
    stride_fn,
    stride_fc,
    batch,
    stack,
    NORM: tl.constexpr,
    ROW_BLOCK: tl.constexpr,
    LOGIT_BLOCK: tl.constexpr,
):
    """An image and model, or the logits of a model."""
    program = tl.program_id(0)
    if program < batch * stack:
        generator_row(
            program // stack,
            program % stack,
            batch,
            stack,
            *generator,
            image,
            latent,
            feature,
            stride_w,
            has_x,
            has_teacher,
            NORM,
            ROW_BLOCK,
        )
    else:
        model_logits(
            program - batch * stack,
            batch,
            stack,
            *discriminator,
            size,
            stride_rn,
            stride_rc,
            stride_fn,
            stride_fc,
            LOGIT_BLOCK,
        )


def _empty_outputs(
    x: Tensor | None,
    xh: Tensor,
    z1: Tensor,
    z2: Tensor,
    f_real: Tensor | None,
    f_fake: Tensor | None,
    logits_real: Tensor,
    logits_fake: Tensor,
    t1: Tensor | None,
    tx: Tensor | None,
    t2: Tensor | None,
    weights: Tensor,
    norm: bool,
    stack: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulator(xh, z1, z2, f_fake)
    count = xh.numel() + 2 * z1.numel() + (0 if f_fake is None else f_fake.numel())
    d_dtype = accumulator(logits_real, logits_fake)
    return (
        xh.new_empty(VALUES, stack, dtype=dtype),
        xh.new_empty(count, dtype=dtype),
        xh.new_empty(stack, dtype=d_dtype),
        xh.new_empty(2 * logits_real.numel(), dtype=d_dtype),
    )


@custom_operator("gan_losses", fake=_empty_outputs)
def launch(
    x: Tensor | None,
    xh: Tensor,
    z1: Tensor,
    z2: Tensor,
    f_real: Tensor | None,
    f_fake: Tensor | None,
    logits_real: Tensor,
    logits_fake: Tensor,
    t1: Tensor | None,
    tx: Tensor | None,
    t2: Tensor | None,
    weights: Tensor,
    norm: bool,
    stack: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The outputs of the launchers of both losses."""
    inputs = (x, xh, z1, z2, f_real, f_fake)
    logits, teacher = (logits_real, logits_fake), (t1, tx, t2)
    values, grads, loss, d_grads = _empty_outputs(*inputs, *logits, *teacher, weights, norm, stack)
    by_image = values_by_image(values, xh)
    row = row_launch((*inputs, *teacher), weights, by_image, grads, stack)
    pointers, sizes = logit_launch(*logits, loss, d_grads, stack)
    gan_losses_kernel[(len(xh) * stack + stack,)](
        row.pointers,
        pointers,
        *row.sizes,
        *sizes,
        len(xh),
        stack,
        NORM=norm,
        ROW_BLOCK=row.block,
        LOGIT_BLOCK=BLOCK,
        num_warps=row.warps,
        enable_fp_fusion=True,
        maxnreg=MAX_REGISTERS,
    )
    if len(xh) > 1:
        torch.mean(by_image, 0, out=values)
    return values, grads, loss, d_grads


class _GANLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor | None,
        xh: Tensor,
        z1: Tensor,
        z2: Tensor,
        f_real: Tensor | None,
        f_fake: Tensor | None,
        logits_real: Tensor,
        logits_fake: Tensor,
        t1: Tensor | None,
        tx: Tensor | None,
        t2: Tensor | None,
        weights: Tensor,
        norm: bool,
        stack: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        inputs = (x, xh, z1, z2, f_real, f_fake, logits_real, logits_fake, t1, tx, t2)
        values, grads, d_loss, d_grads = launch(*inputs, weights, norm, stack)
        losses = [
            row_gradients(grads, xh, z1, z2, f_fake, stack),
            logit_gradients(d_grads, logits_real, logits_fake, stack),
        ]
        save_gradients(ctx, losses, stack)
        # Detached: autograd forbids `total += other` on views that a function returns.
        total, terms = values[-1].detach(), values[:-1].T.detach()
        ctx.mark_non_differentiable(terms)
        ctx.set_materialize_grads(False)
        return total, d_loss, terms

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, upstream: Tensor | None, d_upstream: Tensor | None, _: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        xh, z1, z2, *features, real, fake = scaled_gradients(ctx, [upstream, d_upstream])
        f_fake = features[0] if features else None
        return None, xh, z1, z2, None, f_fake, real, fake, *(None,) * 6


def gan_losses(
    x: Tensor | None,
    xh: Tensor,
    z1: Tensor,
    z2: Tensor,
    f_real: Tensor | None,
    f_fake: Tensor | None,
    logits_real: Tensor,
    logits_fake: Tensor,
    *,
    teacher: tuple[Tensor, Tensor, Tensor] | None = None,
    weights: Tensor,
    reduction: str = "mean",
    stack: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.gan_losses` in one launch, or two for several images."""
    check_generator_inputs(x, xh, z1, z2, f_real, f_fake, teacher, weights, reduction, stack)
    check_pair(logits_real, logits_fake, stack)
    if len(logits_real) != len(xh):
        raise ValueError(f"batch sizes differ: {len(logits_real)} and {len(xh)} images")
    t1, tx, t2 = teacher if teacher is not None else (None, None, None)
    inputs = (x, xh, z1, z2, f_real, f_fake, logits_real, logits_fake, t1, tx, t2)
    return _GANLosses.apply(*inputs, weights, reduction == "norm", stack)
