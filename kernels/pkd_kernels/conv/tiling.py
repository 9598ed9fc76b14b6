"""How the programs of a launch share the work: static tables by shape, no tuner.

A sum over taps is computed in one of two ways. "Spread": a program takes one channel and spreads
the products of each sum over its threads, which keeps a small model at batch 1 busy. "Matrix": a
program takes several channels and uses a matrix product, which reads each input once for all its
channels; used where enough programs remain.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

# Spread: products of a program, up to -> (elements of the tile it works on, warps). Where a launch
# has few programs, its time is that of one program, whose loop trips wait for each other: up to
# SINGLE_TRIP products are one tile. With more warps, or more terms of a sum, registers spill in
# float64.
SPREAD_TILES = {2**15: (4096, 8), 2**31: (8192, 16)}
SINGLE_TRIP, SINGLE_TRIP_TERMS, SINGLE_TRIP_WARPS, SINGLE_TRIP_PROGRAMS = 2**14, 128, 8, 132
ELEMENTS_PER_THREAD = 16
PIXELS = 64  # of a program that does not need the whole map
POINT_CHANNELS = 32  # of a program, at most, where a channel is one pixel

# Matrix: channels of a program, the first entry that leaves at least MATRIX_PROGRAMS programs;
# fewer channels than MATRIX_MIN_CHANNELS are spread. Pixels at most, and elements read at once.
MATRIX_CHANNELS, MATRIX_PROGRAMS, MATRIX_MIN_CHANNELS = (16, 8, 4), 48, 3
MATRIX_PIXELS, MATRIX_ELEMENTS = 256, 4096

# Weight gradients: (rows, columns) of a program, the first entry that leaves WEIGHT_PROGRAMS
# programs. Between a 4x4 map and a pixel only images are summed: memory is the limit.
WEIGHT_TILES, WEIGHT_PROGRAMS = ((64, 64), (32, 64), (16, 64), (16, 32), (8, 16)), 64
POINT_WEIGHTS = (16, 256)
# Rows by pixels of all images that such a program reads at once, and pixels, at most.
WEIGHT_TERMS, WEIGHT_PIXELS = 512, 64

AFFINE_CHANNELS = 128  # of a program that sums the gradients of gamma and beta over images


class Tiling(NamedTuple):
    """Tiles of a sum over taps, for a layer's output or for its input's gradient.

    Attributes:
        channels: C, of a program.
        pixels: P, of a program.
        products: K, terms of a sum that are added at once.
        warps: of a program.
        matrix: whether the sums are matrix products.
        programs: of one image and model.
    """

    channels: int
    pixels: int
    products: int
    warps: int
    matrix: bool
    programs: int

    @property
    def constants(self) -> tuple[int | bool, ...]:
        """Compile-time constants C, P, K and MATRIX of the kernels."""
        return (self.channels, self.pixels, self.products, self.matrix)


# Every launch looks its tiling up; computing one takes the host longer than the launch.
@lru_cache(maxsize=1024)
def tap_tiling(up: bool, side: int, inputs: int, channels: int, whole: bool, copies: int) -> Tiling:
    """Tiles of the sum over taps that writes `channels` channels.

    Args:
        up: whether the written map is the big one.
        side: pixels along one side of the small map.
        inputs: channels that are summed.
        channels: channels that are written.
        whole: whether a program must own the whole map of a channel, for its statistics.
        copies: images times models.
    """
    return _matrix_tiling(up, side, channels, whole, copies) or _spread_tiling(
        up, side, inputs, channels, whole, copies
    )


def tap_terms(up: bool, side: int, inputs: int) -> int:
    """Products of one sum over taps."""
    return inputs * ((1 if side == 1 else 4) if up else 16)


def _matrix_tiling(up: bool, side: int, channels: int, whole: bool, copies: int) -> Tiling | None:
    """Tiles of a matrix product; None where spreading is preferred."""
    pixels = triton.next_power_of_2(side * side) * (4 if up else 1)
    tile = min(pixels, MATRIX_PIXELS)
    if side == 1 or channels < MATRIX_MIN_CHANNELS or (whole and tile < pixels):
        return None
    tiles = triton.cdiv(side * side * (4 if up else 1), tile)
    for most in MATRIX_CHANNELS:
        c = min(most, triton.next_power_of_2(channels))
        programs = triton.cdiv(channels, c) * tiles
        if copies * programs >= MATRIX_PROGRAMS:
            k = max(16, min(32, MATRIX_ELEMENTS // tile))
            return Tiling(c, tile, k, 8 if tile > 16 else 4, True, programs)
    return None


def _spread_tiling(
    up: bool, side: int, inputs: int, channels: int, whole: bool, copies: int
) -> Tiling:
    """Tiles of a sum whose products are spread over the threads of a program."""
    big = 4 if side == 1 else 2 * side
    area = big * big if up else side * side
    terms = tap_terms(up, side, inputs)
    pixels = triton.next_power_of_2(area)
    outputs = pixels if whole else min(pixels, PIXELS)
    products = triton.next_power_of_2(terms) * max(outputs, 2)
    few = copies * channels * triton.cdiv(area, outputs) <= SINGLE_TRIP_PROGRAMS
    if few and pixels > 1 and products <= SINGLE_TRIP and terms <= SINGLE_TRIP_TERMS:
        size, warps = products, SINGLE_TRIP_WARPS
    else:
        entries = SPREAD_TILES.items()
        size, warps = next(entry for limit, entry in entries if terms * outputs <= limit)
    k = min(triton.next_power_of_2(terms), max(1, size // max(outputs, 2)))
    c = 1
    if pixels == 1:
        c = outputs = min(POINT_CHANNELS, size // k, triton.next_power_of_2(channels))
    warps = min(warps, max(1, outputs * k // (32 * ELEMENTS_PER_THREAD)))
    p = min(outputs, pixels)
    return Tiling(c, p, k, warps, False, triton.cdiv(channels, c) * triton.cdiv(area, p))


def elementwise_tiling(side: int, channels: int, whole: bool) -> Tiling:
    """Tiles of a map of `side` x `side` pixels where nothing is summed over taps."""
    pixels = triton.next_power_of_2(side * side)
    p = pixels if whole else min(pixels, PIXELS)
    warps = min(8, max(1, p // 128))
    return Tiling(1, p, 1, warps, False, channels * triton.cdiv(side * side, p))


class WeightTiling(NamedTuple):
    """Tiles of a layer's weight gradient, a matrix of small channels by big channels and taps.

    Attributes:
        rows: of a program.
        columns: of a program.
        terms: pixels read at once; a matrix product requires at least 16.
        warps: of a program.
        programs: of one model.
    """

    rows: int
    columns: int
    terms: int
    warps: int
    programs: int

    @property
    def constants(self) -> tuple[int, ...]:
        """Compile-time constants ROWS, COLUMNS and TERMS of the backward kernel."""
        return (self.rows, self.columns, self.terms)


@lru_cache(maxsize=1024)
def weight_tiling(side: int, small: int, big: int, batch: int, stack: int) -> WeightTiling:
    """Tiles of the weights between `small` and `big` channels.

    The first tile that leaves enough programs, or the smallest.
    """
    height, width = small, 16 * big
    for rows, columns in (POINT_WEIGHTS,) if side == 1 else WEIGHT_TILES:
        rows = min(rows, triton.next_power_of_2(height))
        columns = min(columns, triton.next_power_of_2(width))
        programs = triton.cdiv(height, rows) * triton.cdiv(width, columns)
        if stack * programs >= WEIGHT_PROGRAMS:
            break
    pixels = triton.next_power_of_2(batch * side * side)
    few = stack * programs <= SINGLE_TRIP_PROGRAMS and rows * columns <= 1024
    terms = max(16, min(WEIGHT_TERMS // rows, WEIGHT_PIXELS, pixels))
    least = 1 if side == 1 else 8 if few else 4
    warps = min(8, max(least, rows * columns // 256))
    return WeightTiling(rows, columns, terms, warps, programs)


def launch_options(warps: int) -> dict[str, int | bool]:
    """Options of a launch: warps, and all registers of a multiprocessor.

    Without a limit, ptxas sometimes takes 64 registers a thread and spills one.
    """
    limit = min(255, 2**16 // (32 * warps))
    return {"num_warps": warps, "maxnreg": limit, "enable_fp_fusion": True}


def matmul_precision(x: Tensor) -> str:
    """Precision of matrix products: "tf32" where x is float32 and PyTorch takes TF32, or "ieee"."""
    # All of PyTorch's switches set this one; the older ones raise where a newer contradicts them.
    switch = torch.backends.cuda.matmul.fp32_precision
    return "tf32" if x.dtype == torch.float32 and switch == "tf32" else "ieee"
