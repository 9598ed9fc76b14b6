"""Backward pass of layers: launches whose programs have one of three roles, see `gradients`.

The problems of one launch do not depend on each other; a program finds its problem by its number.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pkd_kernels import reference
from pkd_kernels.conv.forward import LayerOutput
from pkd_kernels.conv.geometry import LayerGeometry
from pkd_kernels.conv.gradients import map_gradient, sum_over_images, weight_gradient
from pkd_kernels.conv.tiling import (
    AFFINE_CHANNELS,
    Tiling,
    WeightTiling,
    elementwise_tiling,
    launch_options,
    matmul_precision,
    tap_tiling,
    weight_tiling,
)


@triton.jit(do_not_specialize=["batch", "stack"])
def conv_backward_kernel(
    maps,
    weights,
    sums,
    batch,
    stack,
    MAPS: tl.constexpr,
    WEIGHTS: tl.constexpr,
    SUMS: tl.constexpr,
    PRECISION: tl.constexpr,
    SLOPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Give each program its role by its number.

    `maps[i]`, `weights[i]` and `sums[i]` are pointers; the constants MAPS[i], WEIGHTS[i] and
    SUMS[i] begin with the number of batches that a problem has.
    """
    program = tl.program_id(0)
    for i in tl.static_range(len(MAPS)):
        programs = batch * stack * MAPS[i][0] * MAPS[i][1]
        if (program >= 0) & (program < programs):
            map_gradient(program, stack, *maps[i], *MAPS[i], PRECISION, SLOPE)
        program -= programs
    for i in tl.static_range(len(WEIGHTS)):
        programs = stack * WEIGHTS[i][1]
        if (program >= 0) & (program < programs):
            weight_gradient(program, batch, stack, *weights[i], *WEIGHTS[i], PRECISION)
        program -= programs
    for i in tl.static_range(len(SUMS)):
        channels = stack * SUMS[i][1]
        programs = (channels + BLOCK - 1) // BLOCK
        if (program >= 0) & (program < programs):
            images = batch * SUMS[i][0]
            c = program * BLOCK + tl.arange(0, BLOCK)
            sum_over_images(sums[i][0], sums[i][1], c, images, channels)
            sum_over_images(sums[i][2], sums[i][3], c, images, channels)
        program -= programs


Affine = tuple[Tensor | None, Tensor | None]  # gradients of gamma and beta


class MapPointers(NamedTuple):
    """Tensors that `map_gradient` reads and writes."""

    dc: tuple[Tensor, ...]
    w: tuple[Tensor, ...]
    tapped: Tensor | None
    y: Tensor | None
    u: Tensor | None
    rstd: Tensor | None
    gamma: Tensor | None
    gamma_grad: Tensor | None
    beta_grad: Tensor | None
    out: Tensor


