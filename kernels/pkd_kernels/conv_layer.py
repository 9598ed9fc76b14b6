"""A layer of 4x4 convolution, per-image normalisation and activation, forward and backward.

A layer joins a small map (S channels, s x s pixels) and a big one (B channels): 2s x 2s, padding 1,
or, where s = 1, 4x4 without padding. Its weight is w[S, B, 4, 4] in both directions:

    down   small[i, p] = Σ_{j,t} w[i, j, t] big[j, q(p, t)]       convolution
    up     big[j, q]   = Σ_{i,t} w[i, j, t] small[i, p(q, t)]     transposed convolution

with q(p, t) the pixel of the big map under tap t of pixel p, and p(q, t) its inverse, of which each
q has four. So the gradient to a layer's input is the other direction with the same weight, and

    dw[i, j, t] = Σ_{n,p} small[n, i, p] big[n, j, q(p, t)]

is one formula for both, where the map on the layer's output side is the gradient dc to the
convolution's result c. With u = (c - mean c) / √(var c + ε) of one channel of one image,

    y  = act(γ u + β)         g = dy act'            act' is read off y
    dβ = Σ g      dγ = Σ g u      dc = γ / √(var c + ε) (g - mean g - u mean(g u))

One program owns whole channels of one image (or tiles of them, where nothing is normalised), so
statistics never leave it. Forward is a launch a layer. Backward is a launch a layer too: some of
its programs make dw of the layer, the others the gradient to its input, which they carry on through
normalisation and activation of the layer before: it arrives there as dc. A tapped output's own
gradient is added on the way. Of several images dγ and dβ are left image by image, and a few
programs of the layer's own launch, which comes next, sum them.

A layer is summed up in one of two ways. Where few programs would have work, as for one small model,
each takes one channel and spreads the products of every sum over its threads. Where there are many,
each takes several channels, and a matrix product reads what a channel needs once for all of them.
dw is a matrix product, but between a map and a pixel, where nothing is summed but images.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pkd_kernels import reference
from pkd_kernels.reference import ConvLayer, accumulator

# Products that a program adds up, up to: (elements of the tile it works on, warps).
TILES = {2**15: (4096, 8), 2**31: (8192, 16)}
ELEMENTS_PER_THREAD = 16
PIXELS = 64  # of a program, where it need not own the whole map
POINT_CHANNELS = 32  # of a program, at most, where a channel is one pixel
# Matrix products: channels of a program, the most that leave so many programs; pixels at most, and
# elements of what it reads at once. Layers of fewer channels than MATRIX_LEAST are spread.
MATRIX_CHANNELS, MATRIX_PROGRAMS, MATRIX_LEAST = (16, 8, 4), 48, 3
MATRIX_PIXELS, MATRIX_ELEMENTS = 256, 4096
# Weights of a program that makes their gradients, rows by columns: the largest that leaves so many
# programs. Between a 4x4 map and a pixel nothing is summed but images, and memory is the limit.
WEIGHT_TILES, WEIGHT_PROGRAMS = ((64, 64), (32, 64), (16, 64), (16, 32), (8, 16)), 64
POINT_WEIGHTS = (16, 256)
WEIGHT_TERMS = 512  # rows by pixels of all images that such a program reads at once
MOST = 2**16 - 1  # images, and models, of a launch: what CUDA's grid has
CHANNELS = 128  # of a program that sums the gradients of gamma and beta over images


@triton.jit
def _tile(
    block,
    channels,
    UP: tl.constexpr,
    SIDE: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
    MATRIX: tl.constexpr,
):
    """c [C], p [Q, P / Q] and inside [1, C, P / Q]: channels, pixels and those there are, of a
    program. Q is 4, for even and odd rows and columns, where a matrix product makes a big map."""
    side: tl.constexpr = (4 if SIDE == 1 else 2 * SIDE) if UP else SIDE
    tiles: tl.constexpr = (side * side + P - 1) // P
    c = block // tiles * C + tl.arange(0, C)
    if MATRIX and UP:
        q = block % tiles * (P // 4) + tl.arange(0, P // 4)[None, :]
        there = q < SIDE * SIDE
        odd = tl.arange(0, 4)[:, None]
        p = (2 * (q // SIDE) + odd // 2) * side + 2 * (q % SIDE) + odd % 2
    else:
        p = block % tiles * P + tl.arange(0, P)[None, :]
        there = p < side * side
    return c, p, (c < channels)[None, :, None] & there[:, None, :]


@triton.jit
def _at(row, p, pixels):
    """[Q, C, P / Q] Where the pixels of a tile are."""
    return row[None, :, None] * pixels + p[:, None, :]


@triton.jit
def _sum(tile):
    """[C] Of a tile's pixels."""
    return tl.sum(tl.sum(tile, 2), 0)


