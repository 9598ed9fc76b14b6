"""Chains of layers in autograd: which gradients exist, where they are written."""

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
from pkd_kernels import ConvLayer, conv_chain, reference

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
        maps = {"x": (1, 0, -1), "gamma1": (1,), "beta1": (1,), "w1": (1,)}.get(leaf, (1, 0))
        sizes = {1: 2 * 4 * 8 * 8, 0: 2 * 6 * 4 * 4, -1: 2 * 4 * 8 * 8}
        written = sum(sizes[i] for i in maps) + (tensors[leaf].numel() if leaf[0] == "w" else 0)
        assert traffic.stored["conv_backward.out_ptr"] == written


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
