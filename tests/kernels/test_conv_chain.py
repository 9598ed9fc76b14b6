"""The fused layers against their definition, alone, in chains and as networks."""

from contextlib import contextmanager
from itertools import pairwise
from unittest import mock

import pytest
import torch
from cases import DTYPES, assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from pkd_kernels import (
    ConvLayer,
    conv_chain,
    conv_chain_pair,
    conv_layer,
    conv_norm_act,
    dispatch,
    reference,
)
from pkd_kernels.reference import ACTIVATIONS
from torch import Tensor

from bench.profiling import measured
from pkd.models.architecture import Architecture
from pkd.models.ganomaly import Discriminator, Generator

# How a map's side changes from one layer to the next: all that the kernels know.
SIDES = [(4, 2), (6, 3), (24, 12), (32, 16), (2, 4), (3, 6), (5, 10), (16, 32), (4, 1), (1, 4)]


@contextmanager
def summed(how: str):
    """Every layer that can be is summed by a matrix product, or none is; of weight gradients a
    program has as many as it may, or as few."""
    least = {"matrix": 1, "spread": 2**30}[how]
    caches = [conv_layer._tiling, conv_layer._weight_tiling]
    with (
        mock.patch.object(conv_layer, "MATRIX_LEAST", 1),
        mock.patch.object(conv_layer, "MATRIX_PROGRAMS", least),
        mock.patch.object(conv_layer, "WEIGHT_PROGRAMS", least),
    ):
        [cache.cache_clear() for cache in caches]
        yield
    [cache.cache_clear() for cache in caches]


@pytest.fixture(params=["matrix", "spread"])
def both(request):
    with summed(request.param):
        yield


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
        """From widths[0] channels of side sides[0] to widths[1] of sides[1]."""
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
        """Layers between maps of these widths and sides, normalised, but for single pixels."""
        names = [*ACTIVATIONS] * len(sides)
        steps = zip(pairwise(widths), pairwise(sides), names, strict=False)
        return [self.layer(w, s, s[1] > 1, name) for w, s, name in steps]


def tensors_of(x: Tensor, layers: list[ConvLayer]) -> list[Tensor]:
    return [x, *(t for layer in layers for t in layer[:3] if t is not None)]


def wide(x: Tensor, layers: list[ConvLayer]) -> tuple[Tensor, list[ConvLayer]]:
    """The same in float64, as leaves of their own."""

    def leaf(t: Tensor | None) -> Tensor | None:
        return t if t is None else t.detach().double().requires_grad_(t.requires_grad)

    return leaf(x), [ConvLayer(*map(leaf, layer[:3]), *layer[3:]) for layer in layers]


def upstream_of(outputs: list[Tensor]) -> list[Tensor]:
    """Gradients of both signs, none of them 0, the same in every type."""
    generator = torch.Generator().manual_seed(1)
    return [(torch.randint(-12, 12, y.shape, generator=generator).to(y) + 0.5) / 4 for y in outputs]


def results(op, x: Tensor, layers: list[ConvLayer], *, taps, stack: int, used=None) -> list[Tensor]:
    """Outputs, and gradients of all that wants one; only outputs `used` have a gradient."""
    outputs = op(x, layers, taps=taps, stack=stack)
    leaves = [t for t in tensors_of(x, layers) if t.requires_grad]
    chosen = [y for i, y in enumerate(outputs) if used is None or i in used]
    grads = torch.autograd.grad(chosen, leaves, upstream_of(chosen), allow_unused=True)
    zeros = [torch.zeros_like(t) if g is None else g for g, t in zip(grads, leaves, strict=True)]
    return [*(y.detach() for y in outputs), *zeros]


def assert_equals_definition(x: Tensor, layers: list[ConvLayer], **kwargs) -> None:
    """float32 may round once a layer, as PyTorch's own does. In 16 bits a layer's y or u and its dc
    are rounded before the gradient itself is."""
    expected = results(reference.conv_chain, *wide(x, layers), **kwargs)
    roundings = {2: 3, 4: len(layers), 8: 1}[x.itemsize]
    assert_close(results(conv_chain, x, layers, **kwargs), expected, x.dtype, roundings)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sides", SIDES, ids=lambda s: f"{s[0]}-{s[1]}")
