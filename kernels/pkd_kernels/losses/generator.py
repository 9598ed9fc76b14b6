"""The generator's losses (Eqs. 2-6) and their gradients in one pass over the data.

One program owns image n of model m: P pixels, D latents and F features. With B images,

    con = Σ|xh - x|      kx = Σ|xh - tx|
    enc = Σ(z1 - z2)²    k1 = Σ(z1 - t1)²    k2 = Σ(z2 - t2)²    adv = Σ(f_fake - f_real)²

    "mean"   term = con / P, ...              d term / d xh = sign(xh - x) / P
                                              d term / d z1 = 2 (z1 - z2) / D
    "norm"   term = con, ... and √enc, ...    d term / d xh = sign(xh - x)
                                              d term / d z1 = (z1 - z2) / √enc, 0 where √enc = 0

Every gradient is multiplied by weight / B. A term of weight 0 loads nothing; an absent term has
weight 0. A second launch averages the terms over images; a single image needs none.
"""

from collections.abc import Sequence
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
from pkd_kernels.reference import TERMS, accumulator, check_generator_inputs

VALUES = len(TERMS) + 1  # the terms and their weighted total
# Elements of a model's largest tensor, up to -> (elements of a block, warps of a program).
LAUNCH = {256: (256, 2), 1024: (1024, 8), 2**31: (2048, 16)}
MAX_REGISTERS = 128  # all that 16 warps can have; without a limit ptxas spills to use fewer


@triton.jit
def _sign(d):
    """1, 0 or -1."""
    return (d > 0).to(d.dtype) - (d < 0).to(d.dtype)


@triton.jit
def _differences(z1_ptr, z2_ptr, t1_ptr, t2_ptr, i, enc_size, k1_size, k2_size, acc: tl.constexpr):
    """Differences of the latents for enc, k1 and k2; 0, and not loaded, where a size is 0."""
    b_z1 = tl.load(z1_ptr + i, mask=i < tl.maximum(enc_size, k1_size), other=0).to(acc)
    b_z2 = tl.load(z2_ptr + i, mask=i < tl.maximum(enc_size, k2_size), other=0).to(acc)
    b_t1 = tl.load(t1_ptr + i, mask=i < k1_size, other=0).to(acc)
    b_t2 = tl.load(t2_ptr + i, mask=i < k2_size, other=0).to(acc)
    d_enc = tl.where(i < enc_size, b_z1 - b_z2, 0)
    d_k1 = tl.where(i < k1_size, b_z1 - b_t1, 0)
    d_k2 = tl.where(i < k2_size, b_z2 - b_t2, 0)
    return d_enc, d_k1, d_k2


@triton.jit
def _over_norm(weight, square_sum):
    """The weight divided by the norm √square_sum; 0 where the norm is 0."""
    norm = tl.sqrt(square_sum)
    return tl.where(norm > 0, weight / tl.where(norm > 0, norm, 1), 0)


