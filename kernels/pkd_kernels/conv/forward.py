"""Forward pass of layers: convolution, normalisation and activation, one launch for many layers.

One program owns whole channels of one image and model of one layer, or tiles of them where nothing
is normalised, so statistics never leave a program. Layers of one launch do not depend on each
other; a program finds its layer by its number.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pkd_kernels import reference
from pkd_kernels.conv.geometry import LayerGeometry, layer_geometry, output_tile, tile_offsets
from pkd_kernels.conv.normalise import activate, normalise
from pkd_kernels.conv.products import sum_over_taps
from pkd_kernels.conv.tiling import Tiling, launch_options, matmul_precision, tap_tiling
from pkd_kernels.reference import ConvLayer, accumulator


@triton.jit
def layer_tile(
    program,
    stack,
    x_ptr,
    w_ptr,
    gamma_ptr,
    beta_ptr,
    y_ptr,
    u_ptr,
    rstd_ptr,
    PROGRAMS: tl.constexpr,
    UP: tl.constexpr,
    SIDE: tl.constexpr,
    INPUTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    SHARED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
    K: tl.constexpr,
    MATRIX: tl.constexpr,
    PRECISION: tl.constexpr,
    EPS: tl.constexpr,
    SLOPE: tl.constexpr,
):
    """One tile of y = act(γ u + β), with u the normalised convolution of x.

    Without gamma nothing is normalised; u and rstd are kept where there is memory for them.
    """
    acc: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    big: tl.constexpr = 4 if SIDE == 1 else 2 * SIDE
    pixels: tl.constexpr = big * big if UP else SIDE * SIDE
    pixels_in: tl.constexpr = SIDE * SIDE if UP else big * big
    image = program // PROGRAMS  # counts the images of all models
    m = image % stack
    c, p, mask = output_tile(program % PROGRAMS, CHANNELS, UP, SIDE, C, P, MATRIX)
    b_y = sum_over_taps(
        x_ptr + (image // stack if SHARED else image).to(tl.int64) * (INPUTS * pixels_in),
        w_ptr + m.to(tl.int64) * (INPUTS * CHANNELS * 16),
        c,
        p,
        INPUTS,
        CHANNELS,
        UP,
        SIDE,
        K,
        MATRIX,
        PRECISION,
        acc,
    )
    row = image.to(tl.int64) * CHANNELS + c
    offset = tile_offsets(row, p, pixels)
    if gamma_ptr is not None:
        c_mask = c < CHANNELS
        b_y, rstd = normalise(b_y, mask, pixels, EPS)
        if u_ptr is not None:
            tl.store(u_ptr + offset, b_y, mask=mask)
            tl.store(rstd_ptr + row, rstd, mask=c_mask)
        b_gamma = tl.load(gamma_ptr + m * CHANNELS + c, mask=c_mask, other=0).to(acc)
        b_beta = tl.load(beta_ptr + m * CHANNELS + c, mask=c_mask, other=0).to(acc)
        b_y = b_y * b_gamma[None, :, None] + b_beta[None, :, None]
    b_y = activate(b_y, ACTIVATION, SLOPE)
    tl.store(y_ptr + offset, b_y, mask=mask)


@triton.jit(do_not_specialize=["batch", "stack"])
def conv_forward_kernel(
    layers,
    batch,
    stack,
    LAYERS: tl.constexpr,
    PRECISION: tl.constexpr,
    EPS: tl.constexpr,
    SLOPE: tl.constexpr,
):
    """Give each program a tile of one layer: pointers `layers[i]` and constants `LAYERS[i]`."""
    program = tl.program_id(0)
    for i in tl.static_range(len(LAYERS)):
        programs = batch * stack * LAYERS[i][0]
        if (program >= 0) & (program < programs):
            layer_tile(program, stack, *layers[i], *LAYERS[i], PRECISION, EPS, SLOPE)
        program -= programs


class LayerOutput(NamedTuple):
    """A layer and its output; its input is the `y` of the layer before.

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

    def rows(self, rows: slice) -> "LayerOutput":
        """The output of some of the images."""
        u, rstd = (t if t is None else t[rows] for t in (self.u, self.rstd))
        return self._replace(y=self.y[rows], u=u, rstd=rstd)


class LayerPointers(NamedTuple):
    """Tensors that `layer_tile` reads and writes."""

    x: Tensor
    w: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    y: Tensor
    u: Tensor | None
    rstd: Tensor | None


class LayerProblem(NamedTuple):
    """A layer to be computed in a launch.

    Attributes:
        pointers: its tensors.
        geometry: of the layer.
        shared: whether all models read the same images.
        activation: of the layer.
        tiling: of the sum over taps.
        arguments: those of `tap_tiling`.
    """

    pointers: LayerPointers
    geometry: LayerGeometry
    shared: bool
    activation: str
    tiling: Tiling
    arguments: tuple[Any, ...]

    @property
    def constants(self) -> tuple[object, ...]:
        """Compile-time constants of `layer_tile`; a string in a tuple must be a constexpr."""
        fixed = (*self.geometry, self.shared, tl.constexpr(self.activation))
        return (self.tiling.programs, *fixed, *self.tiling.constants)


def empty_output(
    x: Tensor, layer: ConvLayer, stack: int, *, save: bool, first: bool, images: int | None = None
) -> LayerOutput:
    """Memory for the output of a layer.

    Args:
        x: contiguous input, (N, M*Ci, H, W); (N, Ci, H, W) allowed if `first`.
        layer: parameters and options of the layer.
        stack: M.
        save: whether to keep what the backward pass needs.
        first: whether the layer is the first of its chain.
        images: of the output; None is N.

    Raises:
        ValueError: see `layer_geometry`.
    """
    geometry = layer_geometry(layer, x, stack, first)
    layer = layer.map(Tensor.contiguous)
    shape = (x.shape[0] if images is None else images, stack * geometry.outputs)
    y = x.new_empty(*shape, geometry.side_out, geometry.side_out)
    kept = save and layer.gamma is not None
    u = torch.empty_like(y) if kept else None
    return LayerOutput(
        layer, geometry, y, u, x.new_empty(shape, dtype=accumulator(x)) if kept else None
    )


def layer_problem(x: Tensor, output: LayerOutput, stack: int) -> LayerProblem:
    """The computation of a layer's output from its contiguous input."""
    layer, geometry = output.layer, output.geometry
    arguments = (
        geometry.up,
        geometry.side,
        geometry.inputs,
        geometry.outputs,
        layer.gamma is not None,
        len(x) * stack,
    )
    return LayerProblem(
        LayerPointers(x, layer.weight, layer.gamma, layer.beta, output.y, output.u, output.rstd),
        geometry,
        x.shape[1] != stack * geometry.inputs,
        layer.activation,
        tap_tiling(*arguments),
        arguments,
    )


def launch_layers(problems: Sequence[LayerProblem], stack: int) -> None:
    """Compute layers that do not depend on each other, of equally many images, in one launch."""
    x = problems[0].pointers.x
    programs = sum(problem.tiling.programs for problem in problems)
    conv_forward_kernel[(len(x) * stack * programs,)](
        tuple(problem.pointers for problem in problems),
        len(x),
        stack,
        LAYERS=tuple(problem.constants for problem in problems),
        PRECISION=matmul_precision(x),
        EPS=reference.NORM_EPS,
        SLOPE=reference.LEAKY_SLOPE,
        **launch_options(max(problem.tiling.warps for problem in problems)),
    )
