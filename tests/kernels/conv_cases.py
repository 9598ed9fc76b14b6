"""Random layers, and their comparison with the definition."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from unittest import mock

import pytest
import torch
from cases import assert_close
from pkd_kernels import ConvLayer, conv_chain, reference
from pkd_kernels.conv import tiling
from pkd_kernels.reference import ACTIVATIONS
from torch import Tensor

# How the side of a map changes in a layer: every geometry of the networks, and odd sides.
SIDES = [(4, 2), (6, 3), (24, 12), (32, 16), (2, 4), (3, 6), (5, 10), (16, 32), (4, 1), (1, 4)]
FEW_SIDES: list = [(6, 3), (3, 6), (4, 1), (1, 4)]
FEW_SIDES += [pytest.param(s, marks=pytest.mark.slow) for s in SIDES if s not in FEW_SIDES]


@contextmanager
def summed(method: str) -> Iterator[None]:
    """Sum by matrix products wherever possible ("matrix"), or nowhere ("spread").

    Weight-gradient tiles are as large, or as small, as the tables allow.
    """
    least = {"matrix": 1, "spread": 2**30}[method]
    caches = [tiling.tap_tiling, tiling.weight_tiling]
    with (
        mock.patch.object(tiling, "MATRIX_MIN_CHANNELS", 1),
        mock.patch.object(tiling, "MATRIX_PROGRAMS", least),
        mock.patch.object(tiling, "WEIGHT_PROGRAMS", least),
    ):
        [cache.cache_clear() for cache in caches]
        yield
    [cache.cache_clear() for cache in caches]


class Maker:
    """Random tensors from one seed."""

    def __init__(self, dtype: torch.dtype, device: str, stack: int, seed: int = 0):
        self.dtype, self.device, self.stack = dtype, device, stack
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device, self.dtype)

    def x(self, batch: int, channels: int, side: int) -> Tensor:
        return self.normal(batch, self.stack * channels, side, side).requires_grad_()

    def layer(
        self, widths: tuple[int, int], sides: tuple[int, int], norm: bool, activation: str
    ) -> ConvLayer:
        """A layer from widths[0] channels of side sides[0] to widths[1] of side sides[1]."""
        transposed, point = sides[1] > sides[0], 1 in sides
        first, second = widths if transposed else reversed(widths)
        weight = self.normal(self.stack * first, second, 4, 4) / (4 * widths[0] ** 0.5)
        affine = [None, None]
        if norm:
            shift = self.normal(self.stack * widths[1])
            affine = [(1 + shift / 4).requires_grad_(), shift.requires_grad_()]
        form = (1, 0) if point else (2, 1)
        return ConvLayer(weight.requires_grad_(), *affine, *form, transposed, activation)

    def chain(self, widths: tuple[int, ...], sides: tuple[int, ...]) -> list[ConvLayer]:
        """Layers between maps of these widths and sides; all but single pixels are normalised."""
        names = [*ACTIVATIONS] * len(sides)
        steps = zip(pairwise(widths), pairwise(sides), names, strict=False)
        return [self.layer(w, s, s[1] > 1, name) for w, s, name in steps]


def tensors_of(x: Tensor, layers: list[ConvLayer]) -> list[Tensor]:
    return [x, *(t for layer in layers for t in layer[:3] if t is not None)]


def wide(x: Tensor, layers: list[ConvLayer]) -> tuple[Tensor, list[ConvLayer]]:
    """Copies in float64, as new leaves."""

    def leaf(t: Tensor | None) -> Tensor | None:
        return t if t is None else t.detach().double().requires_grad_(t.requires_grad)

    return leaf(x), [ConvLayer(*map(leaf, layer[:3]), *layer[3:]) for layer in layers]


def upstream_of(outputs: list[Tensor]) -> list[Tensor]:
    """Gradients of both signs, never 0, equal in every type."""
    generator = torch.Generator().manual_seed(1)
    return [(torch.randint(-12, 12, y.shape, generator=generator).to(y) + 0.5) / 4 for y in outputs]


def results(op, x: Tensor, layers: list[ConvLayer], *, taps, stack: int, used=None) -> list[Tensor]:
    """Outputs, and gradients of all leaves; only the outputs `used` receive a gradient."""
    outputs = op(x, layers, taps=taps, stack=stack)
    leaves = [t for t in tensors_of(x, layers) if t.requires_grad]
    chosen = [y for i, y in enumerate(outputs) if used is None or i in used]
    grads = torch.autograd.grad(chosen, leaves, upstream_of(chosen), allow_unused=True)
    zeros = [torch.zeros_like(t) if g is None else g for g, t in zip(grads, leaves, strict=True)]
    return [*(y.detach() for y in outputs), *zeros]


def assert_equals_definition(x: Tensor, layers: list[ConvLayer], **kwargs) -> None:
    """Compare with the definition in float64.

    float32 may round once a layer, as in PyTorch. In 16 bits the y or u of a layer and its dc are
    rounded before the gradient itself.
    """
    expected = results(reference.conv_chain, *wide(x, layers), **kwargs)
    roundings = {2: 3, 4: len(layers), 8: 1}[x.itemsize]
    assert_close(results(conv_chain, x, layers, **kwargs), expected, x.dtype, roundings)


@contextmanager
def poisoned() -> Iterator[None]:
    """Allocated memory is full of NaN."""

    def bad(make):
        return lambda *args, **kwargs: make(*args, **kwargs).fill_(torch.nan)

    with (
        mock.patch.object(torch, "empty", bad(torch.empty)),
        mock.patch.object(torch, "empty_like", bad(torch.empty_like)),
        mock.patch.object(Tensor, "new_empty", bad(Tensor.new_empty)),
    ):
        yield