@triton.jit
def generator_row(
    n,
    m,
    images,
    stack,
    x_ptr,
    xh_ptr,
    z1_ptr,
    z2_ptr,
    f_real_ptr,
    f_fake_ptr,
    t1_ptr,
    tx_ptr,
    t2_ptr,
    weights_ptr,
    values_ptr,
    grad_ptr,
    image,
    latent,
    feature,
    stride_w,
    has_x,
    has_teacher,
    NORM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Terms and total of image n of model m, and the gradients of xh, z1, z2 and f_fake."""
    n = n.to(tl.int64)
    row = n * stack + m
    rows = images.to(tl.int64) * stack
    acc: tl.constexpr = grad_ptr.dtype.element_ty
    batch = images.to(acc)

    values_ptr += n * 7 * stack + m  # [N, 7, M]
    weights_ptr += m * stride_w
    w_con = tl.load(weights_ptr, mask=has_x != 0, other=0).to(acc)
    w_enc = tl.load(weights_ptr + 1, mask=has_x != 0, other=0).to(acc)
    w_adv = tl.load(weights_ptr + 2, mask=has_x != 0, other=0).to(acc)
    w_k1 = tl.load(weights_ptr + 3, mask=has_teacher != 0, other=0).to(acc)
    w_kx = tl.load(weights_ptr + 4, mask=has_teacher != 0, other=0).to(acc)
    w_k2 = tl.load(weights_ptr + 5, mask=has_teacher != 0, other=0).to(acc)

    # Images: xh is read once for both terms, and their gradients need no norm.
    con_size = tl.where(w_con != 0, image, 0)
    kx_size = tl.where(w_kx != 0, image, 0)
    x_ptr += row * image
    xh_ptr += row * image
    tx_ptr += row * image
    g_ptr = grad_ptr + row * image
    per_pixel = 1 / batch if NORM else 1 / (batch * image)
    b_con = tl.zeros([BLOCK], acc)
    b_kx = tl.zeros([BLOCK], acc)
    for start in range(0, image, BLOCK):
        i = start + tl.arange(0, BLOCK)  # [BLOCK]
        b_xh = tl.load(xh_ptr + i, mask=i < tl.maximum(con_size, kx_size), other=0).to(acc)
        b_x = tl.load(x_ptr + i, mask=i < con_size, other=0).to(acc)
        b_tx = tl.load(tx_ptr + i, mask=i < kx_size, other=0).to(acc)
        d_con = tl.where(i < con_size, b_xh - b_x, 0)
        d_kx = tl.where(i < kx_size, b_xh - b_tx, 0)
        b_con += tl.abs(d_con)
        b_kx += tl.abs(d_kx)
        b_grad = w_con * _sign(d_con) + w_kx * _sign(d_kx)
        tl.store(g_ptr + i, b_grad * per_pixel, mask=i < image)
    con = tl.sum(b_con)
    kx = tl.sum(b_kx)
    if not NORM:
        con /= image
        kx /= image
    tl.store(values_ptr, con)
    tl.store(values_ptr + 4 * stack, kx)
    total = w_con * con + w_kx * kx

    # Latents: z1 and z2 are read once for three terms; norms need a sweep before the gradients.
    enc_size = tl.where(w_enc != 0, latent, 0)
    k1_size = tl.where(w_k1 != 0, latent, 0)
    k2_size = tl.where(w_k2 != 0, latent, 0)
    z1_ptr += row * latent
    z2_ptr += row * latent
    t1_ptr += row * latent
    t2_ptr += row * latent
    g1_ptr = grad_ptr + rows * image + row * latent
    g2_ptr = g1_ptr + rows * latent
    b_enc = tl.zeros([BLOCK], acc)
    b_k1 = tl.zeros([BLOCK], acc)
    b_k2 = tl.zeros([BLOCK], acc)
    if NORM:
        for start in range(0, latent, BLOCK):
            i = start + tl.arange(0, BLOCK)  # [BLOCK]
            d_enc, d_k1, d_k2 = _differences(
                z1_ptr, z2_ptr, t1_ptr, t2_ptr, i, enc_size, k1_size, k2_size, acc
            )
            b_enc += d_enc * d_enc
            b_k1 += d_k1 * d_k1
            b_k2 += d_k2 * d_k2
        c_enc = _over_norm(w_enc, tl.sum(b_enc)) / batch
        c_k1 = _over_norm(w_k1, tl.sum(b_k1)) / batch
        c_k2 = _over_norm(w_k2, tl.sum(b_k2)) / batch
    else:
        per_latent = 2 / (batch * latent)
        c_enc = w_enc * per_latent
        c_k1 = w_k1 * per_latent
        c_k2 = w_k2 * per_latent
    for start in range(0, latent, BLOCK):
        i = start + tl.arange(0, BLOCK)  # [BLOCK]
        d_enc, d_k1, d_k2 = _differences(
            z1_ptr, z2_ptr, t1_ptr, t2_ptr, i, enc_size, k1_size, k2_size, acc
        )
        if not NORM:
            b_enc += d_enc * d_enc
            b_k1 += d_k1 * d_k1
            b_k2 += d_k2 * d_k2
        tl.store(g1_ptr + i, c_enc * d_enc + c_k1 * d_k1, mask=i < latent)
        tl.store(g2_ptr + i, c_k2 * d_k2 - c_enc * d_enc, mask=i < latent)
    enc = tl.sum(b_enc)
    k1 = tl.sum(b_k1)
    k2 = tl.sum(b_k2)
    if NORM:
        enc = tl.sqrt(enc)
        k1 = tl.sqrt(k1)
        k2 = tl.sqrt(k2)
    else:
        enc /= latent
        k1 /= latent
        k2 /= latent
    tl.store(values_ptr + stack, enc)
    tl.store(values_ptr + 3 * stack, k1)
    tl.store(values_ptr + 5 * stack, k2)
    total += w_enc * enc + w_k1 * k1 + w_k2 * k2

    # Features.
    adv_size = tl.where(w_adv != 0, feature, 0)
    f_real_ptr += row * feature
    f_fake_ptr += row * feature
    gf_ptr = grad_ptr + rows * (image + 2 * latent) + row * feature
    b_adv = tl.zeros([BLOCK], acc)
    if NORM:
        for start in range(0, feature, BLOCK):
            i = start + tl.arange(0, BLOCK)  # [BLOCK]
            b_fake = tl.load(f_fake_ptr + i, mask=i < adv_size, other=0).to(acc)
            b_real = tl.load(f_real_ptr + i, mask=i < adv_size, other=0).to(acc)
            b_adv += (b_fake - b_real) * (b_fake - b_real)
        c_adv = _over_norm(w_adv, tl.sum(b_adv)) / batch
    else:
        c_adv = 2 * w_adv / (batch * tl.maximum(feature, 1))
    for start in range(0, feature, BLOCK):
        i = start + tl.arange(0, BLOCK)  # [BLOCK]
        b_fake = tl.load(f_fake_ptr + i, mask=i < adv_size, other=0).to(acc)
        b_real = tl.load(f_real_ptr + i, mask=i < adv_size, other=0).to(acc)
        d_adv = b_fake - b_real
        if not NORM:
            b_adv += d_adv * d_adv
        tl.store(gf_ptr + i, c_adv * d_adv, mask=i < feature)
    adv = tl.sum(b_adv)
    adv = tl.sqrt(adv) if NORM else adv / tl.maximum(feature, 1)
    tl.store(values_ptr + 2 * stack, adv)
    tl.store(values_ptr + 6 * stack, total + w_adv * adv)


@triton.jit(do_not_specialize=["stride_w", "has_x", "has_teacher"])
def generator_loss_kernel(
    pointers,
    image,
    latent,
    feature,
    stride_w,
    has_x,
    has_teacher,
    NORM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One image and model a program."""
    generator_row(
        tl.program_id(0),
        tl.program_id(1),
        tl.num_programs(0),
        tl.num_programs(1),
        *pointers,
        image,
        latent,
        feature,
        stride_w,
        has_x,
        has_teacher,
        NORM,
        BLOCK,
    )


class RowPointers(NamedTuple):
    """Tensors that `generator_row` reads and writes."""

    x: Tensor
    xh: Tensor
    z1: Tensor
    z2: Tensor
    f_real: Tensor
    f_fake: Tensor
    t1: Tensor
    tx: Tensor
    t2: Tensor
    weights: Tensor
    values: Tensor
    grad: Tensor


class RowLaunch(NamedTuple):
    """Arguments of the launch of `generator_row`.

    Attributes:
        pointers: tensors; an absent one is any tensor.
        sizes: image, latent, feature, stride_w, has_x and has_teacher.
        block: elements that a program reads at once.
        warps: of a program.
    """

    pointers: RowPointers
    sizes: tuple[int, ...]
    block: int
    warps: int


def _empty_outputs(
    x: Tensor | None,
    xh: Tensor,
    z1: Tensor,
    z2: Tensor,
    f_real: Tensor | None,
    f_fake: Tensor | None,
    t1: Tensor | None,
    tx: Tensor | None,
    t2: Tensor | None,
    weights: Tensor,
    norm: bool,
    stack: int,
) -> tuple[Tensor, Tensor]:
    dtype, device = accumulator(xh, z1, z2, f_fake), xh.device
    count = xh.numel() + 2 * z1.numel() + (0 if f_fake is None else f_fake.numel())
    values = torch.empty(VALUES, stack, dtype=dtype, device=device)
    return values, torch.empty(count, dtype=dtype, device=device)


@custom_operator("generator_loss", fake=_empty_outputs)
def launch(
    x: Tensor | None,
    xh: Tensor,
    z1: Tensor,
    z2: Tensor,
    f_real: Tensor | None,
    f_fake: Tensor | None,
    t1: Tensor | None,
    tx: Tensor | None,
    t2: Tensor | None,
    weights: Tensor,
    norm: bool,
    stack: int,
) -> tuple[Tensor, Tensor]:
    """Values (7, M), the six terms and their total; flat gradients [xh | z1 | z2 | f_fake]."""
    inputs = (x, xh, z1, z2, f_real, f_fake, t1, tx, t2)
    values, grads = _empty_outputs(*inputs, weights, norm, stack)
    by_image = values_by_image(values, xh)
    row = row_launch(inputs, weights, by_image, grads, stack)
    generator_loss_kernel[(len(xh), stack)](
        row.pointers,
        *row.sizes,
        NORM=norm,
        BLOCK=row.block,
        num_warps=row.warps,
        enable_fp_fusion=True,
        maxnreg=MAX_REGISTERS,
    )
    if len(xh) > 1:
        torch.mean(by_image, 0, out=values)
    return values, grads


def values_by_image(values: Tensor, xh: Tensor) -> Tensor:
    """Memory for the values (N, 7, M) of the images; the values themselves for one image."""
    return values if len(xh) == 1 else values.new_empty(len(xh), *values.shape)


def row_launch(
    inputs: Sequence[Tensor | None], weights: Tensor, by_image: Tensor, grads: Tensor, stack: int
) -> RowLaunch:
    """Arguments of the launch of `generator_row`.

    Args:
        inputs: x, xh, z1, z2, f_real, f_fake, t1, tx and t2.
        weights: (6,) or (M, 6).
        by_image: (N, 7, M) or, for one image, (7, M).
        grads: flat.
        stack: M.
    """
    x, xh, z1, _, _, f_fake, t1, *_ = inputs
    assert xh is not None, "every loss has a reconstruction"
    assert z1 is not None, "every loss has latents"
    image, latent = (t.numel() // (len(xh) * stack) for t in (xh, z1))
    feature = 0 if f_fake is None else f_fake.numel() // (len(xh) * stack)
    largest = max(image, latent, feature)
    block, warps = next(entry for limit, entry in LAUNCH.items() if largest <= limit)
    tensors = [xh if t is None else t.contiguous() for t in inputs]
    stride_w = len(TERMS) * (weights.dim() - 1)
    sizes = (image, latent, feature, stride_w, int(x is not None), int(t1 is not None))
    pointers = RowPointers._make([*tensors, weights.contiguous(), by_image, grads])
    return RowLaunch(pointers, sizes, block, warps)


def row_gradients(
    grads: Tensor, xh: Tensor, z1: Tensor, z2: Tensor, f_fake: Tensor | None, stack: int
) -> LossGradients:
    """The flat gradients of xh, z1, z2 and f_fake, for the backward pass."""
    rows = len(xh) * stack
    leaves = [xh, z1, z2] if f_fake is None else [xh, z1, z2, f_fake]
    sizes = [t.numel() // rows for t in (xh, z1)] + [
        0 if f_fake is None else f_fake.numel() // rows
    ]
    return LossGradients(grads, leaves, [rows, sizes[0], 2 * rows, sizes[1], rows, sizes[2]])


class _GeneratorLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor | None,
        xh: Tensor,
        z1: Tensor,
        z2: Tensor,
        f_real: Tensor | None,
        f_fake: Tensor | None,
        t1: Tensor | None,
        tx: Tensor | None,
        t2: Tensor | None,
        weights: Tensor,
        norm: bool,
        stack: int,
    ) -> tuple[Tensor, Tensor]:
        values, grads = launch(x, xh, z1, z2, f_real, f_fake, t1, tx, t2, weights, norm, stack)
        save_gradients(ctx, [row_gradients(grads, xh, z1, z2, f_fake, stack)], stack)
        # Detached: autograd forbids `total += other` on views that a function returns.
        total, terms = values[-1].detach(), values[:-1].T.detach()
        ctx.mark_non_differentiable(terms)
        ctx.set_materialize_grads(False)
        return total, terms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        xh, z1, z2, *features = scaled_gradients(ctx, [upstream])
        f_fake = features[0] if features else None
        return None, xh, z1, z2, None, f_fake, None, None, None, None, None, None


def generator_loss(
    x: Tensor | None,
    xh: Tensor,
    z1: Tensor,
    z2: Tensor,
    f_real: Tensor | None = None,
    f_fake: Tensor | None = None,
    *,
    teacher: tuple[Tensor, Tensor, Tensor] | None = None,
    weights: Tensor,
    reduction: str = "mean",
    stack: int = 1,
) -> tuple[Tensor, Tensor]:
    """`reference.generator_loss` in one launch, or two for several images."""
    check_generator_inputs(x, xh, z1, z2, f_real, f_fake, teacher, weights, reduction, stack)
    t1, tx, t2 = teacher if teacher is not None else (None, None, None)
    norm = reduction == "norm"
    return _GeneratorLoss.apply(x, xh, z1, z2, f_real, f_fake, t1, tx, t2, weights, norm, stack)
