"""The three roles of a program of a backward launch, as device functions.

- `map_gradient`: the gradient of a map y, from the layers that read it and from outside of the
  chain, carried through the activation and normalisation of the layer that computed it: its dc.
- `weight_gradient`: a tile of a layer's weights, summed over the pixels of all images.
- `sum_over_images`: dγ and dβ of a layer. The launch before left them image by image.
"""

import triton
import triton.language as tl

from pkd_kernels.conv.geometry import output_tile, tile_offsets
from pkd_kernels.conv.normalise import backward_through_activation_and_norm
from pkd_kernels.conv.products import sum_over_pixels, sum_over_taps


@triton.jit
def map_gradient(
    program,
    stack,
    dc_ptrs,
    w_ptrs,
    tapped_ptr,
    y_ptr,
    u_ptr,
    rstd_ptr,
    gamma_ptr,
    gamma_grad_ptr,
    beta_grad_ptr,
    out_ptr,
    BATCHES: tl.constexpr,
    PROGRAMS: tl.constexpr,
    UP: tl.constexpr,
    SIDE: tl.constexpr,
    CHANNELS: tl.constexpr,
    SOURCES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
    K: tl.constexpr,
    MATRIX: tl.constexpr,
    PRECISION: tl.constexpr,
    SLOPE: tl.constexpr,
):
    """One tile of the gradient of a map, UP seen from the layers that read it.

    dc_ptrs: gradients of their convolutions, of SOURCES channels each; without any, the gradient
    from outside of the chain alone.
    """
    acc: tl.constexpr = tl.float64 if out_ptr.dtype.element_ty == tl.float64 else tl.float32
    big: tl.constexpr = 4 if SIDE == 1 else 2 * SIDE
    pixels: tl.constexpr = big * big if UP else SIDE * SIDE
    pixels_out: tl.constexpr = SIDE * SIDE if UP else big * big
    image = program // PROGRAMS  # counts the images of all models
    m = (image % stack).to(tl.int64)
    c, p, mask = output_tile(program % PROGRAMS, CHANNELS, UP, SIDE, C, P, MATRIX)
    row = image.to(tl.int64) * CHANNELS + c
    offset = tile_offsets(row, p, pixels)
    if len(dc_ptrs) == 0:
        b_grad = tl.load(tapped_ptr + offset, mask=mask, other=0).to(acc)
    for i in tl.static_range(len(dc_ptrs)):
        b_part = sum_over_taps(
            dc_ptrs[i] + image.to(tl.int64) * (SOURCES[i] * pixels_out),
            w_ptrs[i] + m * (SOURCES[i] * CHANNELS * 16),
            c,
            p,
            SOURCES[i],
            CHANNELS,
            UP,
            SIDE,
            K,
            MATRIX,
            PRECISION,
            acc,
        )
        if i == 0:
            b_grad = b_part
        else:
            b_grad += b_part
    if len(dc_ptrs) > 0 and tapped_ptr is not None:
        b_grad += tl.load(tapped_ptr + offset, mask=mask, other=0).to(acc)
    b_grad = backward_through_activation_and_norm(
        b_grad,
        offset,
        mask,
        m * CHANNELS + c,
        row,
        c < CHANNELS,
        pixels,
        y_ptr,
        u_ptr,
        rstd_ptr,
        gamma_ptr,
        gamma_grad_ptr,
        beta_grad_ptr,
        ACTIVATION,
        SLOPE,
        acc,
    )
    tl.store(out_ptr + offset, b_grad, mask=mask)


@triton.jit
def weight_gradient(
    program,
    batch,
    stack,
    x_ptrs,
    dc_ptr,
    out_ptr,
    BATCHES: tl.constexpr,
    PROGRAMS: tl.constexpr,
    UP: tl.constexpr,
    SIDE: tl.constexpr,
    INPUTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    SHARED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TERMS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of dw of one model; x_ptrs: equal parts of the images, one after the other."""
    acc: tl.constexpr = tl.float64 if out_ptr.dtype.element_ty == tl.float64 else tl.float32
    big: tl.constexpr = 4 if SIDE == 1 else 2 * SIDE
    size_x: tl.constexpr = INPUTS * (SIDE * SIDE if UP else big * big)
    size_dc: tl.constexpr = CHANNELS * (big * big if UP else SIDE * SIDE)
    small_channels: tl.constexpr = INPUTS if UP else CHANNELS
    big_channels: tl.constexpr = CHANNELS if UP else INPUTS
    across: tl.constexpr = (big_channels * 16 + COLUMNS - 1) // COLUMNS
    m = (program // PROGRAMS).to(tl.int64)
    tile = program % PROGRAMS
    row = tile // across * ROWS + tl.arange(0, ROWS)
    column = tile % across * COLUMNS + tl.arange(0, COLUMNS)
    stride_dc = stack.to(tl.int64) * size_dc
    stride_x = size_x if SHARED else stack.to(tl.int64) * size_x
    part = batch * BATCHES // len(x_ptrs)
    b_sum = tl.zeros([ROWS, COLUMNS], acc)
    for i in tl.static_range(len(x_ptrs)):
        x_ptr = x_ptrs[i] if SHARED else x_ptrs[i] + m * size_x
        grad_ptr = dc_ptr + m * size_dc + i * part * stride_dc
        b_sum = sum_over_pixels(
            x_ptr if UP else grad_ptr,
            grad_ptr if UP else x_ptr,
            row,
            column,
            small_channels,
            big_channels,
            part,
            stride_x if UP else stride_dc,
            stride_dc if UP else stride_x,
            b_sum,
            SIDE,
            TERMS,
            PRECISION,
            acc,
        )
    offset = m * (INPUTS * CHANNELS * 16) + (row * (big_channels * 16))[:, None] + column[None, :]
    mask = (row < small_channels)[:, None] & (column < big_channels * 16)[None, :]
    tl.store(out_ptr + offset, b_sum, mask=mask)


@triton.jit
def sum_over_images(parts_ptr, out_ptr, c, images, channels):
    """out[c] = Σ_n parts[n, c], in the order of the images; nothing where there are no parts."""
    if parts_ptr is not None:
        b_sum = tl.zeros(c.shape, parts_ptr.dtype.element_ty)
        for _ in range(0, images):
            b_sum += tl.load(parts_ptr + c, mask=c < channels, other=0)
            parts_ptr += channels
        tl.store(out_ptr + c, b_sum, mask=c < channels)