# Addresses are sums of what belongs to the pixel and what belongs to the term k, so that of a tile
# of both an element takes one addition.


@triton.jit
def _big_at(p, k, SIDE: tl.constexpr):
    """Where tap k % 16 of the small map's pixel p lies in the big map's channel k // 16, and
    whether inside."""
    y = 2 * (p // SIDE) - 1
    x = 2 * (p % SIDE) - 1
    at = (y * (2 * SIDE) + x) + (k // 16 * (4 * SIDE * SIDE) + k // 4 % 4 * (2 * SIDE) + k % 4)
    y += k // 4 % 4
    x += k % 4
    return at, (y >= 0) & (y < 2 * SIDE) & (x >= 0) & (x < 2 * SIDE)


@triton.jit
def _small_at(y, x, k, SIDE: tl.constexpr):
    """Which pixel of the small map's channel k // 4 lies under the big map's pixel y, x, of two
    rows and two columns that do the one that k % 4 says, and whether it is inside."""
    y = (y + 1) // 2
    x = (x + 1) // 2
    at = (y * SIDE + x) + (k // 4 * (SIDE * SIDE) - k // 2 % 2 * SIDE - k % 2)
    y -= k // 2 % 2
    x -= k % 2
    return at, (y >= 0) & (y < SIDE) & (x >= 0) & (x < SIDE)


@triton.jit
def _weight_at(y, x, k, channels):
    """Where the weight of that pixel of the small map is, for the first of the big map's
    channels."""
    return ((y + 1) % 2 * 4 + (x + 1) % 2) + (k // 4 * channels * 16 + k // 2 % 2 * 8 + k % 2 * 2)


@triton.jit
def _spread_products(
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
    """[1, C, P] What pixels p of a channel c, or the single pixels of channels c, sum up; C or P is
    1, and a tile of products K by the other is spread over the threads."""
    taps: tl.constexpr = (1 if SIDE == 1 else 4) if UP else 16
    length = inputs * taps
    if SIDE == 1 and not UP:
        b_sum = tl.zeros([c.shape[0], K], acc)
        for start in range(0, length, K):
            k = start + tl.arange(0, K)[None, :]  # [1, K]
            b_source = tl.load(source_ptr + k, mask=k < length, other=0).to(acc)
            inside = (k < length) & (c < channels)[:, None]
            b_w = tl.load(w_ptr + (c * length)[:, None] + k, mask=inside, other=0).to(acc)
            b_sum += b_source * b_w  # [C, K]
        result = tl.sum(b_sum, 1)[None, :, None]
    else:
        b_sum = tl.zeros([K, p.shape[1]], acc)
        for start in range(0, length, K):
            k = start + tl.arange(0, K)[:, None]  # [K, 1]
            if SIDE == 1:
                inside = (k < length) & (p < 16)
                b_source = tl.load(source_ptr + k, mask=k < length, other=0).to(acc)
                at_w = (k * channels + c[None, :]) * 16 + p
                b_w = tl.load(w_ptr + at_w, mask=inside, other=0).to(acc)
            elif UP:
                y = p // (2 * SIDE)
                x = p % (2 * SIDE)
                at, inside = _small_at(y, x, k, SIDE)
                inside &= (k < length) & (y < 2 * SIDE)
                b_source = tl.load(source_ptr + at, mask=inside, other=0).to(acc)
                at_w = _weight_at(y, x, k, channels) + c[None, :] * 16
                b_w = tl.load(w_ptr + at_w, mask=inside, other=0).to(acc)
            else:
                at, inside = _big_at(p, k, SIDE)
                inside &= (k < length) & (p < SIDE * SIDE)
                b_source = tl.load(source_ptr + at, mask=inside, other=0).to(acc)
                at_w = c[None, :] * length + k
                b_w = tl.load(w_ptr + at_w, mask=k < length, other=0).to(acc)
            b_sum += b_source * b_w  # [K, P]
        result = tl.sum(b_sum, 0)[None, None, :]
    return result


@triton.jit
def _matrix_product(
    source_ptr,
    w_ptr,
    c,
    p,
    inputs,
    channels,
    UP: tl.constexpr,
    SIDE: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
    acc: tl.constexpr,
):
    """[Q, C, P / Q] What pixels p of channels c sum up."""
    if UP:
        # A pixel of the small map becomes four, of an even or odd row and column each.
        odd = tl.arange(0, 4)[:, None, None]
        y = (p // (2 * SIDE))[:, None, :]
        x = (p % (2 * SIDE))[:, None, :]
        result = tl.zeros([4, c.shape[0], p.shape[1]], acc)
        for start in range(0, inputs * 4, K):
            k = start + tl.arange(0, K)[None, :, None]
            at, inside = _small_at(y, x, k, SIDE)
            inside &= k < inputs * 4
            b_source = tl.load(source_ptr + at, mask=inside, other=0).to(acc)  # [4, K, P / 4]
            k = start + tl.arange(0, K)[None, None, :]
            at = _weight_at(odd // 2, odd % 2, k, channels) + c[None, :, None] * 16
            inside = (c[None, :, None] < channels) & (k < inputs * 4)
            b_w = tl.load(w_ptr + at, mask=inside, other=0).to(acc)  # [4, C, K]
            result = tl.dot(b_w, b_source, result, input_precision=PRECISION, out_dtype=acc)
    else:
        b_sum = tl.zeros([c.shape[0], p.shape[1]], acc)
        for start in range(0, inputs * 16, K):
            k = start + tl.arange(0, K)[:, None]
            at, inside = _big_at(p, k, SIDE)
            inside &= k < inputs * 16
            b_source = tl.load(source_ptr + at, mask=inside, other=0).to(acc)  # [K, P]
            k = start + tl.arange(0, K)[None, :]
            inside = (c < channels)[:, None] & (k < inputs * 16)
            at = c[:, None] * (inputs * 16) + k
            b_w = tl.load(w_ptr + at, mask=inside, other=0).to(acc)  # [C, K]
            b_sum = tl.dot(b_w, b_source, b_sum, input_precision=PRECISION, out_dtype=acc)
        result = b_sum[None]
    return result


@triton.jit
def _sum_over_taps(
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
    """[Q, C, P / Q] A layer's sums over its input's channels and taps, for a `_tile`."""
    if MATRIX:
        result = _matrix_product(
            source_ptr, w_ptr, c, p, inputs, channels, UP, SIDE, K, PRECISION, acc
        )
    else:
        result = _spread_products(source_ptr, w_ptr, c, p, inputs, channels, UP, SIDE, K, acc)
    return result


@triton.jit
def _sum_over_pixels(
    small_ptr,
    big_ptr,
    i,
    o,
    small_channels,
    big_channels,
    batch,
    stride_small,
    stride_big,
    SIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
    acc: tl.constexpr,
):
    """[ROWS, COLUMNS] Gradients of weights: small channels i by big channels and their taps o."""
    rows, columns = i < small_channels, o < big_channels * 16
    result = tl.zeros([ROWS, COLUMNS], acc)
    if SIDE == 1:
        for _ in range(0, batch):
            b_small = tl.load(small_ptr + i, mask=rows, other=0).to(acc)
            b_big = tl.load(big_ptr + o, mask=columns, other=0).to(acc)
            result += b_small[:, None] * b_big[None, :]
            small_ptr += stride_small
            big_ptr += stride_big
    else:
        pixels: tl.constexpr = SIDE * SIDE
        for start in range(0, batch * pixels, K):
            k = start + tl.arange(0, K)  # pixels of all images
            n, p = (k // pixels).to(tl.int64), k % pixels
            inside = rows[:, None] & (k < batch * pixels)[None, :]
            at = (n * stride_small + p)[None, :] + (i * pixels)[:, None]
            b_small = tl.load(small_ptr + at, mask=inside, other=0).to(acc)  # [ROWS, K]
            at, inside = _big_at(p[:, None], o[None, :], SIDE)
            at += (n * stride_big)[:, None]
            inside &= (k < batch * pixels)[:, None] & columns[None, :]
            b_big = tl.load(big_ptr + at, mask=inside, other=0).to(acc)  # [K, COLUMNS]
            result = tl.dot(b_small, b_big, result, input_precision=PRECISION, out_dtype=acc)
    return result


@triton.jit
def _back_through(
    b_grad,
    at,
    inside,
    channel,
    row,
    there,
    pixels,
    y_ptr,
    u_ptr,
    rstd_ptr,
    gamma_ptr,
    gamma_grad_ptr,
    beta_grad_ptr,
    NORM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    acc: tl.constexpr,
):
    """[Q, C, P / Q] The gradient to y becomes that to c: of channels `channel` [C] of the stack,
    which are `row` [C] of all images' channels, those that are `there`."""
    if ACTIVATION != "none":
        b_y = tl.load(y_ptr + at, mask=inside, other=0).to(acc)
        if ACTIVATION == "tanh":
            b_grad *= 1 - b_y * b_y
        if ACTIVATION == "relu":
            b_grad = tl.where(b_y <= 0, 0, b_grad)  # so that NaN stays NaN
        if ACTIVATION == "leaky_relu":
            b_grad = tl.where(b_y > 0, b_grad, SLOPE * b_grad)
    if NORM:
        b_grad = tl.where(inside, b_grad, 0)
        b_u = tl.load(u_ptr + at, mask=inside, other=0).to(acc)
        beta_grad = _sum(b_grad)
        gamma_grad = _sum(b_grad * b_u)
        tl.store(beta_grad_ptr + row, beta_grad, mask=there)
        tl.store(gamma_grad_ptr + row, gamma_grad, mask=there)
        factor = tl.load(gamma_ptr + channel, mask=there, other=0).to(acc)
        factor *= tl.load(rstd_ptr + row, mask=there, other=0).to(acc)
        b_grad -= (beta_grad * (1 / pixels))[None, :, None]
        b_grad -= b_u * (gamma_grad * (1 / pixels))[None, :, None]
        b_grad *= factor[None, :, None]
    return b_grad


@triton.jit
def _tanh(x):
    """A GPU divides and takes exponentials to two units in the last place: here they matter least
    where the gradient 1 - y * y cancels. NaN stays NaN."""
    e = tl.exp(-2 * tl.abs(x))
    y = 1 - 2 * e / (1 + e)
    return tl.where(x < 0, -y, y)


@triton.jit(do_not_specialize=["inputs", "channels", "stride_xn", "stride_xm"])
def _forward_kernel(
    x_ptr,
    w_ptr,
    gamma_ptr,
    beta_ptr,
    y_ptr,
    u_ptr,
    rstd_ptr,
    inputs,
    channels,
    stride_xn,
    stride_xm,
    UP: tl.constexpr,
    SIDE: tl.constexpr,
    NORM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SAVE: tl.constexpr,
    EPS: tl.constexpr,
    SLOPE: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
    K: tl.constexpr,
    MATRIX: tl.constexpr,
    PRECISION: tl.constexpr,
):
    m = tl.program_id(1)
    n = tl.program_id(2).to(tl.int64)
    acc: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    side: tl.constexpr = (4 if SIDE == 1 else 2 * SIDE) if UP else SIDE
    pixels: tl.constexpr = side * side
    c, p, inside = _tile(tl.program_id(0), channels, UP, SIDE, C, P, MATRIX)
    b_y = _sum_over_taps(
        x_ptr + n * stride_xn + m.to(tl.int64) * stride_xm,
        w_ptr + m.to(tl.int64) * inputs * channels * 16,
        c,
        p,
        inputs,
        channels,
        UP,
        SIDE,
        K,
        MATRIX,
        PRECISION,
        acc,
    )
    row = (n * tl.num_programs(1) + m) * channels + c
    at = _at(row, p, pixels)
    if NORM:
        there = c < channels
        b_y -= (_sum(tl.where(inside, b_y, 0)) * (1 / pixels))[None, :, None]
        variance = _sum(tl.where(inside, b_y * b_y, 0)) * (1 / pixels) + EPS
        rstd = 1 / tl.sqrt(variance)
        rstd *= 1.5 - 0.5 * variance * rstd * rstd  # Newton: a GPU's root and quotient are rough
        b_y *= rstd[None, :, None]
        if SAVE:
            tl.store(u_ptr + at, b_y, mask=inside)
            tl.store(rstd_ptr + row, rstd, mask=there)
        b_gamma = tl.load(gamma_ptr + m * channels + c, mask=there, other=0).to(acc)
        b_beta = tl.load(beta_ptr + m * channels + c, mask=there, other=0).to(acc)
        b_y = b_y * b_gamma[None, :, None] + b_beta[None, :, None]
    if ACTIVATION == "tanh":
        b_y = _tanh(b_y)
    if ACTIVATION == "relu":
        b_y = tl.where(b_y <= 0, 0, b_y)  # so that NaN stays NaN
    if ACTIVATION == "leaky_relu":
        b_y = tl.where(b_y > 0, b_y, SLOPE * b_y)
    tl.store(y_ptr + at, b_y, mask=inside)


@triton.jit
def _sum_over_images(parts_ptr, out_ptr, c, batch, channels, acc: tl.constexpr):
    b_sum = tl.zeros_like(c).to(acc)
    for _ in range(0, batch):
        b_sum += tl.load(parts_ptr + c, mask=c < channels, other=0).to(acc)
        parts_ptr += channels
    tl.store(out_ptr + c, b_sum, mask=c < channels)


@triton.jit(
    do_not_specialize=[
        "input_programs",
        "weight_programs",
        "batch",
        "stack",
        "inputs",
        "channels",
        "stride_xn",
        "stride_xm",
    ]
)
def _backward_kernel(
    grad_ptr,
    x_ptr,
    w_ptr,
    w_grad_ptr,
    x_grad_ptr,
    tapped_ptr,
    u_ptr,
    rstd_ptr,
    gamma_ptr,
    gamma_grad_ptr,
    beta_grad_ptr,
    own_gamma_parts_ptr,
    own_beta_parts_ptr,
    own_gamma_grad_ptr,
    own_beta_grad_ptr,
    input_programs,
    weight_programs,
    batch,
    stack,
    inputs,
    channels,
    stride_xn,
    stride_xm,
    UP: tl.constexpr,
    SIDE: tl.constexpr,
    NORM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    TAPPED: tl.constexpr,
    SUMS: tl.constexpr,
    SLOPE: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
    K: tl.constexpr,
    MATRIX: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TERMS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    acc: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    big: tl.constexpr = 4 if SIDE == 1 else 2 * SIDE
    pixels_in: tl.constexpr = SIDE * SIDE if UP else big * big
    pixels_out: tl.constexpr = big * big if UP else SIDE * SIDE
    program = tl.program_id(0)
    if program < input_programs:
        tiles: tl.constexpr = (pixels_in + P - 1) // P
        blocks = (inputs + C - 1) // C * tiles
        c, p, inside = _tile(program % blocks, inputs, not UP, SIDE, C, P, MATRIX)
        image = (program // blocks).to(tl.int64)  # of a model
        m = image % stack
        b_grad = _sum_over_taps(
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
        at = _at(row, p, pixels_in)
        if TAPPED:
            b_grad += tl.load(tapped_ptr + at, mask=inside, other=0).to(acc)
        b_grad = _back_through(
            b_grad,
            at,
            inside,
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
        tl.store(x_grad_ptr + at, b_grad, mask=inside)
    elif program < input_programs + weight_programs:
        program -= input_programs
        of_model = (program // (weight_programs // stack)).to(tl.int64)
        program = program % (weight_programs // stack)
        x_ptr += of_model * stride_xm
        grad_ptr += of_model * channels * pixels_out
        stride_gn = stack.to(tl.int64) * channels * pixels_out
        small_channels = inputs if UP else channels
        big_channels = channels if UP else inputs
        across = (big_channels * 16 + COLUMNS - 1) // COLUMNS
        i = program // across * ROWS + tl.arange(0, ROWS)
        o = program % across * COLUMNS + tl.arange(0, COLUMNS)
        b_w_grad = _sum_over_pixels(
            x_ptr if UP else grad_ptr,
            grad_ptr if UP else x_ptr,
            i,
            o,
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
        at = of_model * inputs * channels * 16 + (i * big_channels * 16)[:, None] + o[None, :]
        inside = (i < small_channels)[:, None] & (o < big_channels * 16)[None, :]
        tl.store(w_grad_ptr + at, b_w_grad, mask=inside)
    elif SUMS:
        own = (program - input_programs - weight_programs) * CHANNELS + tl.arange(0, CHANNELS)
        rows = stack * channels
        _sum_over_images(own_gamma_parts_ptr, own_gamma_grad_ptr, own, batch, rows, acc)
        _sum_over_images(own_beta_parts_ptr, own_beta_grad_ptr, own, batch, rows, acc)


@triton.jit(do_not_specialize=["channels"])
def _output_kernel(
    y_grad_ptr,
    y_ptr,
    u_ptr,
    rstd_ptr,
    gamma_ptr,
    gamma_grad_ptr,
    beta_grad_ptr,
    out_ptr,
    channels,
    PIXELS: tl.constexpr,
    NORM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    P: tl.constexpr,
):
    """The gradient to the last layer's y becomes that to its c."""
    acc: tl.constexpr = tl.float64 if y_ptr.dtype.element_ty == tl.float64 else tl.float32
    tiles: tl.constexpr = (PIXELS + P - 1) // P
    channel = tl.program_id(0) // tiles + tl.arange(0, 1)  # [1]
    row = tl.program_id(1).to(tl.int64) * channels + channel
    p = tl.program_id(0) % tiles * P + tl.arange(0, P)[None, :]
    at = _at(row, p, PIXELS)
    inside = (p < PIXELS)[:, None, :]
    b_grad = _back_through(
        tl.load(y_grad_ptr + at, mask=inside, other=0).to(acc),
        at,
        inside,
        channel,
        row,
        channel < channels,
        PIXELS,
        y_ptr,
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
    tl.store(out_ptr + at, b_grad, mask=inside)


class _Form(NamedTuple):
    """Geometry of a layer: what the kernels are compiled for, and its channels in one model."""

    up: bool
    side: int  # of the small map
    inputs: int
    outputs: int

    def map_side(self, big: bool) -> int:
        if not big:
            return self.side
        return 4 if self.side == 1 else 2 * self.side

    @property
    def side_in(self) -> int:
        return self.map_side(not self.up)

    @property
    def side_out(self) -> int:
        return self.map_side(self.up)


def _form(layer: ConvLayer, x: Tensor, stack: int, first: bool) -> _Form:
    """Geometry of a layer on x; ValueError where the kernels know none.

    Args:
        first: the layer is the first of its chain, whose input all models may share.
    """
    weight, side = layer.weight, x.shape[-1]
    stride_2 = (layer.stride, layer.padding) == (2, 1) and side > 1
    stride_2 &= layer.transposed or (side % 2 == 0 and side > 2)
    point = (layer.stride, layer.padding) == (1, 0) and side == (1 if layer.transposed else 4)
    if x.dim() != 4 or x.shape[-2] != side or not (stride_2 or point):
        raise ValueError(
            f"stride {layer.stride} and padding {layer.padding} on a map of "
            f"{tuple(x.shape[-2:])}: the kernels know stride 2, padding 1 on even squares, and "
            "stride 1, padding 0 between 4x4 and a pixel"
        )
    if weight.dim() != 4 or weight.shape[2:] != (4, 4) or weight.shape[0] % stack:
        raise ValueError(f"weight {tuple(weight.shape)} is not that of {stack} models, 4x4")
    if max(x.shape[0], stack) > MOST:
        raise ValueError(f"{x.shape[0]} images and {stack} models: {MOST} of each at most")
    inputs, outputs = weight.shape[0] // stack, weight.shape[1]
    if not layer.transposed:
        inputs, outputs = outputs, inputs
    if x.shape[1] != stack * inputs and not (first and x.shape[1] == inputs):
        raise ValueError(f"{x.shape[1]} channels, but {stack} models of {inputs} are convolved")
    small = 1 if point else side if layer.transposed else side // 2
    form = _Form(layer.transposed, small, inputs, outputs)
    for name, affine in (("gamma", layer.gamma), ("beta", layer.beta)):
        if (affine is None) != (layer.gamma is None):
            raise ValueError("gamma and beta come together")
        if affine is not None and (affine.shape != (stack * outputs,) or form.side_out == 1):
            raise ValueError(
                f"{name} {tuple(affine.shape)} on {stack} models of {outputs} channels of "
                f"{form.side_out} x {form.side_out} pixels: one a channel, more than one pixel"
            )
    if layer.activation not in reference.ACTIVATIONS:
        raise ValueError(f"activation {layer.activation!r} is none of {[*reference.ACTIVATIONS]}")
    tensors = [t for t in (x, *layer[:3]) if t is not None]
    if len({(t.dtype, t.device) for t in tensors}) > 1:
        raise ValueError(f"types or devices differ: {[(t.dtype, t.device) for t in tensors]}")
    return form


class _Tiling(NamedTuple):
    """How programs share out the maps of a layer's output, or of its input's gradient."""

    channels: int
    pixels: int
    products: int
    warps: int
    matrix: bool
    programs: int  # of one image and model

    @property
    def constants(self) -> dict[str, int | bool]:
        return {"C": self.channels, "P": self.pixels, "K": self.products, "MATRIX": self.matrix}


# Each launch asks for its tiling, and to work one out takes the host longer than to launch.
@lru_cache(maxsize=1024)
def _tiling(up: bool, side: int, inputs: int, channels: int, whole: bool, copies: int) -> _Tiling:
    """Of programs that sum over taps into maps of `channels`, of so many images and models."""
    return _matrix_tiling(up, side, channels, whole, copies) or _spread_tiling(
        up, side, inputs, channels, whole
    )


def _matrix_tiling(up: bool, side: int, channels: int, whole: bool, copies: int) -> _Tiling | None:
    """None where a matrix product does not pay."""
    pixels = triton.next_power_of_2(side * side) * (4 if up else 1)
    tile = min(pixels, MATRIX_PIXELS)
    if side == 1 or channels < MATRIX_LEAST or (whole and tile < pixels):
        return None
    tiles = triton.cdiv(side * side * (4 if up else 1), tile)
    for most in MATRIX_CHANNELS:
        c = min(most, triton.next_power_of_2(channels))
        programs = triton.cdiv(channels, c) * tiles
        if copies * programs >= MATRIX_PROGRAMS:
            k = max(16, min(32, MATRIX_ELEMENTS // tile))
            return _Tiling(c, tile, k, 8 if tile > 16 else 4, True, programs)
    return None


def _spread_tiling(up: bool, side: int, inputs: int, channels: int, whole: bool) -> _Tiling:
    big = 4 if side == 1 else 2 * side
    area = big * big if up else side * side
    terms = inputs * ((1 if side == 1 else 4) if up else 16)
    pixels = triton.next_power_of_2(area)
    o = pixels if whole else min(pixels, PIXELS)
    size, warps = next(entry for limit, entry in TILES.items() if terms * o <= limit)
    k = min(triton.next_power_of_2(terms), max(1, size // max(o, 2)))
    c = 1
    if pixels == 1:
        c = o = min(POINT_CHANNELS, size // k, triton.next_power_of_2(channels))
    warps = min(warps, max(1, o * k // (32 * ELEMENTS_PER_THREAD)))
    p = min(o, pixels)
    return _Tiling(c, p, k, warps, False, triton.cdiv(channels, c) * triton.cdiv(area, p))


class _WeightTiling(NamedTuple):
    """How programs share out the gradients of a layer's weights, a matrix rows by columns."""

    rows: int
    columns: int
    terms: int  # pixels that a program reads at once; a matrix product takes 16 or more
    warps: int
    programs: int  # of one model

    @property
    def constants(self) -> dict[str, int]:
        return {"ROWS": self.rows, "COLUMNS": self.columns, "TERMS": self.terms}


@lru_cache(maxsize=1024)
def _weight_tiling(side: int, small: int, big: int, batch: int, stack: int) -> _WeightTiling:
    """Of the weights between maps of `small` and of `big` channels: the largest tile that leaves
    programs enough, or the smallest."""
    height, width = small, 16 * big
    for rows, columns in (POINT_WEIGHTS,) if side == 1 else WEIGHT_TILES:
        rows = min(rows, triton.next_power_of_2(height))
        columns = min(columns, triton.next_power_of_2(width))
        programs = triton.cdiv(height, rows) * triton.cdiv(width, columns)
        if stack * programs >= WEIGHT_PROGRAMS:
            break
    pixels = triton.next_power_of_2(batch * side * side)
    terms = max(16, min(WEIGHT_TERMS // rows, 64, pixels))
    warps = min(8, max(1 if side == 1 else 4, rows * columns // 256))
    return _WeightTiling(rows, columns, terms, warps, programs)


def _registers(warps: int) -> dict[str, int]:
    """Options of a launch: all registers of a multiprocessor. Left to itself, ptxas at times takes
    64 a thread and spills one."""
    limit = min(255, 2**16 // (32 * warps))
    return {"num_warps": warps, "maxnreg": limit, "enable_fp_fusion": True}


def _precision(x: Tensor) -> str:
    """Of matrix products: TF32 where x is float32 and PyTorch is told to take it for its own."""
    # Set by all of PyTorch's switches; the older ones raise where a newer one contradicts them.
    told = torch.backends.cuda.matmul.fp32_precision
    return "tf32" if x.dtype == torch.float32 and told == "tf32" else "ieee"


class Done(NamedTuple):
    """A layer that has run: its input is the y of the one before."""

    layer: ConvLayer
    form: _Form
    y: Tensor
    u: Tensor | None
    rstd: Tensor | None


def forward_layer(x: Tensor, layer: ConvLayer, stack: int, save: bool, first: bool) -> Done:
    form = _form(layer, x, stack, first)
    layer = ConvLayer(*(t if t is None else t.contiguous() for t in layer[:3]), *layer[3:])
    batch, channels = x.shape[0], stack * form.outputs
    y = x.new_empty(batch, channels, form.side_out, form.side_out)
    norm = layer.gamma is not None
    u = torch.empty_like(y) if norm and save else None
    rstd = x.new_empty(batch, channels, dtype=accumulator(x)) if norm and save else None
    tiling = _tiling(form.up, form.side, form.inputs, form.outputs, norm, batch * stack)
    _forward_kernel[(tiling.programs, stack, batch)](
        x,
        layer.weight,
        layer.gamma if norm else x,
        layer.beta if norm else x,
        y,
        y if u is None else u,
        y if rstd is None else rstd,
        form.inputs,
        form.outputs,
        x.stride(0),
        0 if x.shape[1] != stack * form.inputs else form.inputs * form.side_in**2,
        UP=form.up,
        SIDE=form.side,
        NORM=norm,
        ACTIVATION=layer.activation,
        SAVE=u is not None,
        EPS=reference.NORM_EPS,
        SLOPE=reference.LEAKY_SLOPE,
        **tiling.constants,
        PRECISION=_precision(x),
        **_registers(tiling.warps),
    )
    return Done(layer, form, y, u, rstd)


class Affine(NamedTuple):
    """The gradients of a layer's gamma and beta: as the kernels leave them, and where they go.

    Those of one image go to their place at once; those of more are summed by the launch that makes
    the layer's weight gradient.
    """

    parts: tuple[Tensor, Tensor]  # (N, M*Co) each, or the targets
    targets: tuple[Tensor, Tensor]

    @property
    def to_be_summed(self) -> bool:
        return self.parts is not self.targets


def output_gradient(grad: Tensor, done: Done, affine: Affine | None) -> Tensor:
    """The gradient to the last layer's output, carried back to its convolution's result."""
    grad, norm = grad.contiguous(), done.layer.gamma is not None
    if not norm and done.layer.activation == "none":
        return grad
    batch, channels, side, _ = done.y.shape
    pixels = triton.next_power_of_2(side * side)
    p = pixels if norm else min(pixels, PIXELS)
    out = torch.empty_like(done.y)
    _output_kernel[(channels * triton.cdiv(side * side, p), batch)](
        grad,
        done.y,
        done.u if norm else grad,
        done.rstd if norm else grad,
        done.layer.gamma if norm else grad,
        *(affine.parts if norm else (grad, grad)),
        out,
        channels,
        PIXELS=side * side,
        NORM=norm,
        ACTIVATION=done.layer.activation,
        SLOPE=reference.LEAKY_SLOPE,
        P=p,
        **_registers(min(8, max(1, p // 128))),
    )
    return out


def backward_layer(
    grad: Tensor,
    x: Tensor,
    done: Done,
    own: Affine | None,
    before: Done | None,
    affine: Affine | None,
    tapped: Tensor | None,
    stack: int,
    weight_grad: Tensor | None,
    through: bool,
) -> Tensor:
    """Gradients of a layer's parameters, and `through` the layer before to its convolution.

    Args:
        grad: to the convolution's result.
        x: the layer's input.
        own: this layer's, to be summed here; None has nothing to sum.
        before: the layer that made x; without it the gradient to x itself is returned.
        affine: of the layer before, made here; None where it has none or is not reached.
        tapped: gradient that x gets from outside the chain.
        weight_grad: written; None makes none.

    Returns:
        The gradient to the result of the convolution before, or to x; unwritten if not `through`.
    """
    form, batch = done.form, x.shape[0]
    norm = affine is not None
    tiling = _tiling(not form.up, form.side, form.outputs, form.inputs, norm, batch * stack)
    small, big = (form.inputs, form.outputs)[:: 1 if form.up else -1]
    weights = _weight_tiling(form.side, small, big, batch, stack)
    input_programs = batch * stack * tiling.programs if through else 0
    weight_programs = 0 if weight_grad is None else stack * weights.programs
    sum_programs = 0 if own is None else triton.cdiv(stack * form.outputs, CHANNELS)
    out = x.new_empty(batch, stack * form.inputs, *x.shape[2:])
    _backward_kernel[(input_programs + weight_programs + sum_programs,)](
        grad,
        x,
        done.layer.weight,
        grad if weight_grad is None else weight_grad,
        out,
        grad if tapped is None else tapped.contiguous(),
        before.u if norm else grad,
        before.rstd if norm else grad,
        before.layer.gamma if norm else grad,
        *(affine.parts if norm else (grad, grad)),
        *((*own.parts, *own.targets) if own else (grad,) * 4),
        input_programs,
        weight_programs,
        batch,
        stack,
        form.inputs,
        form.outputs,
        x.stride(0),
        0 if x.shape[1] != stack * form.inputs else form.inputs * form.side_in**2,
        UP=form.up,
        SIDE=form.side,
        NORM=norm,
        ACTIVATION="none" if before is None else before.layer.activation,
        TAPPED=tapped is not None,
        SUMS=own is not None,
        SLOPE=reference.LEAKY_SLOPE,
        **tiling.constants,
        PRECISION=_precision(x),
        **weights.constants,
        CHANNELS=CHANNELS,
        **_registers(max(tiling.warps, weights.warps)),
    )
    return out
