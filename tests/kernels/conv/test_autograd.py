"""Chains of layers in autograd: which gradients exist, where they are written, pairs."""

import pytest
import torch
from cases import FAST_MODE, assert_close
from conv_cases import (
    Maker,
    assert_equals_definition,
    results,
    tensors_of,
    upstream_of,
)
from pkd_kernels import ConvLayer, conv_chain, conv_chain_pair, reference
from torch import Tensor

from bench.profiling import measured


@FAST_MODE
@pytest.mark.parametrize(
    ("widths", "sides"), [((1, 2, 1), (4, 1, 4)), ((1, 1, 1), (4, 2, 4))], ids=["point", "stride"]
)
def test_gradcheck(device, widths, sides, fast_mode):
    make = Maker(torch.float64, device, stack=1)
    layers = make.chain(widths, sides)

    def outputs(x, *parameters):
        values = iter(parameters)
        chain = [
            ConvLayer(*(t if t is None else next(values) for t in layer[:3]), *layer[3:])
            for layer in layers
        ]
        return conv_chain(x, chain, taps=(0, 1))

    assert torch.autograd.gradcheck(
        outputs, tensors_of(make.x(1, 1, 4), layers), fast_mode=fast_mode
    )


def pair_results(op, real: Tensor, fake: Tensor, layers: list[ConvLayer], stack: int):
    """Values, the gradient of f_fake in `fake`, and those of the y in the parameters."""
    y_real, y_fake, f_real, f_fake = op(real, fake, layers, tap=1, stack=stack)
    up = upstream_of([y_real, y_fake, f_fake])
    parameters = tensors_of(real, layers)[1:]
    of_fake = torch.autograd.grad(f_fake, fake, up[2], retain_graph=True)
    of_parameters = torch.autograd.grad([y_real, y_fake], parameters, up[:2])
    return [t.detach() for t in (y_real, y_fake, f_real, f_fake)] + [*of_fake, *of_parameters]


