"""Tilings, the precision of matrix products, and the number of launches."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from conv_cases import (
    Maker,
    assert_equals_definition,
    results,
    summed,
    tensors_of,
    upstream_of,
    wide,
)
from pkd_kernels import conv_chain, dispatch, reference
from pkd_kernels.conv import forward, tiling

from bench.profiling import measured


def test_weight_gradients_larger_than_the_largest_tile(device):
    make = Maker(torch.float64, device, stack=1)
    layer, x = make.layer((65, 5), (2, 4), False, "none"), make.x(3, 65, 2)
    with summed("matrix"):
        tiles = tiling.weight_tiling(2, 65, 5, 3, 1)
        assert (tiles.rows, tiles.columns, tiles.programs) == (64, 64, 4)
        assert_equals_definition(x, [layer], taps=(0,), stack=1)


@contextmanager
def matmul_precision(older: str, newer: str = "") -> Iterator[None]:
    """Set PyTorch's older switch, which sets the newer one too; then the newer one alone."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(older)
    try:
        if newer:
            torch.backends.cuda.matmul.fp32_precision = newer
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def precision_taken(dtype: torch.dtype) -> str:
    """The precision that a launch passes to its matrix products."""
    make = Maker(dtype, "cpu", stack=1)
    layer, x = make.layer((1, 1), (8, 4), True, "relu"), make.x(1, 1, 8).detach()
    kernel = mock.MagicMock()
    with (
        mock.patch.object(dispatch, "BACKEND", "triton"),
        mock.patch.object(forward, "conv_forward_kernel", kernel),
    ):
        conv_chain(x, [layer], taps=(0,))
    (call,) = kernel.__getitem__.return_value.mock_calls
    return call.kwargs["PRECISION"]


@pytest.mark.parametrize(
    ("dtype", "switch", "precision"),
    [
        (torch.float32, "highest", "ieee"),
        (torch.float32, "high", "tf32"),
        (torch.float64, "high", "ieee"),
        (torch.float16, "high", "ieee"),
    ],
    ids=str,
)
def test_tf32_follows_pytorchs_switch(dtype, switch, precision):
    with matmul_precision(switch):
        assert precision_taken(dtype) == precision


@pytest.mark.parametrize(("older", "newer"), [("highest", "tf32"), ("high", "ieee")])
def test_pytorchs_newer_switch_overrides_the_older(older, newer):
    with matmul_precision(older, newer):
        assert precision_taken(torch.float32) == newer


def test_tf32_is_accurate_to_ten_bits(device):
    """Through three layers and back, so slightly less; the interpreter has no TF32."""
    make = Maker(torch.float32, device, stack=3)
    layers, x = make.chain((3, 16, 9, 3), (16, 8, 4, 8)), make.x(2, 3, 16)
    expected = results(reference.conv_chain, *wide(x, layers), taps=(2,), stack=3)
    with matmul_precision("high"), summed("matrix"):
        actual = results(conv_chain, x, layers, taps=(2,), stack=3)
    for result, desired in zip(actual, expected, strict=True):
        assert (result - desired).abs().max() <= 2**-8 * desired.abs().max()


@pytest.mark.parametrize(
    ("norm", "activation", "extra"),
    [
        (False, "none", 0),
        (True, "relu", 1),
        pytest.param(False, "tanh", 1, marks=pytest.mark.slow),
        pytest.param(True, "none", 1, marks=pytest.mark.slow),
    ],
)
def test_launches_of_one_image(device, norm, activation, extra):
    make = Maker(torch.float32, device, stack=2)
    layers, x = make.chain((2, 3, 2), (8, 4, 8)), make.x(1, 2, 8)
    layers.append(make.layer((2, 1), (8, 4), norm, activation))
    with measured() as traffic:
        outputs = conv_chain(x, layers, taps=(0, 1, 2), stack=2)
    assert traffic.launches == ["conv_forward"] * 3
    up = upstream_of(outputs)
    with measured() as traffic:
        torch.autograd.grad(outputs, tensors_of(x, layers), up)
    assert traffic.launches == ["conv_backward"] * (extra + 3)
