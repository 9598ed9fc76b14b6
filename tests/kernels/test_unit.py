"""The upstream gradient `unit_grad`: no launch, the same bits, retained graphs."""

import pytest
import torch
from cases import Inputs, Sizes, accumulator, make_inputs
from pkd_kernels import discriminator_loss, generator_loss, unit_grad
from torch import Tensor

from bench.profiling import measured

SIZES = Sizes(1, 3, 35, 9, 17)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


def leaves_of(i: Inputs) -> list[Tensor]:
    return [t.clone().requires_grad_() for t in (i.xh, i.z1, i.z2, i.f_fake)]


def generator(i: Inputs, leaves: list[Tensor]) -> Tensor:
    options = {"teacher": (i.t1, i.tx, i.t2), "weights": i.weights, "stack": SIZES.stack}
    return generator_loss(i.x, *leaves[:3], i.f_real, leaves[3], **options)[0]


def discriminator(i: Inputs, leaves: list[Tensor]) -> Tensor:
    """Both logits are leaves, so one op writes two gradients."""
    return discriminator_loss(leaves[1], leaves[2], stack=SIZES.stack)


LOSSES = pytest.mark.parametrize("loss", [generator, discriminator])


def used(loss, leaves: list[Tensor]) -> list[Tensor]:
    return leaves if loss is generator else leaves[1:3]


def case(loss, dtype: torch.dtype, device: str) -> tuple[Tensor, list[Tensor]]:
    inputs = make_inputs(SIZES, dtype, device)
    leaves = leaves_of(inputs)
    return loss(inputs, leaves), used(loss, leaves)


def gradients(loss, dtype: torch.dtype, device: str, upstream=torch.ones_like) -> list[Tensor]:
    value, leaves = case(loss, dtype, device)
    return torch.autograd.grad(value, leaves, upstream(value))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ones_and_always_the_same_tensor(dtype):
    loss = torch.zeros(4, dtype=dtype)
    unit = unit_grad(loss)
    assert unit is unit_grad(loss + 1)
    assert unit.dtype == dtype
    assert torch.equal(unit, torch.ones_like(loss))
    assert unit is not unit_grad(loss[:2])
    with torch.inference_mode():
        assert not unit_grad(torch.zeros(7)).is_inference()


@LOSSES
@DTYPES
def test_backward_launches_nothing_and_gives_the_same_bits(device, loss, dtype):
    expected = gradients(loss, dtype, device)
    value, leaves = case(loss, dtype, device)
    unit = unit_grad(value)
    with measured() as traffic:
        actual = torch.autograd.grad(value, leaves, unit)
    assert traffic.launches == []
    assert not traffic.loaded
    assert not traffic.stored
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@LOSSES
@HALVES
def test_gradients_of_16_bit_leaves_are_converted_by_one_launch(device, loss, dtype):
    expected = gradients(loss, dtype, device)
    value, leaves = case(loss, dtype, device)
    assert value.dtype == accumulator(dtype)
    unit = unit_grad(value)
    with measured() as traffic:
        actual = torch.autograd.grad(value, leaves, unit)
    assert traffic.launches == ["scale_gradients"]
    assert all(t.dtype == dtype for t in actual)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@LOSSES
@pytest.mark.parametrize("change", [lambda t: 3 * t, lambda t: t.sum() * 3], ids=["times", "sum"])
def test_a_loss_changed_before_backward_is_scaled(device, loss, change):
    """The op then receives another tensor; so do expanded ones."""
    expected = [3 * g for g in gradients(loss, torch.float64, device)]
    value, leaves = case(loss, torch.float64, device)
    value = change(value)
    actual = torch.autograd.grad(value, leaves, unit_grad(value))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


@LOSSES
def test_ones_that_are_another_tensor_are_read(device, loss):
    """Expanded ones with stride 0; and twos of the unit's shape."""
    ones, twos = (lambda t, k=k: t.new_full((1,), k).expand(SIZES.stack) for k in (1.0, 2.0))
    once, twice = (gradients(loss, torch.float64, device, u) for u in (ones, twos))
    unit = gradients(loss, torch.float64, device, unit_grad)
    assert all(torch.equal(a, b) for a, b in zip(once, unit, strict=True))
    assert all(torch.equal(a, 2 * b) for a, b in zip(twice, unit, strict=True))


@LOSSES
@DTYPES
def test_a_retained_graph_keeps_its_gradients(device, loss, dtype):
    """Repeated backward passes, with gradients from another op too.

    Autograd may add in place into `grad` and on the way there, but not into saved gradients.
    """
    expected = gradients(loss, dtype, device)
    value, leaves = case(loss, dtype, device)
    other = sum((2 * t).sum() for t in leaves)
    unit = unit_grad(value)
    for backwards in range(1, 5):
        torch.autograd.backward([value, other], [unit, None], retain_graph=backwards < 4)
        for leaf, g in zip(leaves, expected, strict=True):
            torch.testing.assert_close(leaf.grad, backwards * (g + 2))


@LOSSES
@DTYPES
def test_grad_of_a_leaf_is_separate_from_the_retained_graph(device, loss, dtype):
    """Clipping or zeroing `grad` must not reach the next backward."""
    expected = gradients(loss, dtype, device)
    value, leaves = case(loss, dtype, device)
    for retained in (True, True, False):
        value.backward(unit_grad(value), retain_graph=retained)
        assert all(torch.equal(t.grad, g) for t, g in zip(leaves, expected, strict=True))
        for t in leaves:
            t.grad.zero_()


@LOSSES
def test_a_gradient_written_into_stops_the_next_backward(device, loss):
    """`torch.autograd.grad` returns saved tensors; torch detects that one was changed."""
    value, leaves = case(loss, torch.float32, device)
    actual = torch.autograd.grad(value, leaves, unit_grad(value), retain_graph=True)
    again = torch.autograd.grad(value, leaves, unit_grad(value), retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(actual, again, strict=True))
    actual[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(value, leaves, unit_grad(value))


@LOSSES
def test_no_second_derivative(device, loss):
    value, leaves = case(loss, torch.float64, device)
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(value, leaves, unit_grad(value), create_graph=True)


def test_a_compiled_backward_is_scaled(device):
    """A compiled graph cannot depend on the identity of a tensor; its results are equal."""
    inputs = make_inputs(SIZES, torch.float32, device)
    leaves = leaves_of(inputs)
    compiled = torch.compile(lambda *t: generator(inputs, list(t)), backend="aot_eager")
    value = compiled(*leaves)
    actual = torch.autograd.grad(value, leaves, unit_grad(value))
    expected = gradients(generator, torch.float32, device)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
