"""Fused layers against their definition: alone, in chains and as networks."""

from itertools import chain, pairwise
from unittest import mock

import pytest
import torch
from cases import FLOAT32_FIRST, assert_close
from conv_cases import (
    Maker,
    assert_equals_definition,
    poisoned,
    results,
    summed,
    tensors_of,
    upstream_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pkd_kernels import ConvLayer, conv_chain, conv_norm_act, dispatch, reference
from pkd_kernels.reference import ACTIVATIONS
from torch import Tensor

from pkd.models.architecture import Architecture
from pkd.models.ganomaly import Discriminator, Generator


@pytest.mark.parametrize("dtype", FLOAT32_FIRST, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("sides", [(6, 3), (3, 6)], ids=["down", "up"])
@pytest.mark.usefixtures("each_tiling")
def test_every_part_of_a_layer(device, sides, norm, activation, dtype):
    make = Maker(dtype, device, stack=2)
    layer = make.layer((1, 2), sides, norm, activation)
    assert_equals_definition(make.x(1, 1, sides[0]), [layer], taps=(0,), stack=2)


@pytest.mark.parametrize("dtype", FLOAT32_FIRST[:2], ids=str)
@pytest.mark.parametrize(
    ("batch", "stack"), [(1, 1), (1, 3), pytest.param(5, 2, marks=pytest.mark.slow)]
)
@pytest.mark.usefixtures("each_tiling")
def test_chain(device, batch, stack, dtype):
    """Widths that are no powers of two; taps in the middle, at a single pixel and at the end."""
    make = Maker(dtype, device, stack)
    layers = make.chain((3, 5, 7, 3, 2), (8, 4, 1, 4, 8))
    assert_equals_definition(make.x(batch, 3, 8), layers, taps=(0, 1, 3), stack=stack)


@st.composite
def chains(draw) -> dict:
    """A random chain: its maps, layers, taps, and the tensors without gradient."""
    sides, widths, forms = [draw(st.sampled_from([1, 2, 3, 4, 6, 8, 10]))], [2], []
    for _ in range(draw(st.integers(1, 4))):
        side = sides[-1]
        steps = [4] if side == 1 else [2 * side] if side <= 5 else []
        steps += [side // 2] if side % 2 == 0 and side > 2 else []
        steps += [1] if side == 4 else []
        if not steps:
            break
        sides.append(draw(st.sampled_from(steps)))
        widths.append(draw(st.integers(1, 3)))
        norm = sides[-1] > 1 and draw(st.booleans())
        forms.append((norm, draw(st.sampled_from([*ACTIVATIONS]))))
    taps = sorted(draw(st.sets(st.integers(0, len(forms) - 1), min_size=1)))
    return {
        "sides": sides,
        "widths": widths,
        "forms": forms,
        "taps": taps,
        "used": draw(st.sets(st.integers(0, len(taps) - 1), min_size=1)),
        "frozen": draw(st.sets(st.integers(0, 3 * len(forms)))),
        "summed": draw(st.sampled_from(["matrix", "spread"])),
        "batch": draw(st.integers(1, 5)),
        "stack": draw(st.integers(1, 3)),
    }


@pytest.mark.slow
@settings(deadline=None, max_examples=20, derandomize=True)
@given(case=chains())
def test_any_chain(case):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    stack = case["stack"]
    make = Maker(torch.float64, device, stack)
    steps = zip(pairwise(case["widths"]), pairwise(case["sides"]), case["forms"], strict=True)
    layers = [make.layer(*step, *form) for *step, form in steps]
    x = make.x(case["batch"], case["widths"][0], case["sides"][0])
    for i, tensor in enumerate(tensors_of(x, layers)):
        # The first weight always needs a gradient: every output depends on it.
        tensor.requires_grad_(i == 1 or i not in case["frozen"])
    with mock.patch.object(dispatch, "BACKEND", "triton"), summed(case["summed"]):
        assert_equals_definition(x, layers, taps=case["taps"], stack=stack, used=case["used"])


@pytest.mark.parametrize("batch", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_models_that_share_images(device, batch):
    make = Maker(torch.float64, device, stack=3)
    layers = make.chain((2, 3, 4), (8, 4, 1))
    x = make.normal(batch, 2, 8, 8).requires_grad_()
    assert_equals_definition(x, layers, taps=(0, 1), stack=3)
    assert_equals_definition(x.detach(), layers, taps=(1,), stack=3)


def test_views_of_inputs_parameters_and_gradients(device):
    make = Maker(torch.float64, device, stack=2)
    layers = make.chain((2, 3, 2), (6, 3, 6))
    x = make.x(2, 2, 6)

    def strided(t: Tensor) -> Tensor:
        spaced = torch.stack((t.detach(), torch.full_like(t, torch.nan)), -1)[..., 0]
        return spaced.transpose(-2, -1).contiguous().transpose(-2, -1) if t.dim() == 4 else spaced

    def run(op, change) -> list[Tensor]:
        leaves = [change(t).requires_grad_() for t in tensors_of(x, layers)]
        forms = zip(leaves[1::3], leaves[2::3], leaves[3::3], layers, strict=True)
        chain = [ConvLayer(*parameters, *layer[3:]) for *parameters, layer in forms]
        outputs = op(leaves[0], chain, taps=(0, 1), stack=2)
        ones = [y.new_full((1, 1, 1, 1), -2.0).expand_as(y) for y in outputs[:1]]
        turned = [g.transpose(2, 3).contiguous().transpose(2, 3) for g in upstream_of(outputs[1:])]
        return [
            *(y.detach() for y in outputs),
            *torch.autograd.grad(outputs, leaves, ones + turned),
        ]

    assert not any(strided(t).is_contiguous() for t in tensors_of(x, layers))
    dense = run(reference.conv_chain, lambda t: t.detach().clone())
    assert_close(run(conv_chain, strided), dense, torch.float64)


@pytest.mark.parametrize("op", [conv_norm_act, reference.conv_norm_act])
def test_one_layer_as_a_function(device, op):
    make = Maker(torch.float64, device, stack=2)
    layer, x = make.layer((2, 3), (4, 8), True, "tanh"), make.x(2, 2, 4)
    form = dict(zip(ConvLayer._fields[3:], layer[3:], strict=True))
    y = op(x, *layer[:3], stack=2, **form)
    leaves = tensors_of(x, [layer])
    actual = [y.detach(), *torch.autograd.grad(y, leaves, *upstream_of([y]))]
    expected = results(reference.conv_chain, x, [layer], taps=(0,), stack=2)
    assert_close(actual, expected, torch.float64)


@pytest.mark.parametrize("batch", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("each_tiling")
def test_every_output_is_written(device, batch):
    make = Maker(torch.float64, device, stack=2)
    layers = make.chain((2, 3, 5, 3, 2), (8, 4, 1, 4, 8))
    x = make.x(batch, 2, 8)
    expected = results(reference.conv_chain, x, layers, taps=(0, 3), stack=2)
    with poisoned():
        actual = results(conv_chain, x, layers, taps=(0, 3), stack=2)
    assert_close(actual, expected, torch.float64)


@pytest.mark.usefixtures("each_tiling")
def test_channel_without_variance(device):
    make = Maker(torch.float64, device, stack=2)
    layer, x = make.layer((2, 3), (8, 4), True, "leaky_relu"), make.x(2, 2, 8)
    with torch.no_grad():
        layer.weight[1] = 0
    assert_equals_definition(x, [layer], taps=(0,), stack=2)
    y, *grads = results(conv_chain, x, [layer], taps=(0,), stack=2)
    beta = torch.where(layer.beta > 0, layer.beta, 0.2 * layer.beta)
    assert torch.equal(y[:, 1], beta[1].expand(2, 4, 4))
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize(("activation", "slope"), [("relu", 0.0), ("leaky_relu", 0.2)])
def test_gradient_at_zero(device, activation, slope):
    layer = Maker(torch.float64, device, stack=1).layer((1, 1), (1, 4), False, activation)
    with torch.no_grad():
        layer.weight.zero_()
    x = torch.ones(1, 1, 1, 1, device=device, dtype=torch.float64)
    (y,) = conv_chain(x, [layer], taps=(0,))
    (grad,) = torch.autograd.grad(y, layer.weight, torch.full_like(y, -3.0))
    assert not y.any()
    assert torch.equal(grad, torch.full_like(grad, -3.0 * slope))


@pytest.mark.parametrize(
    "activation",
    ["relu", "leaky_relu", *(pytest.param(a, marks=pytest.mark.slow) for a in ("none", "tanh"))],
)
@pytest.mark.usefixtures("each_tiling")
def test_nan_is_propagated(device, activation):
    """NaN of a diverged model appears in its outputs, and not in those of other models."""
    make = Maker(torch.float32, device, stack=2)
    layers = [
        make.layer((1, 2), (2, 4), True, activation),
        make.layer((2, 1), (4, 8), False, "tanh"),
    ]
    with torch.no_grad():
        layers[0].weight[0, 0, 0, 0] = torch.nan
    x = make.x(1, 1, 2)
    for op in (conv_chain, reference.conv_chain):
        *outputs, x_grad, _, _, _, w_grad = results(op, x, layers, taps=(0, 1), stack=2)
        assert [y.isnan().all((0, 2, 3)).tolist() for y in outputs] == [
            [True, False, False, False],
            [True, False],
        ]
        assert x_grad.isnan().all((0, 2, 3)).tolist() == [True, False]
        assert w_grad.isnan().any((1, 2, 3)).tolist() == [True, True, False, False]


def test_images_and_models_are_independent(device):
    make = Maker(torch.float64, device, stack=3)
    layers, x = make.chain((2, 3, 2), (8, 4, 8)), make.x(2, 2, 8)
    y = conv_chain(x, layers, taps=(1,), stack=3)[0].detach()
    second = [
        ConvLayer(*(t.detach().chunk(3)[1] for t in layer[:3]), *layer[3:]) for layer in layers
    ]
    (alone,) = conv_chain(x.detach()[1:, 2:4], second, taps=(1,))
    assert_close([alone], [y[1:, 2:4]], torch.float64)


def test_inputs_are_unchanged_and_runs_are_bitwise_equal(device):
    make = Maker(torch.float32, device, stack=2)
    layers, x = make.chain((2, 3, 2), (8, 4, 8)), make.x(2, 2, 8)
    tensors = tensors_of(x, layers)
    before, versions = [t.detach().clone() for t in tensors], [t._version for t in tensors]
    first, second = (results(conv_chain, x, layers, taps=(0, 1), stack=2) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
    assert [t._version for t in tensors] == versions


@pytest.mark.parametrize("stack", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_networks_equal_their_definition(device, monkeypatch, stack):
    """Outputs and gradients of generator and discriminator, as a training step computes them."""
    architecture = Architecture(channels=1, widths=(1, 2, 3), latent=5)
    torch.manual_seed(0)
    networks = [kind(architecture, stack).double() for kind in (Generator, Discriminator)]
    parameters = [[*network.to(device).parameters()] for network in networks]
    with torch.no_grad():
        for p in chain(*parameters):
            p.copy_(torch.randn(p.shape) / 2)
    x = torch.rand(1, stack, 32, 32).to(device, torch.float64) * 2 - 1

    def run() -> list[Tensor]:
        z1, xh, z2 = networks[0](x)
        real, fake, f_real, f_fake = networks[1](x, xh)
        of_g, of_d = [z1, xh, z2, f_fake], [real, fake]
        grads = torch.autograd.grad(of_g, parameters[0], upstream_of(of_g), retain_graph=True)
        grads += torch.autograd.grad(of_d, parameters[1], upstream_of(of_d))
        return [*(t.detach() for t in (*of_g, f_real, *of_d)), *grads]

    actual = run()
    monkeypatch.setattr(dispatch, "BACKEND", "reference")
    assert_close(actual, run(), torch.float64)