class MapProblem(NamedTuple):
    """The gradient of a map.

    Attributes:
        pointers: its tensors.
        up: whether the sums of the layers that read the map write the big map.
        side: pixels along one side of the small map.
        channels: of the map.
        activation: of the layer that computed the map.
        tiling: of the sums over taps.
        arguments: those of `tap_tiling`; none where no layer reads the map.
    """

    pointers: MapPointers
    up: bool
    side: int
    channels: int
    activation: str
    tiling: Tiling
    arguments: tuple[Any, ...]

    @property
    def images(self) -> int:
        """Images of the map."""
        return len(self.pointers.out)

    @property
    def constants(self) -> tuple[object, ...]:
        """Compile-time constants of `map_gradient`, less the first."""
        stack = self.pointers.out.shape[1] // self.channels
        sources = tuple(dc.shape[1] // stack for dc in self.pointers.dc)
        fixed = (self.up, self.side, self.channels, *map(tl.constexpr, (sources, self.activation)))
        return (self.tiling.programs, *fixed, *self.tiling.constants)


class WeightPointers(NamedTuple):
    """Tensors that `weight_gradient` reads and writes."""

    x: tuple[Tensor, ...]
    dc: Tensor
    out: Tensor


class WeightProblem(NamedTuple):
    """The gradient of a layer's weight.

    Attributes:
        pointers: its tensors; x are equal parts of the images.
        geometry: of the layer.
        shared: whether all models read the same images.
        tiling: of the weight.
        arguments: those of `weight_tiling`.
    """

    pointers: WeightPointers
    geometry: LayerGeometry
    shared: bool
    tiling: WeightTiling
    arguments: tuple[int, ...]

    @property
    def images(self) -> int:
        """Images that are summed."""
        return len(self.pointers.dc)

    @property
    def constants(self) -> tuple[object, ...]:
        """Compile-time constants of `weight_gradient`, less the first."""
        return (self.tiling.programs, *self.geometry, self.shared, *self.tiling.constants)


class SumPointers(NamedTuple):
    """Tensors (N, M*Co) of the images' gradients, and (M*Co,) of their sums; None for neither."""

    gamma_parts: Tensor | None
    gamma_grad: Tensor | None
    beta_parts: Tensor | None
    beta_grad: Tensor | None

    @property
    def parts(self) -> list[Tensor]:
        """The gradients of the images."""
        return [t for t in (self.gamma_parts, self.beta_parts) if t is not None]


class SumProblem(NamedTuple):
    """Gradients of a layer's gamma and beta as sums over images."""

    pointers: SumPointers

    @property
    def images(self) -> int:
        """Images that are summed."""
        return len(self.pointers.parts[0])


Problem = MapProblem | WeightProblem | SumProblem


class Reader(NamedTuple):
    """A layer that reads a map, and the gradient of its convolution."""

    dc: Tensor
    output: LayerOutput


def map_problem(
    like: Tensor,
    readers: Sequence[Reader],
    tapped: Tensor | None,
    producer: LayerOutput | None,
    affine: Affine,
    stack: int,
) -> MapProblem | None:
    """The gradient of a map; None where it is `tapped` itself.

    Args:
        like: the map, (N, M*C, H, W).
        readers: layers that read it, of one geometry up to the channels that they write.
        tapped: its gradient from outside of the chain, added to that of the readers.
        producer: the layer that computed it, through whose normalisation and activation the
            gradient is carried; None for the input of a chain.
        affine: buffers for the gradients of the producer's gamma and beta, (N, M*C); None for none.
        stack: M.
    """
    activation, y, u, rstd, gamma = "none", None, None, None, None
    if producer is not None:
        activation, u, rstd = producer.layer.activation, producer.u, producer.rstd
        y = None if activation == "none" else producer.y
        gamma = None if u is None else producer.layer.gamma
    if not readers and u is None and y is None:
        return None
    channels = like.shape[1] // stack
    arguments: tuple[Any, ...] = ()
    if readers:
        up, side = not readers[0].output.geometry.up, readers[0].output.geometry.side
        inputs, channels = readers[0].output.geometry.outputs, readers[0].output.geometry.inputs
        arguments = (up, side, inputs, channels, u is not None, len(like) * stack)
        tiling = tap_tiling(*arguments)
    else:
        assert producer is not None, "the gradient of a chain's input has a reader"
        up, side = producer.geometry.up, producer.geometry.side
        tiling = elementwise_tiling(producer.geometry.side_out, channels, u is not None)
    pointers = MapPointers(
        tuple(reader.dc for reader in readers),
        tuple(reader.output.layer.weight for reader in readers),
        None if tapped is None else tapped.contiguous(),
        y,
        u,
        rstd,
        gamma,
        *affine,
        like.new_empty(len(like), stack * channels, *like.shape[2:]),
    )
    return MapProblem(pointers, up, side, channels, activation, tiling, arguments)


def weight_problem(
    x: tuple[Tensor, ...], output: LayerOutput, dc: Tensor, out: Tensor, stack: int
) -> WeightProblem:
    """The gradient of a layer's weight, written to `out`.

    Args:
        x: the layer's input; several tensors are equal parts of the images.
        output: the layer.
        dc: gradient of its convolution.
        out: shaped as the weight.
        stack: M.
    """
    geometry = output.geometry
    small, big = (geometry.inputs, geometry.outputs)[:: 1 if geometry.up else -1]
    arguments = (geometry.side, small, big, len(dc), stack)
    shared = x[0].shape[1] != stack * geometry.inputs
    pointers = WeightPointers(x, dc, out)
    return WeightProblem(pointers, geometry, shared, weight_tiling(*arguments), arguments)


def launch_gradients(problems: Sequence[Problem], stack: int) -> None:
    """Solve problems that do not depend on each other in one launch."""
    maps = [p for p in problems if isinstance(p, MapProblem)]
    weights = [p for p in problems if isinstance(p, WeightProblem)]
    sums = [p for p in problems if isinstance(p, SumProblem)]
    batch = min(p.images for p in problems)  # all have one or two batches, see `gan`
    channels = [p.pointers.parts[0].shape[1] for p in sums]
    programs = sum(p.images * stack * p.tiling.programs for p in maps)
    programs += stack * sum(p.tiling.programs for p in weights)
    programs += sum(triton.cdiv(c, AFFINE_CHANNELS) for c in channels)
    warps = [p.tiling.warps for p in maps] + [p.tiling.warps for p in weights]
    conv_backward_kernel[(programs,)](
        tuple(p.pointers for p in maps),
        tuple(p.pointers for p in weights),
        tuple(p.pointers for p in sums),
        batch,
        stack,
        MAPS=tuple((p.images // batch, *p.constants) for p in maps),
        WEIGHTS=tuple((p.images // batch, *p.constants) for p in weights),
        SUMS=tuple((p.images // batch, c // stack) for p, c in zip(sums, channels, strict=True)),
        PRECISION=_precision(problems),
        SLOPE=reference.LEAKY_SLOPE,
        BLOCK=AFFINE_CHANNELS,
        **launch_options(max(warps, default=1)),
    )


def _precision(problems: Sequence[Problem]) -> str:
    outs = [p.pointers.out for p in problems if not isinstance(p, SumProblem)]
    return matmul_precision(outs[0]) if outs else "ieee"


def affine_buffers(
    output: LayerOutput, needed: Sequence[bool], targets: Sequence[Tensor | None]
) -> tuple[Affine, Affine, SumProblem | None]:
    """Buffers for the gradients of a layer's gamma and beta.

    Args:
        output: the layer.
        needed: whether gamma and beta need a gradient.
        targets: where to write it; None allocates.

    Returns:
        Where the images' gradients are written, the results, and the sum over images that computes
        them; None where a single image is the result.
    """
    parameters = zip((output.layer.gamma, output.layer.beta), needed, targets, strict=True)
    gamma, beta = (
        None if p is None or not on else torch.empty_like(p) if target is None else target
        for p, on, target in parameters
    )
    images, channels = output.y.shape[:2]
    if images == 1 or (gamma is None and beta is None):
        return (gamma, beta), (gamma, beta), None
    dtype = reference.accumulator(output.y)
    gamma_parts, beta_parts = (
        None if t is None else output.y.new_empty(images, channels, dtype=dtype)
        for t in (gamma, beta)
    )
    pointers = SumPointers(gamma_parts, gamma, beta_parts, beta)
    return (gamma_parts, beta_parts), (gamma, beta), SumProblem(pointers)
