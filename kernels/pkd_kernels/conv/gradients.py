"""The three roles of a program of a layer's backward launch, as device functions.

- `input_gradient`: the gradient dc of the layer's convolution becomes the gradient of its input x,
  and is carried on through activation and normalisation of the layer before: its dc.
- `weight_gradient`: a tile of the layer's weights, summed over the pixels of all images.
- `sum_over_images`: dγ and dβ of the layer. The launch before left them image by image.
"""

import triton
import triton.language as tl

from pkd_kernels.conv.geometry import output_tile, tile_offsets
from pkd_kernels.conv.normalise import backward_through_activation_and_norm
from pkd_kernels.conv.products import sum_over_pixels, sum_over_taps


@triton.jit
def input_gradient(
    program,
    grad_ptr,
    x_ptr,
    w_ptr,
    x_grad_ptr,
    tapped_ptr,
    u_ptr,
    rstd_ptr,
    gamma_ptr,
    gamma_grad_ptr,
    beta_grad_ptr,
    stack,
    inputs,
    channels,
    UP: tl.constexpr,
    SIDE: tl.constexpr,
    NORM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    TAPPED: tl.constexpr,
    SLOPE: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
    K: tl.constexpr,
    MATRIX: tl.constexpr,
    PRECISION: tl.constexpr,
    acc: tl.constexpr,
):
    """One tile of dx, carried on to the convolution of the layer before."""
    big: tl.constexpr = 4 if SIDE == 1 else 2 * SIDE
    pixels_in: tl.constexpr = SIDE * SIDE if UP else big * big
    pixels_out: tl.constexpr = big * big if UP else SIDE * SIDE
    tiles: tl.constexpr = (pixels_in + P - 1) // P
    blocks = (inputs + C - 1) // C * tiles
    c, p, mask = output_tile(program % blocks, inputs, not UP, SIDE, C, P, MATRIX)
    image = (program // blocks).to(tl.int64)  # counts the images of all models
    m = image % stack
    b_grad = sum_over_taps(
        grad_ptr + image * channels * pixels_out,
        w_ptr + m * inputs * channels * 16,
        c,
        p,
        channels,
        inputs,
        not UP,
        SIDE,
        K,
        MATRIX,
        PRECISION,
        acc,
    )
    row = image * inputs + c
    offset = tile_offsets(row, p, pixels_in)
    if TAPPED:
        b_grad += tl.load(tapped_ptr + offset, mask=mask, other=0).to(acc)
    b_grad = backward_through_activation_and_norm(
        b_grad,
        offset,
        mask,
        m * inputs + c,
        row,
        c < inputs,
        pixels_in,
        x_ptr,
        u_ptr,
        rstd_ptr,
        gamma_ptr,
        gamma_grad_ptr,
        beta_grad_ptr,
        NORM,
        ACTIVATION,
        SLOPE,
        acc,
    )
    tl.store(x_grad_ptr + offset, b_grad, mask=mask)


@triton.jit
def weight_gradient(
    program,
    grad_ptr,
    x_ptr,
    w_grad_ptr,
    programs,
    batch,
    stack,
    inputs,
    channels,
    stride_xn,
    stride_xm,
    UP: tl.constexpr,
    SIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TERMS: tl.constexpr,
    acc: tl.constexpr,
):
    """One tile of dw of one model."""
    big: tl.constexpr = 4 if SIDE == 1 else 2 * SIDE
    pixels_out: tl.constexpr = big * big if UP else SIDE * SIDE
    m = (program // (programs // stack)).to(tl.int64)
    tile = program % (programs // stack)
    x_ptr += m * stride_xm
    grad_ptr += m * channels * pixels_out
    stride_gn = stack.to(tl.int64) * channels * pixels_out
    small_channels = inputs if UP else channels
    big_channels = channels if UP else inputs
    across = (big_channels * 16 + COLUMNS - 1) // COLUMNS
    row = tile // across * ROWS + tl.arange(0, ROWS)
    column = tile % across * COLUMNS + tl.arange(0, COLUMNS)
    b_w_grad = sum_over_pixels(
        x_ptr if UP else grad_ptr,
        grad_ptr if UP else x_ptr,
        row,
        column,
        small_channels,
        big_channels,
        batch,
        stride_xn if UP else stride_gn,
        stride_gn if UP else stride_xn,
        SIDE,
        ROWS,
        COLUMNS,
        TERMS,
        PRECISION,
        acc,
    )
    offset = m * inputs * channels * 16 + (row * big_channels * 16)[:, None] + column[None, :]
    mask = (row < small_channels)[:, None] & (column < big_channels * 16)[None, :]
    tl.store(w_grad_ptr + offset, b_w_grad, mask=mask)


@triton.jit
def sum_over_images(parts_ptr, out_ptr, c, batch, channels, acc: tl.constexpr):
    """out[c] = Σ_n parts[n, c], in the order of the images."""
    b_sum = tl.zeros_like(c).to(acc)
    for _ in range(0, batch):
        b_sum += tl.load(parts_ptr + c, mask=c < channels, other=0).to(acc)
        parts_ptr += channels
    tl.store(out_ptr + c, b_sum, mask=c < channels)
