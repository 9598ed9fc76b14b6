"""The geometry of a layer: which pixel of one map lies under which tap of a pixel of the other.

A layer joins a small map (S channels, s x s pixels) and a big map (B channels). The big map has
2s x 2s pixels (stride 2, padding 1) or, for s = 1, 4 x 4 pixels (stride 1, padding 0). "Down" is a
convolution from the big to the small map, "up" a transposed convolution from the small to the big
map. Pixel (y, x) of the small map lies under tap (ty, tx) of pixel (2y - 1 + ty, 2x - 1 + tx) of
the big map. README.md derives the sums over taps and pixels from this.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from pkd_kernels import reference
from pkd_kernels.reference import ConvLayer

MAX_GRID = 2**16 - 1  # images, and models, of one launch: the limit of CUDA's grid in y and z


class LayerGeometry(NamedTuple):
    """Geometry of a layer: the kernels are compiled for `up` and `side`.

    Attributes:
        up: whether the layer is a transposed convolution.
        side: pixels along one side of the small map.
        inputs: channels of one model that the layer reads.
        outputs: channels of one model that the layer writes.
    """

    up: bool
    side: int
    inputs: int
    outputs: int

    @property
    def side_in(self) -> int:
        """Pixels along one side of the layer's input."""
        return self.side if self.up else self._big_side

    @property
    def side_out(self) -> int:
        """Pixels along one side of the layer's output."""
        return self._big_side if self.up else self.side

    @property
    def _big_side(self) -> int:
        return 4 if self.side == 1 else 2 * self.side


def layer_geometry(layer: ConvLayer, x: Tensor, stack: int, first: bool) -> LayerGeometry:
    """Geometry of a layer applied to x.

    Args:
        layer: parameters and options of the layer.
        x: (N, M*Ci, H, W), or (N, Ci, H, W) shared by all models if `first`.
        stack: M.
        first: whether the layer is the first of its chain.

    Raises:
        ValueError: the kernels do not support the layer, or shapes, types or devices do not fit.
    """
    weight = layer.weight
    side = _small_side(layer, x)
    if weight.dim() != 4 or weight.shape[2:] != (4, 4) or weight.shape[0] % stack:
        raise ValueError(f"weight {tuple(weight.shape)} does not fit {stack} models of 4x4 taps")
    if max(x.shape[0], stack) > MAX_GRID:
        raise ValueError(
            f"{x.shape[0]} images and {stack} models: at most {MAX_GRID} of each are supported"
        )
    inputs, outputs = weight.shape[0] // stack, weight.shape[1]
    if not layer.transposed:
        inputs, outputs = outputs, inputs
    if x.shape[1] != stack * inputs and not (first and x.shape[1] == inputs):
        raise ValueError(
            f"the input has {x.shape[1]} channels, but the weight fits {stack} models of {inputs}"
        )
    geometry = LayerGeometry(layer.transposed, side, inputs, outputs)
    _check_affine(layer, geometry, stack)
    if layer.activation not in reference.ACTIVATIONS:
        raise ValueError(
            f"activation {layer.activation!r} is not one of {[*reference.ACTIVATIONS]}"
        )
    tensors = [t for t in (x, *layer[:3]) if t is not None]
    if len({(t.dtype, t.device) for t in tensors}) > 1:
        raise ValueError(f"types or devices differ: {[(t.dtype, t.device) for t in tensors]}")
    return geometry


def _small_side(layer: ConvLayer, x: Tensor) -> int:
    """Pixels along one side of the smaller of the layer's two maps."""
    side = x.shape[-1]
    stride_2 = (layer.stride, layer.padding) == (2, 1) and side > 1
    stride_2 &= layer.transposed or (side % 2 == 0 and side > 2)
    point = (layer.stride, layer.padding) == (1, 0) and side == (1 if layer.transposed else 4)
    if x.dim() != 4 or x.shape[-2] != side or not (stride_2 or point):
        raise ValueError(
            f"stride {layer.stride} and padding {layer.padding} on a map of "
            f"{tuple(x.shape[-2:])}: the kernels support stride 2, padding 1 on even squares, and "
            "stride 1, padding 0 between a 4x4 map and a single pixel"
        )
    if point:
        return 1
    return side if layer.transposed else side // 2


