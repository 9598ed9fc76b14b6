"""Backward pass of a layer: one launch whose programs have one of three roles, see `gradients`.

Only the last layer of a chain may need a launch more, `conv_output_gradient_kernel`.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pkd_kernels import reference
from pkd_kernels.conv.forward import LayerOutput, model_stride
from pkd_kernels.conv.geometry import tile_offsets
from pkd_kernels.conv.gradients import input_gradient, sum_over_images, weight_gradient
from pkd_kernels.conv.normalise import backward_through_activation_and_norm
from pkd_kernels.conv.tiling import (
    AFFINE_CHANNELS,
    PIXELS,
    launch_options,
    matmul_precision,
    tap_tiling,
    weight_tiling,
)


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
def conv_backward_kernel(
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
    layer_gamma_parts_ptr,
    layer_beta_parts_ptr,
    layer_gamma_grad_ptr,
    layer_beta_grad_ptr,
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
    """Give each program its role by its number. gamma, NORM and ACTIVATION: of the layer before."""
    acc: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0)
    if program < input_programs:
        input_gradient(
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
            UP,
            SIDE,
            NORM,
            ACTIVATION,
            TAPPED,
            SLOPE,
            C,
            P,
            K,
            MATRIX,
            PRECISION,
            acc,
        )
    elif program < input_programs + weight_programs:
        weight_gradient(
            program - input_programs,
            grad_ptr,
            x_ptr,
            w_grad_ptr,
            weight_programs,
            batch,
            stack,
            inputs,
            channels,
            stride_xn,
            stride_xm,
            UP,
            SIDE,
            PRECISION,
            ROWS,
            COLUMNS,
            TERMS,
            acc,
        )
    elif SUMS:
        c = (program - input_programs - weight_programs) * CHANNELS + tl.arange(0, CHANNELS)
        sum_over_images(
            layer_gamma_parts_ptr, layer_gamma_grad_ptr, c, batch, stack * channels, acc
        )
        sum_over_images(layer_beta_parts_ptr, layer_beta_grad_ptr, c, batch, stack * channels, acc)


@triton.jit(do_not_specialize=["channels"])
def conv_output_gradient_kernel(
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
    """Gradient dc of the last layer's convolution from the gradient of its output y."""
    acc: tl.constexpr = tl.float64 if y_ptr.dtype.element_ty == tl.float64 else tl.float32
    tiles: tl.constexpr = (PIXELS + P - 1) // P
    channel = tl.program_id(0) // tiles + tl.arange(0, 1)  # [1]
    row = tl.program_id(1).to(tl.int64) * channels + channel
    p = tl.program_id(0) % tiles * P + tl.arange(0, P)[None, :]
    offset = tile_offsets(row, p, PIXELS)
    mask = (p < PIXELS)[:, None, :]
    b_grad = backward_through_activation_and_norm(
        tl.load(y_grad_ptr + offset, mask=mask, other=0).to(acc),
        offset,
        mask,
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
    tl.store(out_ptr + offset, b_grad, mask=mask)


class AffineGradients(NamedTuple):
    """Buffers for the gradients of a layer's gamma and beta.

    Attributes:
        parts: (N, M*Co) each, one row for each image; the targets themselves for one image.
        targets: (M*Co,) each. The layer's own backward launch sums the parts into them.
    """

    parts: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]

    @property
    def needs_sum(self) -> bool:
        """Whether the parts must be summed over images."""
        return self.parts is not self.targets


def output_gradient(grad: Tensor, output: LayerOutput, affine: AffineGradients | None) -> Tensor:
    """Gradient of the last layer's convolution from that of its output.

    Args:
        grad: gradient of `output.y`.
        output: the last layer.
        affine: buffers of its affine gradients; None where nothing is normalised.
    """
    grad, norm = grad.contiguous(), affine is not None
    if not norm and output.layer.activation == "none":
        return grad
    batch, channels, side, _ = output.y.shape
    pixels = triton.next_power_of_2(side * side)
    p = pixels if norm else min(pixels, PIXELS)
    out = torch.empty_like(output.y)
    conv_output_gradient_kernel[(channels * triton.cdiv(side * side, p), batch)](
        grad,
        output.y,
        output.u if norm else grad,
        output.rstd if norm else grad,
        output.layer.gamma if norm else grad,
        *(affine.parts if affine else (grad, grad)),
        out,
        channels,
        PIXELS=side * side,
        NORM=norm,
        ACTIVATION=output.layer.activation,
        SLOPE=reference.LEAKY_SLOPE,
        P=p,
        **launch_options(min(8, max(1, p // 128))),
    )
    return out


def backward_layer(
    grad: Tensor,
    x: Tensor,
    output: LayerOutput,
    pending: AffineGradients | None,
    before: LayerOutput | None,
    affine: AffineGradients | None,
    tapped: Tensor | None,
    stack: int,
    weight_grad: Tensor | None,
    through: bool,
) -> Tensor:
    """Compute a layer's weight gradient and carry the gradient on to the layer before.

    Args:
        grad: gradient of the layer's convolution.
        x: the layer's input.
        output: the layer.
        pending: this layer's affine gradients, to be summed over images here; None for none.
        before: the layer that computed x; None returns the gradient of x itself.
        affine: buffers of the affine gradients of the layer before, written here; None where it is
            not normalised or not reached.
        tapped: gradient of x from outside the chain, added to the chain's; None for none.
        stack: M.
        weight_grad: buffer of the weight gradient; None computes none.
        through: whether anything before this layer needs a gradient.

    Returns:
        Gradient of the convolution of the layer before, or of x; uninitialised if not `through`.
    """
    geometry, batch = output.geometry, x.shape[0]
    norm = affine is not None
    tiling = tap_tiling(
        not geometry.up, geometry.side, geometry.outputs, geometry.inputs, norm, batch * stack
    )
    small, big = (geometry.inputs, geometry.outputs)[:: 1 if geometry.up else -1]
    weights = weight_tiling(geometry.side, small, big, batch, stack)
    input_programs = batch * stack * tiling.programs if through else 0
    weight_programs = 0 if weight_grad is None else stack * weights.programs
    sum_programs = triton.cdiv(stack * geometry.outputs, AFFINE_CHANNELS) if pending else 0
    out = x.new_empty(batch, stack * geometry.inputs, *x.shape[2:])
    # An unused pointer is any tensor.
    conv_backward_kernel[(input_programs + weight_programs + sum_programs,)](
        grad,
        x,
        output.layer.weight,
        grad if weight_grad is None else weight_grad,
        out,
        grad if tapped is None else tapped.contiguous(),
        before.u if before and norm else grad,
        before.rstd if before and norm else grad,
        before.layer.gamma if before and norm else grad,
        *(affine.parts if affine else (grad, grad)),
        *((*pending.parts, *pending.targets) if pending else (grad,) * 4),
        input_programs,
        weight_programs,
        batch,
        stack,
        geometry.inputs,
        geometry.outputs,
        x.stride(0),
        model_stride(x, geometry, stack),
        UP=geometry.up,
        SIDE=geometry.side,
        NORM=norm,
        ACTIVATION="none" if before is None else before.layer.activation,
        TAPPED=tapped is not None,
        SUMS=pending is not None,
        SLOPE=reference.LEAKY_SLOPE,
        **tiling.constants,
        PRECISION=matmul_precision(x),
        **weights.constants,
        CHANNELS=AFFINE_CHANNELS,
        **launch_options(max(tiling.warps, weights.warps)),
    )
    return out