@pytest.mark.usefixtures("both")
def test_every_geometry(device, sides, dtype):
    make = Maker(dtype, device, stack=1)
    layer = make.layer((2, 3), sides, False, "none")
    assert_equals_definition(make.x(1, 2, sides[0]), [layer], taps=(0,), stack=1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("sides", SIDES, ids=lambda s: f"{s[0]}-{s[1]}")
@pytest.mark.usefixtures("both")
def test_statistics_of_every_geometry(device, sides, dtype):
    """Of a few channels a program has several: its threads must not mix them up in a sum."""
    make = Maker(dtype, device, stack=1)
    layers = [
        make.layer((2, 2), sides[::-1], sides[0] > 1, "leaky_relu"),
        make.layer((2, 2), sides, False, "tanh"),
    ]
    assert_equals_definition(make.x(1, 2, sides[1]), layers, taps=(1,), stack=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("sides", [(6, 3), (3, 6)], ids=["down", "up"])
@pytest.mark.usefixtures("both")
def test_every_part_of_a_layer(device, sides, norm, activation, dtype):
    make = Maker(dtype, device, stack=2)
    layer = make.layer((1, 2), sides, norm, activation)
    assert_equals_definition(make.x(1, 1, sides[0]), [layer], taps=(0,), stack=2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("batch", "stack"), [(1, 1), (1, 3), (5, 2)])
@pytest.mark.usefixtures("both")
def test_chain(device, batch, stack, dtype):
    """Widths, latent and maps without a power of two; taps in between, at a pixel, at the end."""
    make = Maker(dtype, device, stack)
    layers = make.chain((3, 5, 7, 3, 2), (8, 4, 1, 4, 8))
    assert_equals_definition(make.x(batch, 3, 8), layers, taps=(0, 1, 3), stack=stack)


@pytest.mark.parametrize(
    ("widths", "sides"),
    [
        ((67, 3), (4, 2)),
        ((3, 70), (4, 1)),
        ((140, 3), (4, 1)),
        ((257, 2), (1, 4)),
        ((2, 1), (4, 1)),
    ],
    ids=str,
)
def test_more_channels_than_a_program_takes_at_once(device, widths, sides):
    make = Maker(torch.float64, device, stack=1)
    layer = make.layer(widths, sides, sides[1] > 1, "none")
    assert_equals_definition(make.x(1, widths[0], sides[0]), [layer], taps=(0,), stack=1)


@st.composite
def chains(draw) -> dict:
    """A walk from map to map; what it holds, wants and shows."""
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
        # The first weight is always wanted: every output depends on something.
        tensor.requires_grad_(i == 1 or i not in case["frozen"])
    with mock.patch.object(dispatch, "BACKEND", "triton"), summed(case["summed"]):
        assert_equals_definition(x, layers, taps=case["taps"], stack=stack, used=case["used"])


@pytest.mark.parametrize("batch", [1, 2])
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
    found = [y.detach(), *torch.autograd.grad(y, leaves, *upstream_of([y]))]
    expected = results(reference.conv_chain, x, [layer], taps=(0,), stack=2)
    assert_close(found, expected, torch.float64)


@pytest.mark.parametrize(
    ("widths", "sides"), [((1, 2, 1), (4, 1, 4)), ((1, 1, 1), (4, 2, 4))], ids=["point", "stride"]
)
def test_gradcheck(device, widths, sides):
    make = Maker(torch.float64, device, stack=1)
    layers = make.chain(widths, sides)

    def outputs(x, *parameters):
        values = iter(parameters)
        chain = [
            ConvLayer(*(t if t is None else next(values) for t in layer[:3]), *layer[3:])
            for layer in layers
        ]
        return conv_chain(x, chain, taps=(0, 1))

    assert torch.autograd.gradcheck(outputs, tensors_of(make.x(1, 1, 4), layers))


def pair_results(op, real: Tensor, fake: Tensor, layers: list[ConvLayer], stack: int):
    """Values; gradients to the parameters of the y's; gradient to `fake` of f_fake."""
    y_real, y_fake, f_real, f_fake = op(real, fake, layers, tap=1, stack=stack)
    up = upstream_of([y_real, y_fake, f_fake])
    parameters = tensors_of(real, layers)[1:]
    of_fake = torch.autograd.grad(f_fake, fake, up[2], retain_graph=True)
    of_parameters = torch.autograd.grad([y_real, y_fake], parameters, up[:2])
    return [t.detach() for t in (y_real, y_fake, f_real, f_fake)] + [*of_fake, *of_parameters]


@pytest.mark.parametrize(("batch", "stack"), [(1, 1), (1, 3), (3, 2)])
@pytest.mark.usefixtures("both")
def test_pair(device, batch, stack):
    make = Maker(torch.float64, device, stack)
    layers = make.chain((2, 3, 2, 1), (16, 8, 4, 1))
    real, fake = make.x(batch, 2, 16).detach(), make.x(batch, 2, 16)
    found = pair_results(conv_chain_pair, real, fake, layers, stack)
    expected = pair_results(reference.conv_chain_pair, real, fake, layers, stack)
    assert_close(found, expected, torch.float64)


def test_gradients_of_one_pair_that_lie_in_memory_with_gaps_in_between(device):
    """One image's rows of a buffer: contiguous, side by side, and of a stride that says nothing."""
    make = Maker(torch.float64, device, stack=2)
    layers = make.chain((2, 3, 2, 1), (16, 8, 4, 1))
    real, fake = make.x(1, 2, 16).detach(), make.x(1, 2, 16)
    up = make.normal(4, 2, 1, 1)
    found, expected = (
        torch.autograd.grad(
            op(real, fake, layers, tap=1, stack=2)[:2],
            tensors_of(real, layers)[1:],
            [up[::2][:1], up[1::2][:1]],
        )
        for op in (conv_chain_pair, reference.conv_chain_pair)
    )
    assert_close(found, expected, torch.float64)


@pytest.mark.parametrize("order", [1, -1], ids=["y-first", "f-first"])
def test_the_pairs_two_gradients_are_kept_apart(device, order):
    make = Maker(torch.float64, device, stack=2)
    layers = make.chain((2, 3, 2, 1), (16, 8, 4, 1))
    real, fake = make.x(1, 2, 16), make.x(1, 2, 16)
    y_real, y_fake, f_real, f_fake = conv_chain_pair(real, fake, layers, tap=1, stack=2)
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


@contextmanager
def poisoned():
    """Memory that the op asks for arrives full of NaN."""

    def bad(make):
        return lambda *args, **kwargs: make(*args, **kwargs).fill_(torch.nan)

    with (
        mock.patch.object(torch, "empty", bad(torch.empty)),
        mock.patch.object(torch, "empty_like", bad(torch.empty_like)),
        mock.patch.object(Tensor, "new_empty", bad(Tensor.new_empty)),
    ):
        yield


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.usefixtures("both")
def test_every_output_is_written(device, batch):
    make = Maker(torch.float64, device, stack=2)
    layers = make.chain((2, 3, 5, 3, 2), (8, 4, 1, 4, 8))
    x = make.x(batch, 2, 8)
    expected = results(reference.conv_chain, x, layers, taps=(0, 3), stack=2)
    with poisoned():
        found = results(conv_chain, x, layers, taps=(0, 3), stack=2)
    assert_close(found, expected, torch.float64)


@pytest.mark.usefixtures("both")
def test_a_channel_without_variance(device):
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
    ("channels", "sides", "batch"),
    [
        ((64, 3), (16, 8), 1),  # the larger tile
        ((3, 64), (8, 16), 1),
        ((256, 2), (4, 8), 1),
        ((1, 2), (64, 32), 1),  # images of 64 and 128 pixels: pixels in pieces
        ((2, 1), (32, 64), 1),
        ((1, 1), (128, 64), 1),
        ((1, 2), (8, 4), 64),
        ((3, 20), (8, 4), 64),  # matrix products
        ((40, 9), (2, 4), 32),
    ],
)
def test_wide_layers_large_images_and_large_batches(device, channels, sides, batch):
    make = Maker(torch.float64, device, stack=1)
    x = make.x(batch, channels[0], sides[0])
    layer = make.layer(channels, sides, True, "leaky_relu")
    assert_equals_definition(x, [layer], taps=(0,), stack=1)


def test_weight_gradients_of_more_than_a_large_tile(device):
    make = Maker(torch.float64, device, stack=1)
    layer, x = make.layer((65, 5), (2, 4), False, "none"), make.x(3, 65, 2)
    with summed("matrix"):
        tiling = conv_layer._weight_tiling(2, 65, 5, 3, 1)
        assert (tiling.rows, tiling.columns, tiling.programs) == (64, 64, 4)
        assert_equals_definition(x, [layer], taps=(0,), stack=1)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.usefixtures("both")
def test_nan_is_not_hidden(device, activation):
    """A model that diverged shows; its neighbours are untouched."""
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


@contextmanager
def matmul_precision(older: str, newer: str = ""):
    """PyTorch's older switch, which sets the newer one; then the newer one alone."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(older)
    try:
        if newer:
            torch.backends.cuda.matmul.fp32_precision = newer
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def precision_taken(dtype: torch.dtype) -> str:
    """What a layer's matrix product is told."""
    make = Maker(dtype, "cpu", stack=1)
    layer, x = make.layer((1, 1), (8, 4), True, "relu"), make.x(1, 1, 8).detach()
    kernel = mock.MagicMock()
    with (
        mock.patch.object(dispatch, "BACKEND", "triton"),
        mock.patch.object(conv_layer, "_forward_kernel", kernel),
    ):
        conv_chain(x, [layer], taps=(0,))
    (call,) = kernel.__getitem__.return_value.mock_calls
    return call.kwargs["PRECISION"]


@pytest.mark.parametrize(
    ("dtype", "told", "taken"),
    [
        (torch.float32, "highest", "ieee"),
        (torch.float32, "high", "tf32"),
        (torch.float64, "high", "ieee"),
        (torch.float16, "high", "ieee"),
    ],
    ids=str,
)
def test_tf32_is_taken_where_pytorch_is_told_to(dtype, told, taken):
    with matmul_precision(told):
        assert precision_taken(dtype) == taken


@pytest.mark.parametrize(("older", "newer"), [("highest", "tf32"), ("high", "ieee")])
def test_pytorchs_newer_switch_is_followed_against_the_older(older, newer):
    with matmul_precision(older, newer):
        assert precision_taken(torch.float32) == newer


def test_tf32_is_right_to_its_ten_bits(device):
    """Through three layers and back, so to a little less; the interpreter has no TF32."""
    make = Maker(torch.float32, device, stack=3)
    layers, x = make.chain((3, 16, 9, 3), (16, 8, 4, 8)), make.x(2, 3, 16)
    expected = results(reference.conv_chain, *wide(x, layers), taps=(2,), stack=3)
    with matmul_precision("high"), summed("matrix"):
        found = results(conv_chain, x, layers, taps=(2,), stack=3)
    for result, wanted in zip(found, expected, strict=True):
        assert (result - wanted).abs().max() <= 2**-8 * wanted.abs().max()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.usefixtures("both")
def test_main_grad_is_written_in_place_of_what_was_there(device, batch):
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
    found = [*(y.detach() for y in outputs), x.grad, *(p.main_grad for p in parameters)]
    assert_close(found, expected, torch.float64)


def test_main_grad_of_a_pair_holds_what_the_parameters_get(device):
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


def test_a_layer_behind_the_gradient_gets_none(device):
    make = Maker(torch.float64, device, stack=1)
    layers, x = make.chain((1, 2, 2), (8, 4, 8)), make.x(1, 1, 8)
    layers[1].weight.main_grad = torch.full_like(layers[1].weight, 7.0)
    first, _ = conv_chain(x, layers, taps=(0, 1))
    first.backward(*upstream_of([first]))
    assert layers[1].gamma.grad is None
    assert torch.equal(layers[1].weight.main_grad, torch.full_like(layers[1].weight, 7.0))
    assert layers[0].weight.grad.any()


@pytest.mark.parametrize("wanted", ["x", "w0", "gamma0", "beta0", "w1", "gamma1", "beta1"])
def test_constants_get_no_gradient_and_cost_none(device, wanted):
    """Of the input and two layers' parameters one alone is wanted."""
    make = Maker(torch.float64, device, stack=2)
    layers, x = make.chain((2, 3, 2), (8, 4, 8)), make.x(2, 2, 8)
    names = ("x", "w0", "gamma0", "beta0", "w1", "gamma1", "beta1")
    tensors = dict(zip(names, tensors_of(x, layers), strict=True))
    for name, tensor in tensors.items():
        tensor.requires_grad_(name == wanted)
    assert_equals_definition(x, layers, taps=(1,), stack=2)
    (y,) = conv_chain(x, layers, taps=(1,), stack=2)
    with measured() as traffic:
        y.sum().backward()
    assert [name for name, t in tensors.items() if t.grad is not None] == [wanted]
    layers_passed = 1 if wanted.endswith("1") else 2  # gamma's sum over images is of its layer
    assert traffic.launches.count("conv_layer") == 1 + layers_passed
    if device == "cpu":
        weights = tensors[wanted].numel() if wanted in ("w0", "w1") else 0
        assert traffic.stored["conv_layer.w_grad_ptr"] == weights
        inputs = {"x": 2, "w0": 1, "gamma0": 1, "beta0": 1}.get(wanted, 0)
        assert bool(traffic.stored["conv_layer.x_grad_ptr"]) == (inputs > 0)


@pytest.mark.parametrize("trained", [True, False], ids=["no_grad", "frozen"])
def test_nothing_is_kept_where_nothing_is_wanted(device, trained):
    make = Maker(torch.float64, device, stack=2)
    layers, x = make.chain((2, 3, 2), (8, 4, 8)), make.x(1, 2, 8).detach()
    for tensor in tensors_of(x, layers):
        tensor.requires_grad_(trained)
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(kept.append, lambda t: t)
    with hooks, torch.set_grad_enabled(not trained), measured() as traffic:
        outputs = conv_chain(x, layers, taps=(0, 1), stack=2)
    assert not kept and not any(y.requires_grad for y in outputs)
    assert not traffic.stored["conv_layer.u_ptr"] and not traffic.stored["conv_layer.rstd_ptr"]
    expected = reference.conv_chain(x, layers, taps=(0, 1), stack=2)
    assert_close(list(outputs), [y.detach() for y in expected], torch.float64)


def test_inputs_stay_as_they_are_and_runs_agree_in_every_bit(device):
    make = Maker(torch.float32, device, stack=2)
    layers, x = make.chain((2, 3, 2), (8, 4, 8)), make.x(2, 2, 8)
    tensors = tensors_of(x, layers)
    before, versions = [t.detach().clone() for t in tensors], [t._version for t in tensors]
    first, second = (results(conv_chain, x, layers, taps=(0, 1), stack=2) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
    assert [t._version for t in tensors] == versions


def test_an_image_and_a_model_do_not_depend_on_their_neighbours(device):
    make = Maker(torch.float64, device, stack=3)
    layers, x = make.chain((2, 3, 2), (8, 4, 8)), make.x(2, 2, 8)
    y = conv_chain(x, layers, taps=(1,), stack=3)[0].detach()
    own = [ConvLayer(*(t.detach().chunk(3)[1] for t in layer[:3]), *layer[3:]) for layer in layers]
    (alone,) = conv_chain(x.detach()[1:, 2:4], own, taps=(1,))
    assert_close([alone], [y[1:, 2:4]], torch.float64)


def test_backward_twice_through_a_retained_graph_and_never_through_a_gradient(device):
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
def test_what_backward_needs_must_not_change_meanwhile(device, changed):
    make = Maker(torch.float64, device, stack=1)
    layers, x = make.chain((1, 1), (8, 4)), make.x(1, 1, 8)
    (y,) = conv_chain(x, layers, taps=(0,))
    with torch.no_grad():
        (layers[0].weight if changed == "weight" else y).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def refused(x: Tensor, layer: ConvLayer, match: str, **kwargs) -> None:
    with pytest.raises(ValueError, match=match):
        conv_chain(x, [layer], **{"taps": (0,), "stack": 2} | kwargs)


def test_refuses_with_a_reason(device):
    make = Maker(torch.float32, device, stack=2)
    layer, x = make.layer((2, 3), (8, 4), True, "relu"), make.x(1, 2, 8)
    up, point = make.layer((2, 3), (4, 8), True, "relu"), make.layer((2, 3), (4, 1), False, "none")
    refused(x[..., :7], layer, r"on a map of \(8, 7\)")
    refused(x[..., :7, :7], layer, r"stride 2 and padding 1 on a map of \(7, 7\)")
    refused(x[..., :2, :2], layer, r"on a map of \(2, 2\)")
    refused(x[..., :1, :1], up, r"on a map of \(1, 1\)")
    refused(x, point, r"stride 1 and padding 0 on a map of \(8, 8\)")
    refused(x, layer._replace(weight=layer.weight[..., :3]), r"weight \(6, 2, 4, 3\) is not")
    refused(x, layer, r"weight \(6, 2, 4, 4\) is not that of 4 models", stack=4)
    refused(x[:, :3], layer, "3 channels, but 2 models of 2")
    refused(x, layer._replace(beta=None), "come together")
    refused(x, layer._replace(gamma=None), "come together")
    refused(x, layer._replace(gamma=layer.gamma[:5]), r"gamma \(5,\) on 2 models of 3 channels")
    refused(x[..., :4, :4], point._replace(gamma=layer.gamma, beta=layer.beta), "1 x 1 pixels")
    refused(x, layer._replace(activation="gelu"), "'gelu' is none of")
    refused(x.double(), layer, "types or devices differ")
    single, images = make.layer((1, 1), (4, 1), False, "none"), x.new_zeros(2**16, 1, 4, 4)
    refused(images, single._replace(weight=single.weight[:1]), "65536 images", stack=1)
    many = single._replace(weight=x.new_zeros(2**16, 1, 4, 4))
    refused(images[:1], many, "65536 models", stack=2**16)
    for taps in ((), (1,), (-1,), (0, 0)):
        refused(x, layer, "not ascending indices of 1 layers", taps=taps)
    shared = make.layer((6, 1), (4, 8), True, "relu")  # one model of 6 channels, not two of 3
    with pytest.raises(ValueError, match="6 channels, but 2 models of 6"):
        conv_chain(x, [layer, shared], taps=(1,), stack=2)


@pytest.mark.parametrize(
    ("norm", "activation", "extra"),
    [(False, "none", 0), (False, "tanh", 1), (True, "none", 1), (True, "relu", 1)],
)
def test_launches_of_one_image(device, norm, activation, extra):
    make = Maker(torch.float32, device, stack=2)
    layers, x = make.chain((2, 3, 2), (8, 4, 8)), make.x(1, 2, 8)
    layers.append(make.layer((2, 1), (8, 4), norm, activation))
    with measured() as traffic:
        outputs = conv_chain(x, layers, taps=(0, 1, 2), stack=2)
    assert traffic.launches == ["conv_layer"] * 3
    up = upstream_of(outputs)
    with measured() as traffic:
        torch.autograd.grad(outputs, tensors_of(x, layers), up)
    assert traffic.launches == ["conv_layer"] * (3 + extra)


@pytest.mark.parametrize("stack", [1, 3])
def test_networks_equal_their_definition(device, monkeypatch, stack):
    """A generator's and a discriminator's outputs and all gradients, as a step takes them."""
    architecture = Architecture(channels=1, widths=(1, 2, 3), latent=5)
    torch.manual_seed(0)
    networks = [kind(architecture, stack).double() for kind in (Generator, Discriminator)]
    parameters = [[*network.to(device).parameters()] for network in networks]
    with torch.no_grad():
        for p in (p for own in parameters for p in own):
            p.copy_(torch.randn(p.shape) / 2)
    x = torch.rand(1, stack, 32, 32).to(device, torch.float64) * 2 - 1

    def run() -> list[Tensor]:
        z1, xh, z2 = networks[0](x)
        real, fake, f_real, f_fake = networks[1](x, xh)
        of_g, of_d = [z1, xh, z2, f_fake], [real, fake]
        grads = torch.autograd.grad(of_g, parameters[0], upstream_of(of_g), retain_graph=True)
        grads += torch.autograd.grad(of_d, parameters[1], upstream_of(of_d))
        return [*(t.detach() for t in (*of_g, f_real, *of_d)), *grads]

    found = run()
    monkeypatch.setattr(dispatch, "BACKEND", "reference")
    assert_close(found, run(), torch.float64)