@pytest.mark.parametrize(
    ("batch", "stack"),
    [
        (1, 1),
        pytest.param(1, 3, marks=pytest.mark.slow),
        pytest.param(3, 2, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("each_tiling")
def test_pair(device, batch, stack):
    make = Maker(torch.float64, device, stack)
    layers = make.chain((2, 3, 2, 1), (16, 8, 4, 1))
    real, fake = make.x(batch, 2, 16).detach(), make.x(batch, 2, 16)
    actual = pair_results(conv_chain_pair, real, fake, layers, stack)
    expected = pair_results(reference.conv_chain_pair, real, fake, layers, stack)
    assert_close(actual, expected, torch.float64)


def test_pair_gradients_with_gaps_in_memory(device):
    """Rows of one image: contiguous and adjacent, with an arbitrary batch stride."""
    make = Maker(torch.float64, device, stack=2)
    layers = make.chain((2, 3, 2, 1), (16, 8, 4, 1))
    real, fake = make.x(1, 2, 16).detach(), make.x(1, 2, 16)
    up = make.normal(4, 2, 1, 1)
    actual, expected = (
        torch.autograd.grad(
            op(real, fake, layers, tap=1, stack=2)[:2],
            tensors_of(real, layers)[1:],
            [up[::2][:1], up[1::2][:1]],
        )
        for op in (conv_chain_pair, reference.conv_chain_pair)
    )
    assert_close(actual, expected, torch.float64)


@pytest.mark.parametrize("order", [1, -1], ids=["y-first", "f-first"])
def test_the_two_gradients_of_a_pair_are_separate(device, order):
    make = Maker(torch.float64, device, stack=2)
    layers = make.chain((2, 3, 1), (8, 4, 1))
    real, fake = make.x(1, 2, 8), make.x(1, 2, 8)
    y_real, y_fake, f_real, f_fake = conv_chain_pair(real, fake, layers, tap=0, stack=2)
    assert not f_real.requires_grad
    parameters = tensors_of(real, layers)[1:]
    of_parameters = (y_real + y_fake).sum(), parameters
    of_fake = f_fake.sum(), [fake]
    calls = [of_parameters, of_fake][::order]
    for done, (value, _) in enumerate(calls, start=1):
        value.backward()
        reached = [leaf for _, leaves in calls[:done] for leaf in leaves]
        for leaf in (real, fake, *parameters):
            assert (leaf.grad is not None) == any(leaf is other for other in reached)


@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.usefixtures("each_tiling")
def test_main_grad_is_overwritten(device, batch):
    make = Maker(torch.float64, device, stack=2)
    layers = make.chain((2, 3, 2), (8, 4, 8))
    x = make.x(batch, 2, 8)
    expected = results(reference.conv_chain, x, layers, taps=(0, 1), stack=2)
    parameters = tensors_of(x, layers)[1:]
    for p in parameters:
        p.main_grad = torch.full_like(p, torch.nan)
    pointers = [p.main_grad.data_ptr() for p in parameters]
    outputs = conv_chain(x, layers, taps=(0, 1), stack=2)
    torch.autograd.backward(outputs, upstream_of(outputs))
    assert all(p.grad is None for p in parameters)
    assert [p.main_grad.data_ptr() for p in parameters] == pointers
    actual = [*(y.detach() for y in outputs), x.grad, *(p.main_grad for p in parameters)]
    assert_close(actual, expected, torch.float64)


def test_main_grad_of_a_pair(device):
    make = Maker(torch.float64, device, stack=2)
    layers = make.chain((2, 3, 2, 1), (16, 8, 4, 1))
    real, fake = make.x(1, 2, 16).detach(), make.x(1, 2, 16)
    expected = pair_results(reference.conv_chain_pair, real, fake, layers, 2)
    parameters = tensors_of(real, layers)[1:]
    for p in parameters:
        p.main_grad = torch.full_like(p, torch.nan)
    y_real, y_fake, _, f_fake = conv_chain_pair(real, fake, layers, tap=1, stack=2)
    up = upstream_of([y_real, y_fake, f_fake])
    f_fake.backward(up[2])
    assert all(p.main_grad.isnan().all() for p in parameters)
    torch.autograd.backward([y_real, y_fake], up[:2])
    assert all(p.grad is None for p in parameters)
    assert_close([fake.grad, *(p.main_grad for p in parameters)], expected[4:], torch.float64)


def test_layers_after_the_last_used_tap_have_no_gradient(device):
    make = Maker(torch.float64, device, stack=1)
    layers, x = make.chain((1, 2, 2), (8, 4, 8)), make.x(1, 1, 8)
    layers[1].weight.main_grad = torch.full_like(layers[1].weight, 7.0)
    first, _ = conv_chain(x, layers, taps=(0, 1))
    first.backward(*upstream_of([first]))
    assert layers[1].gamma.grad is None
    assert torch.equal(layers[1].weight.main_grad, torch.full_like(layers[1].weight, 7.0))
    assert layers[0].weight.grad.any()


@pytest.mark.parametrize(
    "leaf",
    [
        "x",
        "w0",
        "gamma1",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("gamma0", "beta0", "w1", "beta1")
        ),
    ],
)
def test_constants_have_no_gradient_and_no_launch(device, leaf):
    """One tensor alone needs a gradient, of the input and two layers' parameters."""
    make = Maker(torch.float64, device, stack=2)
    layers, x = make.chain((2, 3, 2), (8, 4, 8)), make.x(2, 2, 8)
    names = ("x", "w0", "gamma0", "beta0", "w1", "gamma1", "beta1")
    tensors = dict(zip(names, tensors_of(x, layers), strict=True))
    for name, tensor in tensors.items():
        tensor.requires_grad_(name == leaf)
    assert_equals_definition(x, layers, taps=(1,), stack=2)
    (y,) = conv_chain(x, layers, taps=(1,), stack=2)
    with measured() as traffic:
        y.sum().backward()
    assert [name for name, t in tensors.items() if t.grad is not None] == [leaf]
    layers_passed = 1 if leaf.endswith("1") else 2  # gamma's sum over images is of its layer
    assert sum(name.startswith("conv_") for name in traffic.launches) == 1 + layers_passed
    if device == "cpu":
        weights = tensors[leaf].numel() if leaf in ("w0", "w1") else 0
        assert traffic.stored["conv_backward.w_grad_ptr"] == weights
        inputs = {"x": 2, "w0": 1, "gamma0": 1, "beta0": 1}.get(leaf, 0)
        assert bool(traffic.stored["conv_backward.x_grad_ptr"]) == (inputs > 0)


@pytest.mark.parametrize("trained", [True, False], ids=["no_grad", "frozen"])
def test_nothing_is_saved_without_gradients(device, trained):
    make = Maker(torch.float64, device, stack=2)
    layers, x = make.chain((2, 3, 2), (8, 4, 8)), make.x(1, 2, 8).detach()
    for tensor in tensors_of(x, layers):
        tensor.requires_grad_(trained)
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(kept.append, lambda t: t)
    with hooks, torch.set_grad_enabled(not trained), measured() as traffic:
        outputs = conv_chain(x, layers, taps=(0, 1), stack=2)
    assert not kept
    assert not any(y.requires_grad for y in outputs)
    assert not traffic.stored["conv_forward.u_ptr"]
    assert not traffic.stored["conv_forward.rstd_ptr"]
    expected = reference.conv_chain(x, layers, taps=(0, 1), stack=2)
    assert_close(list(outputs), [y.detach() for y in expected], torch.float64)


def test_retained_graph_and_no_second_derivative(device):
    make = Maker(torch.float64, device, stack=2)
    layers, x = make.chain((2, 3, 2), (8, 4, 8)), make.x(2, 2, 8)
    leaves = tensors_of(x, layers)
    outputs = conv_chain(x, layers, taps=(0, 1), stack=2)
    up = upstream_of(outputs)
    first, second = (torch.autograd.grad(outputs, leaves, up, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(outputs, leaves, up, create_graph=True)


@pytest.mark.parametrize("changed", ["weight", "output"])
def test_saved_tensors_must_not_change_before_backward(device, changed):
    make = Maker(torch.float64, device, stack=1)
    layers, x = make.chain((1, 1), (8, 4)), make.x(1, 1, 8)
    (y,) = conv_chain(x, layers, taps=(0,))
    with torch.no_grad():
        (layers[0].weight if changed == "weight" else y).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
