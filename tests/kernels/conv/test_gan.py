"""Forward pass of GANs against its definition: gradients, where they are written, launches."""

import pytest
import torch
from cases import FAST_MODE, assert_close
from conv_cases import Maker, poisoned, tensors_of, upstream_of
from pkd_kernels import ConvLayer, GANLayers, GANOutput, gan_pass, reference
from torch import Tensor

from bench.profiling import measured

SIDES = (16, 8, 4, 1)
MINE = pytest.mark.parametrize("op", [gan_pass, reference.gan_pass], ids=["kernel", "definition"])


def make_gan(
    make: Maker, widths: tuple[int, ...] = (2, 3, 2), discriminator: bool = True
) -> GANLayers:
    """Three layers a chain, from images of 16 x 16 pixels and widths[0] channels."""
    image, a, b = widths

    def encoder(outputs: int) -> list[ConvLayer]:
        *layers, last = make.chain((image, a, b, outputs), SIDES)
        return [*layers, last._replace(activation="none")]

    decoder = make.chain((4, b, a, image), SIDES[::-1])
    return GANLayers(encoder(4), decoder, encoder(4), encoder(1) if discriminator else [])


def parameters_of(gans: list[GANLayers]) -> list[Tensor]:
    return [p for gan in gans for p in tensors_of(torch.empty(0), gan.layers)[1:]]


def differentiable(outputs: tuple[GANOutput, ...]) -> list[Tensor]:
    return [t for output in outputs for t in output if t is not None and t.requires_grad]


def results(op, x: Tensor, gans: list[GANLayers], stack: int, used=None) -> list[Tensor]:
    """All outputs, and gradients of all parameters; zeros where a definition has none."""
    outputs, parameters = op(x, gans, stack=stack), parameters_of(gans)
    chosen = [t for i, t in enumerate(differentiable(outputs)) if used is None or i in used]
    grads = torch.autograd.grad(chosen, parameters, upstream_of(chosen), allow_unused=True)
    zeros = [
        torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters, strict=True)
    ]
    return [t.detach() for output in outputs for t in output if t is not None] + zeros


def assert_equals_definition(x: Tensor, gans: list[GANLayers], stack: int, used=None) -> None:
    expected = results(reference.gan_pass, x, gans, stack, used)
    assert_close(results(gan_pass, x, gans, stack, used), expected, torch.float64)


