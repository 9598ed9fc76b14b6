"""Networks of a stack: initial weights, and independence of models and of images."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from pkd_kernels import conv_chain
from stack_helpers import MEMBERS, make_networks
from torch import Tensor

from pkd.models.architecture import IMAGE_SIZES, Architecture
from pkd.models.ganomaly import GAN, GANOutput, forward_gans, load_networks, network_tensors
from pkd.utils.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("double_precision")

TINY = Architecture(1, (2, 4, 8), 8)
COLOUR = Architecture(3, (1, 2, 4), 8)
SEEDS = (3, 1, 4)


def images(n, channels, seed=0):
    return torch.rand(n, channels, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def block(tensor, m):
    """The part of a parameter (M*C, ...) that belongs to model m."""
    return tensor.chunk(len(SEEDS))[m]


def columns(tensor, m):
    """The part of activations (N, M*C, ...) that belongs to model m."""
    return tensor.chunk(len(SEEDS), 1)[m]


@pytest.mark.parametrize(
    ("size", "stages"),
    [(16, (2, 5)), (32, (2, 5, 7)), (64, (2, 5, 7, 14)), (128, (2, 5, 7, 14, 28))],
)
def test_larger_images_have_more_stages_of_doubled_width(size, stages):
    architecture = Architecture(3, (2, 5, 7), 4, image_size=size)
    assert architecture.stages == stages
    gan = GAN(architecture, SEEDS)
    x = torch.rand(2, len(SEEDS) * 3, size, size) * 2 - 1
    z1, xh, z2 = gan.generator(x)
    assert z1.shape == z2.shape == (2, len(SEEDS) * 4)
    assert xh.shape == x.shape
    assert xh.abs().max() <= 1
    assert gan.discriminator(x, xh).f_real.shape == (2, len(SEEDS) * stages[-1], 4, 4)


@pytest.mark.parametrize("size", IMAGE_SIZES)
def test_the_decoder_mirrors_the_encoder_at_every_size(size):
    generator = GAN(Architecture(1, (2, 5, 7), 4, image_size=size), [0]).generator
    down = [(p.plan.inputs, p.plan.size_in) for p in generator.encoder]
    up = [(p.plan.outputs, p.plan.size_out) for p in generator.decoder]
    assert down == up[::-1]
    assert [layer.plan.normalised for layer in generator.encoder] == [True] * (len(down) - 1) + [
        False
    ]
    assert [layer.plan.activation for layer in generator.decoder][-2:] == ["relu", "tanh"]


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_initial_weights_of_a_model_depend_on_its_own_seed_only(norm):
    architecture = Architecture(1, (2, 4, 8), 8, norm)
    torch.manual_seed(123)
    stacked = GAN(architecture, SEEDS).state_dict()
    torch.manual_seed(321)
    for m, seed in enumerate(SEEDS):
        for key, value in GAN(architecture, [seed]).state_dict().items():
            assert torch.equal(block(stacked[key], m), value), (key, seed)


def test_other_seeds_give_other_initial_weights_in_every_layer():
    stacked = GAN(TINY, SEEDS)
    for name, p in stacked.named_parameters():
        if not name.endswith("beta"):
            assert not torch.equal(block(p, 0), block(p, 1)), name


def test_initialisation_does_not_change_the_global_random_state():
    before = torch.get_rng_state()
    GAN(TINY, SEEDS)
    assert torch.equal(torch.get_rng_state(), before)


def test_initial_weights_are_distributed_as_in_dcgan():
    """Mean and standard deviation are within five standard errors of N(0, 0.02) and N(1, 0.02)."""
    parameters = dict(GAN(Architecture(3, (16, 32, 64), 64), [0, 1]).named_parameters())
    for ending, mean in (("weight", 0.0), ("gamma", 1.0)):
        values = torch.cat([p.detach().flatten() for k, p in parameters.items() if ending in k])
        assert abs(values.mean() - mean) < 5 * 0.02 / len(values) ** 0.5
        assert abs(values.std() / 0.02 - 1) < 5 / (2 * len(values)) ** 0.5
    assert all((p == 0).all() for k, p in parameters.items() if "beta" in k)


@pytest.mark.parametrize("architecture", [TINY, COLOUR, Architecture(1, (1, 2, 4), 8, "batch")])
@pytest.mark.parametrize("training", [True, False])
def test_a_stack_gives_the_outputs_of_its_models(architecture, training):
    x = images(4, 3 * architecture.channels)
    stacked = GAN(architecture, SEEDS).train(training)
    reconstruction = stacked.generator(x)
    outputs = [*reconstruction, *stacked.discriminator(x, reconstruction.xh)]
    for m, seed in enumerate(SEEDS):
        single = GAN(architecture, [seed]).train(training)
        images_m = columns(x, m)
        reconstruction = single.generator(images_m)
        expected = [*reconstruction, *single.discriminator(images_m, reconstruction.xh)]
        for output, value in zip(outputs, expected, strict=True):
            torch.testing.assert_close(columns(output, m), value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("architecture", [TINY, COLOUR])
def test_shared_images_equal_images_repeated_for_each_model(architecture):
    x = images(4, architecture.channels)
    generator = GAN(architecture, SEEDS).generator
    parameters = list(generator.parameters())
    results = []
    for inputs in (x, x.repeat(1, len(SEEDS), 1, 1)):
        output = generator(inputs)
        loss = (output.z1 - output.z2).square().sum() + output.xh.square().sum()
        results.append([*output, *torch.autograd.grad(loss, parameters)])
    for shared, repeated in zip(*results, strict=True):
        torch.testing.assert_close(shared, repeated, rtol=1e-9, atol=1e-11)


def test_shapes():
    gan = GAN(COLOUR, SEEDS)
    x = images(2, 9)
    reconstruction = gan.generator(x)
    assert [t.shape for t in reconstruction] == [(2, 24), (2, 9, 32, 32), (2, 24)]
    output = gan.discriminator(x, reconstruction.xh)
    assert [t.shape for t in output] == [(2, 3), (2, 3), (2, 12, 4, 4), (2, 12, 4, 4)]
    assert reconstruction.xh.abs().max() <= 1


@pytest.mark.parametrize("training", [True, False])
def test_outputs_for_an_image_do_not_depend_on_its_batch(training):
    x = images(5, 3)
    gan = GAN(TINY, SEEDS).train(training)
    batch = [*gan.generator(x), *gan.discriminator(x, x.flip(0))]
    for k in range(len(x)):
        image, other = x[k : k + 1], x.flip(0)[k : k + 1]
        single = [*gan.generator(image), *gan.discriminator(image, other)]
        for batch_output, output in zip(batch, single, strict=True):
            torch.testing.assert_close(batch_output[k : k + 1], output, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("on", [(True, True), (True, False)], ids=str)
def test_one_pass_of_two_gans_equals_their_networks_one_after_another(on):
    """Values, and one gradient of everything that is differentiable."""
    x = images(3, 3)
    gans = [GAN(architecture, SEEDS) for architecture in (TINY, replace(TINY, widths=(1, 3, 2)))]

    def separate() -> list[GANOutput]:
        generated = [gan.generator(x) for gan in gans]
        return [
            GANOutput(r, gan.discriminator(x, r.xh) if d else None)
            for gan, r, d in zip(gans, generated, on, strict=True)
        ]

    def results(outputs: Iterable[GANOutput]) -> list[Tensor]:
        values = [t for output in outputs for part in output if part for t in part]
        loss = sum((k + 1) * t.sin().sum() for k, t in enumerate(values))
        parameters = [p for gan in gans for p in gan.parameters()]
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        zeros = [
            torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)
        ]
        return [*values, *zeros]

    for one, other in zip(results(forward_gans(gans, on, x)), results(separate()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_gradients_of_a_discriminators_outputs_are_separate(norm):
    """Logits train the parameters, f_fake trains xh, and statistics see each image once."""
    discriminator = GAN(replace(TINY, norm=norm), SEEDS).discriminator
    x, xh = images(3, 3), images(3, 3, seed=1).requires_grad_()
    before = {k: v.clone() for k, v in discriminator.named_buffers()}
    output = discriminator(x, xh)
    parameters = list(discriminator.parameters())
    of_features = torch.autograd.grad(
        output.f_fake.sum(), [xh, *parameters], allow_unused=True, retain_graph=True
    )
    of_logits = torch.autograd.grad(
        (output.logits_real + output.logits_fake).sum(), [*parameters, xh], allow_unused=True
    )
    assert [g is not None for g in of_features] == [True] + [False] * len(parameters)
    assert [g is not None for g in of_logits] == [True] * len(parameters) + [False]
    assert not output.f_real.requires_grad
    if norm == "batch":
        first = discriminator.layers[0].op()
        means = [
            conv_chain(t, [first], taps=(0,), stack=len(SEEDS))[0].mean((0, 2, 3)) for t in (x, xh)
        ]
        expected = 0.9 * (0.9 * before["features.0.running_mean"] + 0.1 * means[0]) + 0.1 * means[1]
        torch.testing.assert_close(discriminator.features[0].running_mean, expected)


def test_batch_statistics_never_mix_real_and_fake():
    """The output for real images does not depend on the fake ones, with batch statistics too."""
    x = images(3, 1)
    outputs = []
    for fake in (images(3, 1, seed=1), images(3, 1, seed=2) / 10):
        gan = GAN(Architecture(1, (2, 4, 8), 8, "batch"), [0])
        outputs.append(gan.discriminator(x, fake))
    assert torch.equal(outputs[0].logits_real, outputs[1].logits_real)
    assert torch.equal(outputs[0].f_real, outputs[1].f_real)


def test_batch_normalisation_depends_on_the_other_images():
    """Shows that the tests above can fail: they detect statistics of more than one image."""
    x = images(3, 1)
    generator = GAN(Architecture(1, (2, 4, 8), 8, "batch"), [0]).generator
    assert (generator(x).z1[:1] - generator(x[:1]).z1).abs().max() > 1e-3


def test_networks_are_restored_from_their_tensors():
    saved = make_networks(norm="batch")
    with torch.no_grad():
        for tensor in network_tensors(saved).values():
            tensor.add_(0.5)
    loaded = make_networks(norm="batch")
    load_networks(loaded, network_tensors(saved))
    for key, value in network_tensors(saved).items():
        assert torch.equal(network_tensors(loaded)[key], value), key


def test_only_the_given_networks_are_loaded_and_none_may_be_missing():
    networks = make_networks()
    before = {k: v.clone() for k, v in network_tensors(networks).items()}
    other = {k: v + 1 for k, v in before.items() if k.startswith("teacher.")}
    load_networks({"teacher": networks["teacher"]}, other)
    after = network_tensors(networks)
    changed = {k for k, v in after.items() if not torch.equal(v, before[k])}
    assert changed == {k for k in after if k.startswith("teacher.")}
    with pytest.raises(CheckpointError, match="no tensors of the student"):
        load_networks(networks, other)


OTHERS = {
    "latent": lambda: make_networks(latent=4),
    "norm": lambda: make_networks(norm="batch"),
    "stack": lambda: make_networks(MEMBERS[:2]),
}


@pytest.mark.parametrize("others", OTHERS.values(), ids=OTHERS)
def test_tensors_of_another_architecture_are_refused(others):
    tensors = network_tensors(others())
    with pytest.raises(CheckpointError, match="teacher is of another architecture"):
        load_networks(make_networks(), tensors)
