"""Forward pass of a layer: convolution, normalisation and activation in one launch.

One program owns whole channels of one image and model, or tiles of them where nothing is
normalised, so statistics never leave a program.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pkd_kernels import reference
from pkd_kernels.conv.geometry import LayerGeometry, layer_geometry, output_tile, tile_offsets
from pkd_kernels.conv.normalise import activate, normalise
from pkd_kernels.conv.products import sum_over_taps
from pkd_kernels.conv.tiling import launch_options, matmul_precision, tap_tiling
from pkd_kernels.reference import ConvLayer, accumulator


@triton.jit(do_not_specialize=["inputs", "channels", "stride_xn", "stride_xm"])
def conv_forward_kernel(
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
    """Compute y = act(γ u + β) with u the normalised convolution of x; SAVE keeps u and rstd."""
    m = tl.program_id(1)
    n = tl.program_id(2).to(tl.int64)
    acc: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    side: tl.constexpr = (4 if SIDE == 1 else 2 * SIDE) if UP else SIDE
    pixels: tl.constexpr = side * side
    c, p, mask = output_tile(tl.program_id(0), channels, UP, SIDE, C, P, MATRIX)
    b_y = sum_over_taps(
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
    offset = tile_offsets(row, p, pixels)
    if NORM:
        c_mask = c < channels
        b_y, rstd = normalise(b_y, mask, pixels, EPS)
        if SAVE:
            tl.store(u_ptr + offset, b_y, mask=mask)
            tl.store(rstd_ptr + row, rstd, mask=c_mask)
        b_gamma = tl.load(gamma_ptr + m * channels + c, mask=c_mask, other=0).to(acc)
        b_beta = tl.load(beta_ptr + m * channels + c, mask=c_mask, other=0).to(acc)
        b_y = b_y * b_gamma[None, :, None] + b_beta[None, :, None]
    b_y = activate(b_y, ACTIVATION, SLOPE)
    tl.store(y_ptr + offset, b_y, mask=mask)


class LayerOutput(NamedTuple):
    """A layer after its forward pass; its input is the `y` of the layer before.

    Attributes:
        layer: parameters, contiguous, and options.
        geometry: of the layer.
        y: (N, M*Co, Ho, Wo) output.
        u: normalised convolution, shaped as y; None where nothing is normalised or kept.
        rstd: (N, M*Co) 1 / √(var c + ε); None with u.
    """

    layer: ConvLayer
    geometry: LayerGeometry
    y: Tensor
    u: Tensor | None
    rstd: Tensor | None


def forward_layer(x: Tensor, layer: ConvLayer, stack: int, save: bool, first: bool) -> LayerOutput:
    """Run a layer.

    Args:
        x: contiguous input, (N, M*Ci, H, W); (N, Ci, H, W) allowed if `first`.
        layer: parameters and options of the layer.
        stack: M.
        save: whether to keep what the backward pass needs.
        first: whether the layer is the first of its chain.

    Raises:
        ValueError: see `layer_geometry`.
    """
    geometry = layer_geometry(layer, x, stack, first)
    layer = layer._replace(
        weight=layer.weight.contiguous(),
        gamma=None if layer.gamma is None else layer.gamma.contiguous(),
        beta=None if layer.beta is None else layer.beta.contiguous(),
    )
    batch, channels = x.shape[0], stack * geometry.outputs
    y = x.new_empty(batch, channels, geometry.side_out, geometry.side_out)
    norm = layer.gamma is not None
    u = torch.empty_like(y) if norm and save else None
    rstd = x.new_empty(batch, channels, dtype=accumulator(x)) if norm and save else None
    tiling = tap_tiling(
        geometry.up, geometry.side, geometry.inputs, geometry.outputs, norm, batch * stack
    )
    # An unused pointer is any tensor.
    conv_forward_kernel[(tiling.programs, stack, batch)](
        x,
        layer.weight,
        layer.gamma if norm else x,
        layer.beta if norm else x,
        y,
        y if u is None else u,
        y if rstd is None else rstd,
        geometry.inputs,
        geometry.outputs,
        x.stride(0),
        model_stride(x, geometry, stack),
        UP=geometry.up,
        SIDE=geometry.side,
        NORM=norm,
        ACTIVATION=layer.activation,
        SAVE=u is not None,
        EPS=reference.NORM_EPS,
        SLOPE=reference.LEAKY_SLOPE,
        **tiling.constants,
        PRECISION=matmul_precision(x),
        **launch_options(tiling.warps),
    )
    return LayerOutput(layer, geometry, y, u, rstd)


def model_stride(x: Tensor, geometry: LayerGeometry, stack: int) -> int:
    """Elements between the inputs of two models; 0 where all models share x."""
    if x.shape[1] != stack * geometry.inputs:
        return 0
    return geometry.inputs * geometry.side_in**2