@pytest.mark.parametrize(
    ("batch", "stack"),
    [
        (1, 1),
        pytest.param(1, 3, marks=pytest.mark.slow),
        pytest.param(3, 2, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("each_tiling")
def test_one_gan(device, batch, stack):
    make = Maker(torch.float64, device, stack)
    x = make.x(batch, 2, 16).detach()
    assert_equals_definition(x, [make_gan(make)], stack)


@pytest.mark.parametrize("batch", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_two_gans_of_different_widths_one_without_discriminator(device, batch):
    make = Maker(torch.float64, device, stack=2)
    gans = [make_gan(make, (1, 3, 4)), make_gan(make, (1, 2, 1), discriminator=False)]
    assert_equals_definition(make.x(batch, 1, 16).detach(), gans, 2)


@pytest.mark.parametrize(
    "used",
    [
        {5},
        {3, 4},
        {0, 4},
        *(pytest.param(u, marks=pytest.mark.slow) for u in ({0}, {1}, {2}, {3}, {1, 5}, {2, 3, 4})),
    ],
    ids=str,
)
def test_gradients_of_some_outputs(device, used):
    """z1, xh, z2, logits_real, logits_fake, f_fake: those of the others are absent, not zero."""
    make = Maker(torch.float64, device, stack=1)
    assert_equals_definition(make.x(1, 2, 16).detach(), [make_gan(make)], 1, used)


@pytest.mark.parametrize("frozen", ["encoder", "decoder", "reencoder", "discriminator"])
def test_frozen_networks(device, frozen):
    make = Maker(torch.float64, device, stack=1)
    gan, x = make_gan(make), make.x(1, 2, 16).detach()
    constants = tensors_of(x, getattr(gan, frozen))[1:]
    for p in constants:
        p.requires_grad_(False)
    learning = [p for p in parameters_of([gan]) if p.requires_grad]
    grads, fields = [], None
    for op in (reference.gan_pass, gan_pass):
        (output,) = op(x, [gan])
        fields = fields or [k for k, t in output._asdict().items() if t.requires_grad]
        outputs = [getattr(output, k) for k in fields]
        found = torch.autograd.grad(outputs, learning, upstream_of(outputs), allow_unused=True)
        grads.append([x.new_zeros(()) if g is None else g for g in found])
    assert_close(*grads[::-1], torch.float64)


@FAST_MODE
@pytest.mark.parametrize("of", ["generator", "discriminator"])
def test_gradcheck(device, of, fast_mode):
    """Of the outputs that are functions of these parameters."""
    make = Maker(torch.float64, device, stack=1)
    gan, x = make_gan(make, (1, 1, 1)), make.x(1, 1, 16).detach()
    split = len(parameters_of([gan._replace(discriminator=[])]))
    parameters = parameters_of([gan])
    learning = parameters[:split] if of == "generator" else parameters[split:]

    def outputs(*values):
        replaced = {id(p): v for p, v in zip(learning, values, strict=True)}
        chains = [[layer.map(lambda p: replaced.get(id(p), p)) for layer in c] for c in gan]
        (output,) = gan_pass(x, [GANLayers(*chains)])
        z1, xh, z2, real, fake, _, f_fake = output
        return (z1, xh, z2, f_fake) if of == "generator" else (real, fake)

    assert torch.autograd.gradcheck(outputs, learning, fast_mode=fast_mode)


@MINE
def test_the_gradients_of_the_networks_are_separate(device, op):
    """Logits train the discriminator alone, f_fake the encoder and the decoder alone."""
    make = Maker(torch.float64, device, stack=1)
    gan, x = make_gan(make), make.x(1, 2, 16)
    (output,) = op(x, [gan])
    assert not output.f_real.requires_grad
    chains = [tensors_of(x, chain)[1:] for chain in gan]

    def reached(loss: Tensor) -> list[bool]:
        return [
            any(
                g is not None
                for g in torch.autograd.grad(loss, chain, retain_graph=True, allow_unused=True)
            )
            for chain in chains
        ]

    logits = (output.logits_real + output.logits_fake).sum()
    assert reached(logits) == [False, False, False, True]
    assert reached(output.f_fake.sum()) == [True, True, False, False]
    if op is gan_pass:
        (logits + output.z1.sum()).backward()
        assert x.grad is None


def test_gradients_of_logits_with_gaps_in_memory(device):
    """Contiguous rows of one image, with an arbitrary batch stride, that are not adjacent."""
    make = Maker(torch.float64, device, stack=2)
    gan, x = make_gan(make), make.x(1, 2, 16).detach()
    up, d = make.normal(4, 2, 1, 1), tensors_of(x, gan.discriminator)[1:]
    actual, expected = (
        torch.autograd.grad(op(x, [gan], stack=2)[0][3:5], d, [up[::2][:1], up[1::2][:1]])
        for op in (gan_pass, reference.gan_pass)
    )
    assert_close(actual, expected, torch.float64)


@pytest.mark.parametrize("batch", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_main_grads_are_overwritten(device, batch):
    make = Maker(torch.float64, device, stack=2)
    gans, x = [make_gan(make), make_gan(make, (2, 1, 3))], make.x(batch, 2, 16).detach()
    parameters = parameters_of(gans)
    expected = results(reference.gan_pass, x, gans, 2)[-len(parameters) :]
    for p in parameters:
        p.main_grad = torch.full_like(p, torch.nan)
    outputs = differentiable(gan_pass(x, gans, stack=2))
    torch.autograd.backward(outputs, upstream_of(outputs))
    assert all(p.grad is None for p in parameters)
    assert_close([p.main_grad for p in parameters], expected, torch.float64)


def test_main_grads_that_no_gradient_reaches_are_unchanged(device):
    make = Maker(torch.float64, device, stack=1)
    gan, x = make_gan(make), make.x(1, 2, 16).detach()
    for p in parameters_of([gan]):
        p.main_grad = torch.full_like(p, torch.nan)
    (output,) = gan_pass(x, [gan])
    output.logits_fake.sum().backward()
    written = [
        all(not p.main_grad.isnan().any() for p in tensors_of(x, chain)[1:]) for chain in gan
    ]
    assert written == [False, False, False, True]
    generator = parameters_of([gan._replace(discriminator=[])])
    assert all(p.main_grad.isnan().all() for p in generator)


def test_every_output_is_written_and_runs_are_bitwise_equal(device):
    make = Maker(torch.float64, device, stack=2)
    gan, x = make_gan(make), make.x(2, 2, 16).detach()
    before = [t.clone() for t in (x, *parameters_of([gan]))]
    first = results(gan_pass, x, [gan], 2)
    with poisoned():
        second = results(gan_pass, x, [gan], 2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip((x, *parameters_of([gan])), before, strict=True))


@pytest.mark.parametrize("count", [1, 2])
def test_launches_do_not_grow_with_networks(device, count):
    """Nine levels of a generator; the layers of the discriminators are beside them."""
    make = Maker(torch.float32, device, stack=1)
    gans, x = [make_gan(make) for _ in range(count)], make.x(1, 2, 16).detach()
    with measured() as traffic:
        outputs = gan_pass(x, gans)
    assert traffic.launches == ["conv_forward"] * 9
    chosen = differentiable(outputs)
    # Gradients of the logits as a loss returns them: adjacent halves, which are not copied.
    both = torch.ones(2, 1, 1, 1, device=device)
    up = [torch.ones_like(t) for t in chosen]
    for i in range(0, len(chosen), 6):
        up[i + 3 : i + 5] = both.split(1)
    with measured() as traffic:
        torch.autograd.grad(chosen, parameters_of(gans), up)
    assert traffic.launches == ["conv_backward"] * 9


def test_nothing_is_saved_without_gradients(device):
    make = Maker(torch.float64, device, stack=1)
    gan, x, kept = make_gan(make), make.x(1, 2, 16).detach(), []
    hooks = torch.autograd.graph.saved_tensors_hooks(kept.append, lambda t: t)
    with hooks, torch.no_grad(), measured() as traffic:
        outputs = gan_pass(x, [gan])
    assert not kept
    assert not differentiable(outputs)
    assert not traffic.stored["conv_forward.u_ptr"]
    (expected,) = reference.gan_pass(x, [gan])
    assert_close([*outputs[0]], [t.detach() for t in expected], torch.float64)


def test_retained_graph_and_no_second_derivative(device):
    make = Maker(torch.float64, device, stack=1)
    gan, x = make_gan(make), make.x(1, 2, 16).detach()
    outputs, parameters = differentiable(gan_pass(x, [gan])), parameters_of([gan])
    up = upstream_of(outputs)
    first, second = (
        torch.autograd.grad(outputs, parameters, up, retain_graph=True) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(outputs, parameters, up, create_graph=True)


def test_models_that_share_images_are_refused(device):
    make = Maker(torch.float64, device, stack=3)
    with pytest.raises(ValueError, match="channels"):
        gan_pass(make.normal(1, 2, 16, 16), [make_gan(make)], stack=3)
