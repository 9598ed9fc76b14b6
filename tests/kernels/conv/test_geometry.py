"""Layers of every geometry against their definition, and layers that are refused."""

import pytest
import torch
from cases import FLOAT32_FIRST
from conv_cases import (
    FEW_SIDES,
    SIDES,
    Maker,
    assert_equals_definition,
)
from pkd_kernels import ConvLayer, conv_chain
from torch import Tensor


@pytest.mark.parametrize("dtype", FLOAT32_FIRST, ids=str)
@pytest.mark.parametrize("sides", SIDES, ids=lambda s: f"{s[0]}-{s[1]}")
@pytest.mark.usefixtures("each_tiling")
def test_every_geometry(device, sides, dtype):
    make = Maker(dtype, device, stack=1)
    layer = make.layer((2, 3), sides, False, "none")
    assert_equals_definition(make.x(1, 2, sides[0]), [layer], taps=(0,), stack=1)


@pytest.mark.parametrize("dtype", FLOAT32_FIRST[:2], ids=str)
@pytest.mark.parametrize("sides", FEW_SIDES, ids=lambda s: f"{s[0]}-{s[1]}")
@pytest.mark.usefixtures("each_tiling")
def test_statistics_of_every_geometry(device, sides, dtype):
    """A program with several channels must keep their sums apart."""
    make = Maker(dtype, device, stack=1)
    layers = [
        make.layer((2, 2), sides[::-1], sides[0] > 1, "leaky_relu"),
        make.layer((2, 2), sides, False, "tanh"),
    ]
    assert_equals_definition(make.x(1, 2, sides[1]), layers, taps=(1,), stack=1)


@pytest.mark.parametrize(
    ("widths", "sides"),
    [
        ((67, 3), (4, 2)),
        pytest.param((3, 70), (4, 1), marks=pytest.mark.slow),
        pytest.param((140, 3), (4, 1), marks=pytest.mark.slow),
        ((257, 2), (1, 4)),
        ((2, 1), (4, 1)),
    ],
    ids=str,
)
def test_more_channels_than_one_program_has(device, widths, sides):
    make = Maker(torch.float64, device, stack=1)
    layer = make.layer(widths, sides, sides[1] > 1, "none")
    assert_equals_definition(make.x(1, widths[0], sides[0]), [layer], taps=(0,), stack=1)


@pytest.mark.parametrize(
    ("channels", "sides", "batch"),
    [
        pytest.param((64, 3), (16, 8), 1, marks=pytest.mark.slow),  # the larger tile
        pytest.param((3, 64), (8, 16), 1, marks=pytest.mark.slow),
        pytest.param((256, 2), (4, 8), 1, marks=pytest.mark.slow),
        ((1, 2), (64, 32), 1),  # images of 64 and 128 pixels: several programs a map
        pytest.param((2, 1), (32, 64), 1, marks=pytest.mark.slow),
        pytest.param((1, 1), (128, 64), 1, marks=pytest.mark.slow),
        pytest.param((1, 2), (8, 4), 64, marks=pytest.mark.slow),
        pytest.param((3, 20), (8, 4), 64, marks=pytest.mark.slow),  # matrix products
        pytest.param((40, 9), (2, 4), 32, marks=pytest.mark.slow),
    ],
)
def test_wide_layers_large_images_and_large_batches(device, channels, sides, batch):
    make = Maker(torch.float64, device, stack=1)
    x = make.x(batch, channels[0], sides[0])
    layer = make.layer(channels, sides, True, "leaky_relu")
    assert_equals_definition(x, [layer], taps=(0,), stack=1)


def refused(x: Tensor, layer: ConvLayer, match: str, **kwargs) -> None:
    with pytest.raises(ValueError, match=match):
        conv_chain(x, [layer], **{"taps": (0,), "stack": 2} | kwargs)


def test_unsupported_layers_raise_value_error(device):
    make = Maker(torch.float32, device, stack=2)
    layer, x = make.layer((2, 3), (8, 4), True, "relu"), make.x(1, 2, 8)
    up, point = make.layer((2, 3), (4, 8), True, "relu"), make.layer((2, 3), (4, 1), False, "none")
    refused(x[..., :7], layer, r"on a map of \(8, 7\)")
    refused(x[..., :7, :7], layer, r"stride 2 and padding 1 on a map of \(7, 7\)")
    refused(x[..., :2, :2], layer, r"on a map of \(2, 2\)")
    refused(x[..., :1, :1], up, r"on a map of \(1, 1\)")
    refused(x, point, r"stride 1 and padding 0 on a map of \(8, 8\)")
    refused(x, layer._replace(weight=layer.weight[..., :3]), r"weight \(6, 2, 4, 3\) does not fit")
    refused(x, layer, r"weight \(6, 2, 4, 4\) does not fit 4 models", stack=4)
    refused(x[:, :3], layer, "3 channels, but the weight fits 2 models of 2")
    refused(x, layer._replace(beta=None), "must be given together")
    refused(x, layer._replace(gamma=None), "must be given together")
    refused(x, layer._replace(gamma=layer.gamma[:5]), r"gamma \(5,\) on 2 models of 3 channels")
    refused(x[..., :4, :4], point._replace(gamma=layer.gamma, beta=layer.beta), "1 x 1 pixels")
    refused(x, layer._replace(activation="gelu"), "'gelu' is not one of")
    refused(x.double(), layer, "types or devices differ")
    single, images = make.layer((1, 1), (4, 1), False, "none"), x.new_zeros(2**16, 1, 4, 4)
    refused(images, single._replace(weight=single.weight[:1]), "65536 images", stack=1)
    many = single._replace(weight=x.new_zeros(2**16, 1, 4, 4))
    refused(images[:1], many, "65536 models", stack=2**16)
    for taps in ((), (1,), (-1,), (0, 0)):
        refused(x, layer, "not ascending indices of 1 layers", taps=taps)
    shared = make.layer((6, 1), (4, 8), True, "relu")  # one model of 6 channels, not two of 3
    with pytest.raises(ValueError, match="6 channels, but the weight fits 2 models of 6"):
        conv_chain(x, [layer, shared], taps=(1,), stack=2)