def _check_affine(layer: ConvLayer, geometry: LayerGeometry, stack: int) -> None:
    for name, affine in (("gamma", layer.gamma), ("beta", layer.beta)):
        if (affine is None) != (layer.gamma is None):
            raise ValueError("gamma and beta must be given together")
        channels, side = geometry.outputs, geometry.side_out
        if affine is not None and (affine.shape != (stack * channels,) or side == 1):
            raise ValueError(
                f"{name} {tuple(affine.shape)} on {stack} models of {channels} channels of "
                f"{side} x {side} pixels: one value a channel and more than one pixel are required"
            )


@triton.jit
def output_tile(
    block,
    channels,
    UP: tl.constexpr,
    SIDE: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
    MATRIX: tl.constexpr,
):
    """Channels c [C], pixels p [Q, P / Q] and mask [1, C, P / Q] of the tile of one program.

    Q is 4 where matrix products write a big map: one for each parity of row and column. Else 1.
    """
    side: tl.constexpr = (4 if SIDE == 1 else 2 * SIDE) if UP else SIDE
    tiles: tl.constexpr = (side * side + P - 1) // P
    c = block // tiles * C + tl.arange(0, C)
    if MATRIX and UP:
        q = block % tiles * (P // 4) + tl.arange(0, P // 4)[None, :]
        valid = q < SIDE * SIDE
        parity = tl.arange(0, 4)[:, None]
        p = (2 * (q // SIDE) + parity // 2) * side + 2 * (q % SIDE) + parity % 2
    else:
        p = block % tiles * P + tl.arange(0, P)[None, :]
        valid = p < side * side
    return c, p, (c < channels)[None, :, None] & valid[:, None, :]


@triton.jit
def tile_offsets(row, p, pixels):
    """Offsets [Q, C, P / Q] of a tile's elements; row [C] counts the channels of all images."""
    return row[None, :, None] * pixels + p[:, None, :]


# Offsets are a part for the pixel plus a part for the term k: one addition for each element.


@triton.jit
def big_map_offset(p, k, SIDE: tl.constexpr):
    """Offset and mask of the big map's pixel under tap k % 16 of pixel p, in channel k // 16."""
    y = 2 * (p // SIDE) - 1
    x = 2 * (p % SIDE) - 1
    offset = (y * (2 * SIDE) + x) + (k // 16 * (4 * SIDE * SIDE) + k // 4 % 4 * (2 * SIDE) + k % 4)
    y += k // 4 % 4
    x += k % 4
    return offset, (y >= 0) & (y < 2 * SIDE) & (x >= 0) & (x < 2 * SIDE)


@triton.jit
def small_map_offset(y, x, k, SIDE: tl.constexpr):
    """Offset and mask of the k % 4-th small pixel under the big pixel (y, x), in channel k // 4.

    Two rows by two columns of the small map have a tap on a pixel of the big map.
    """
    y = (y + 1) // 2
    x = (x + 1) // 2
    offset = (y * SIDE + x) + (k // 4 * (SIDE * SIDE) - k // 2 % 2 * SIDE - k % 2)
    y -= k // 2 % 2
    x -= k % 2
    return offset, (y >= 0) & (y < SIDE) & (x >= 0) & (x < SIDE)


@triton.jit
def weight_offset(y, x, k, channels):
    """Offset of the weight that joins the pixels of `small_map_offset`, for big channel 0."""
    return ((y + 1) % 2 * 4 + (x + 1) % 2) + (k // 4 * channels * 16 + k // 2 % 2 * 8 + k % 2 * 2)
