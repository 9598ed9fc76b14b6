"""Per-image normalisation and activation, forward and backward, on tiles [Q, C, P / Q].

With the convolution's result c, of one channel of one image, over its pixels,

    u = (c - mean c) / √(var c + ε)        y = act(γ u + β)

and, for the gradient dy, with g = dy act',

    dβ = Σ g        dγ = Σ g u        dc = γ / √(var c + ε) (g - mean g - u mean(g u))

act' is computed from y, so y, u and 1 / √(var c + ε) are kept and c is not.
"""

import triton
import triton.language as tl


@triton.jit
def sum_of_pixels(tile):
    """Sums [C] over the pixels of a tile [Q, C, P / Q]."""
    return tl.sum(tl.sum(tile, 2), 0)


@triton.jit
def normalise(b_c, mask, pixels: tl.constexpr, EPS: tl.constexpr):
    """Normalised tile u [Q, C, P / Q] and 1 / √(var c + ε) [C] of a tile c."""
    b_c -= (sum_of_pixels(tl.where(mask, b_c, 0)) * (1 / pixels))[None, :, None]
    variance = sum_of_pixels(tl.where(mask, b_c * b_c, 0)) * (1 / pixels) + EPS
    rstd = 1 / tl.sqrt(variance)
    rstd *= 1.5 - 0.5 * variance * rstd * rstd  # Newton: a GPU's root and quotient are inexact
    b_c *= rstd[None, :, None]
    return b_c, rstd


@triton.jit
def activate(b_y, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr):
    """The activation of every element; NaN stays NaN."""
    if ACTIVATION == "tanh":
        b_y = _tanh(b_y)
    if ACTIVATION == "relu":
        b_y = tl.where(b_y <= 0, 0, b_y)  # `b_y > 0` would map NaN to 0
    if ACTIVATION == "leaky_relu":
        b_y = tl.where(b_y > 0, b_y, SLOPE * b_y)
    return b_y


@triton.jit
def _tanh(x):
    # A GPU's quotient and exponential err by two units in the last place. In this form they matter
    # least where the gradient 1 - y * y cancels.
    e = tl.exp(-2 * tl.abs(x))
    y = 1 - 2 * e / (1 + e)
    return tl.where(x < 0, -y, y)


@triton.jit
def backward_through_activation_and_norm(
    b_grad,
    offset,
    mask,
    channel,
    row,
    row_mask,
    pixels,
    y_ptr,
    u_ptr,
    rstd_ptr,
    gamma_ptr,
    gamma_grad_ptr,
    beta_grad_ptr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    acc: tl.constexpr,
):
    """Gradient dc [Q, C, P / Q] from dy; stores the image's dγ and dβ where there is memory.

    A layer without u is not normalised. `channel` [C] counts the channels of all models, `row` [C]
    those of all images and models.
    """
    if ACTIVATION != "none":
        b_y = tl.load(y_ptr + offset, mask=mask, other=0).to(acc)
        if ACTIVATION == "tanh":
            b_grad *= 1 - b_y * b_y
        if ACTIVATION == "relu":
            b_grad = tl.where(b_y <= 0, 0, b_grad)  # NaN stays NaN
        if ACTIVATION == "leaky_relu":
            b_grad = tl.where(b_y > 0, b_grad, SLOPE * b_grad)
    if u_ptr is not None:
        b_grad = tl.where(mask, b_grad, 0)
        b_u = tl.load(u_ptr + offset, mask=mask, other=0).to(acc)
        beta_grad = sum_of_pixels(b_grad)
        gamma_grad = sum_of_pixels(b_grad * b_u)
        if gamma_grad_ptr is not None:
            tl.store(gamma_grad_ptr + row, gamma_grad, mask=row_mask)
        if beta_grad_ptr is not None:
            tl.store(beta_grad_ptr + row, beta_grad, mask=row_mask)
        factor = tl.load(gamma_ptr + channel, mask=row_mask, other=0).to(acc)
        factor *= tl.load(rstd_ptr + row, mask=row_mask, other=0).to(acc)
        b_grad -= (beta_grad * (1 / pixels))[None, :, None]
        b_grad -= b_u * (gamma_grad * (1 / pixels))[None, :, None]
        b_grad *= factor[None, :, None]
    return b_grad
