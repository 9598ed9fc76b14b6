"""Sums of products of a layer: over taps and input channels, and over pixels and images.

The sum over taps of one direction is the input gradient of the other, see README.md, so forward and
backward share `sum_over_taps`. Weight gradients are `sum_over_pixels`.
"""

import triton
import triton.language as tl

from pkd_kernels.conv.geometry import big_map_offset, small_map_offset, weight_offset


@triton.jit
def sum_over_taps(
    source_ptr,
    w_ptr,
    c,
    p,
    inputs,
    channels,
    UP: tl.constexpr,
    SIDE: tl.constexpr,
    K: tl.constexpr,
    MATRIX: tl.constexpr,
    PRECISION: tl.constexpr,
    acc: tl.constexpr,
):
    """Sums [Q, C, P / Q] over taps and input channels, for an `output_tile`."""
    if MATRIX:
        if UP:
            result = _matrix_up(source_ptr, w_ptr, c, p, inputs, channels, SIDE, K, PRECISION, acc)
        else:
            result = _matrix_down(
                source_ptr, w_ptr, c, p, inputs, channels, SIDE, K, PRECISION, acc
            )
    else:
        if SIDE == 1 and not UP:
            result = _spread_point(source_ptr, w_ptr, c, inputs, channels, K, acc)
        else:
            result = _spread(source_ptr, w_ptr, c, p, inputs, channels, UP, SIDE, K, acc)
    return result


@triton.jit
def _spread_point(source_ptr, w_ptr, c, inputs, channels, K: tl.constexpr, acc: tl.constexpr):
    """Sums [1, C, 1] of single pixels: products [C, K] are spread over the threads."""
    length = inputs * 16
    b_sum = tl.zeros([c.shape[0], K], acc)
    for start in range(0, length, K):
        k = start + tl.arange(0, K)[None, :]  # [1, K]
        b_source = tl.load(source_ptr + k, mask=k < length, other=0).to(acc)
        mask = (k < length) & (c < channels)[:, None]
        b_w = tl.load(w_ptr + (c * length)[:, None] + k, mask=mask, other=0).to(acc)
        b_sum += b_source * b_w  # [C, K]
    return tl.sum(b_sum, 1)[None, :, None]


@triton.jit
def _spread(
    source_ptr,
    w_ptr,
    c,
    p,
    inputs,
    channels,
    UP: tl.constexpr,
    SIDE: tl.constexpr,
    K: tl.constexpr,
    acc: tl.constexpr,
):
    """Sums [1, 1, P] of one channel: products [K, P] are spread over the threads."""
    taps: tl.constexpr = (1 if SIDE == 1 else 4) if UP else 16
    length = inputs * taps
    b_sum = tl.zeros([K, p.shape[1]], acc)
    for start in range(0, length, K):
        k = start + tl.arange(0, K)[:, None]  # [K, 1]
        if SIDE == 1:
            mask = (k < length) & (p < 16)
            b_source = tl.load(source_ptr + k, mask=k < length, other=0).to(acc)
            w_offset = (k * channels + c[None, :]) * 16 + p
            b_w = tl.load(w_ptr + w_offset, mask=mask, other=0).to(acc)
        elif UP:
            y = p // (2 * SIDE)
            x = p % (2 * SIDE)
            offset, mask = small_map_offset(y, x, k, SIDE)
            mask &= (k < length) & (y < 2 * SIDE)
            b_source = tl.load(source_ptr + offset, mask=mask, other=0).to(acc)
            w_offset = weight_offset(y, x, k, channels) + c[None, :] * 16
            b_w = tl.load(w_ptr + w_offset, mask=mask, other=0).to(acc)
        else:
            offset, mask = big_map_offset(p, k, SIDE)
            mask &= (k < length) & (p < SIDE * SIDE)
            b_source = tl.load(source_ptr + offset, mask=mask, other=0).to(acc)
            w_offset = c[None, :] * length + k
            b_w = tl.load(w_ptr + w_offset, mask=k < length, other=0).to(acc)
        b_sum += b_source * b_w  # [K, P]
    return tl.sum(b_sum, 0)[None, None, :]


@triton.jit
def _matrix_up(
    source_ptr,
    w_ptr,
    c,
    p,
    inputs,
    channels,
    SIDE: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
    acc: tl.constexpr,
):
    """Sums [4, C, P / 4] into the big map: one product for each parity of row and column."""
    parity = tl.arange(0, 4)[:, None, None]
    y = (p // (2 * SIDE))[:, None, :]
    x = (p % (2 * SIDE))[:, None, :]
    b_sum = tl.zeros([4, c.shape[0], p.shape[1]], acc)
    for start in range(0, inputs * 4, K):
        k = start + tl.arange(0, K)[None, :, None]
        offset, mask = small_map_offset(y, x, k, SIDE)
        mask &= k < inputs * 4
        b_source = tl.load(source_ptr + offset, mask=mask, other=0).to(acc)  # [4, K, P / 4]
        k = start + tl.arange(0, K)[None, None, :]
        w_offset = weight_offset(parity // 2, parity % 2, k, channels) + c[None, :, None] * 16
        mask = (c[None, :, None] < channels) & (k < inputs * 4)
        b_w = tl.load(w_ptr + w_offset, mask=mask, other=0).to(acc)  # [4, C, K]
        b_sum = tl.dot(b_w, b_source, b_sum, input_precision=PRECISION, out_dtype=acc)
    return b_sum


@triton.jit
def _matrix_down(
    source_ptr,
    w_ptr,
    c,
    p,
    inputs,
    channels,
    SIDE: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
    acc: tl.constexpr,
):
    """Sums [1, C, P] into the small map."""
    b_sum = tl.zeros([c.shape[0], p.shape[1]], acc)
    for start in range(0, inputs * 16, K):
        k = start + tl.arange(0, K)[:, None]
        offset, mask = big_map_offset(p, k, SIDE)
        mask &= k < inputs * 16
        b_source = tl.load(source_ptr + offset, mask=mask, other=0).to(acc)  # [K, P]
        k = start + tl.arange(0, K)[None, :]
        mask = (c < channels)[:, None] & (k < inputs * 16)
        w_offset = c[:, None] * (inputs * 16) + k
        b_w = tl.load(w_ptr + w_offset, mask=mask, other=0).to(acc)  # [C, K]
        b_sum = tl.dot(b_w, b_source, b_sum, input_precision=PRECISION, out_dtype=acc)
    return b_sum[None]


@triton.jit
def sum_over_pixels(
    small_ptr,
    big_ptr,
    row,
    column,
    small_channels,
    big_channels,
    batch,
    stride_small,
    stride_big,
    b_sum,
    SIDE: tl.constexpr,
    TERMS: tl.constexpr,
    PRECISION: tl.constexpr,
    acc: tl.constexpr,
):
    """Add weight gradients of `batch` images to b_sum [ROWS, COLUMNS].

    Rows are small channels, columns big channels and taps.
    """
    row_mask, column_mask = row < small_channels, column < big_channels * 16
    if SIDE == 1:
        for _ in range(0, batch):
            b_small = tl.load(small_ptr + row, mask=row_mask, other=0).to(acc)
            b_big = tl.load(big_ptr + column, mask=column_mask, other=0).to(acc)
            b_sum += b_small[:, None] * b_big[None, :]
            small_ptr += stride_small
            big_ptr += stride_big
    else:
        pixels: tl.constexpr = SIDE * SIDE
        for start in range(0, batch * pixels, TERMS):
            k = start + tl.arange(0, TERMS)  # pixels of all images
            n, p = (k // pixels).to(tl.int64), k % pixels
            mask = row_mask[:, None] & (k < batch * pixels)[None, :]
            offset = (n * stride_small + p)[None, :] + (row * pixels)[:, None]
            b_small = tl.load(small_ptr + offset, mask=mask, other=0).to(acc)  # [ROWS, TERMS]
            offset, mask = big_map_offset(p[:, None], column[None, :], SIDE)
            offset += (n * stride_big)[:, None]
            mask &= (k < batch * pixels)[:, None] & column_mask[None, :]
            b_big = tl.load(big_ptr + offset, mask=mask, other=0).to(acc)  # [TERMS, COLUMNS]
            b_sum = tl.dot(b_small, b_big, b_sum, input_precision=PRECISION, out_dtype=acc)
    return b_sum
