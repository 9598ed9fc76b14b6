"""Networks of a stack: first weights, and that nothing mixes two models or two images."""

import pytest
import torch
from stack_helpers import MEMBERS, make_networks

from pkd.models.ganomaly import GAN, IMAGE_SIZES, Architecture, load_networks, network_tensors
from pkd.utils.errors import PkdError

pytestmark = pytest.mark.usefixtures("double_precision")

TINY = Architecture(1, (2, 4, 8), 8)
COLOUR = Architecture(3, (1, 2, 4), 8)
SEEDS = (3, 1, 4)


def images(n, channels, seed=0):
    return torch.rand(n, channels, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def block(tensor, m):
    """Model m's share of a parameter (M*C, ...)."""
    return tensor.chunk(len(SEEDS))[m]


def columns(tensor, m):
    """Model m's share of activations (N, M*C, ...)."""
    return tensor.chunk(len(SEEDS), 1)[m]


@pytest.mark.parametrize(
    ("size", "stages"),
    [(16, (2, 5)), (32, (2, 5, 7)), (64, (2, 5, 7, 14)), (128, (2, 5, 7, 14, 28))],
)
def test_larger_images_take_further_stages_of_doubled_width(size, stages):
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
def test_first_weights_of_a_model_depend_on_its_own_seed_alone(norm):
    architecture = Architecture(1, (2, 4, 8), 8, norm)
    torch.manual_seed(123)
    stacked = GAN(architecture, SEEDS).state_dict()
    torch.manual_seed(321)
    for m, seed in enumerate(SEEDS):
        for key, value in GAN(architecture, [seed]).state_dict().items():
            assert torch.equal(block(stacked[key], m), value), (key, seed)


def test_other_seeds_give_other_first_weights_in_every_layer():
    stacked = GAN(TINY, SEEDS)
    for name, p in stacked.named_parameters():
        if not name.endswith("beta"):
            assert not torch.equal(block(p, 0), block(p, 1)), name


def test_initialising_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    GAN(TINY, SEEDS)
    assert torch.equal(torch.get_rng_state(), before)


def test_first_weights_are_those_of_dcgan():
    """Means and deviations within five standard errors of N(0, 0.02), N(1, 0.02) and 0."""
    parameters = dict(GAN(Architecture(3, (16, 32, 64), 64), [0, 1]).named_parameters())
    for ending, mean in (("weight", 0.0), ("gamma", 1.0)):
        values = torch.cat([p.detach().flatten() for k, p in parameters.items() if ending in k])
        assert abs(values.mean() - mean) < 5 * 0.02 / len(values) ** 0.5
        assert abs(values.std() / 0.02 - 1) < 5 / (2 * len(values)) ** 0.5
    assert all((p == 0).all() for k, p in parameters.items() if "beta" in k)


@pytest.mark.parametrize("architecture", [TINY, COLOUR, Architecture(1, (1, 2, 4), 8, "batch")])
@pytest.mark.parametrize("training", [True, False])
def test_a_stack_computes_what_its_models_compute_alone(architecture, training):
    x = images(4, 3 * architecture.channels)
    stacked = GAN(architecture, SEEDS).train(training)
    made = stacked.generator(x)
    judged = stacked.discriminator(x, made.xh)
    for m, seed in enumerate(SEEDS):
        alone = GAN(architecture, [seed]).train(training)
        own = columns(x, m)
        expected = alone.generator(own)
        expected_judged = alone.discriminator(own, expected.xh)
        for found, wanted in zip((*made, *judged), (*expected, *expected_judged), strict=True):
            torch.testing.assert_close(columns(found, m), wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("architecture", [TINY, COLOUR])
def test_shared_images_are_images_repeated_for_each_model(architecture):
    x = images(4, architecture.channels)
    generator = GAN(architecture, SEEDS).generator
    parameters = list(generator.parameters())
    results = []
    for seen in (x, x.repeat(1, len(SEEDS), 1, 1)):
        made = generator(seen)
        loss = (made.z1 - made.z2).square().sum() + made.xh.square().sum()
        results.append([*made, *torch.autograd.grad(loss, parameters)])
    for shared, repeated in zip(*results, strict=True):
        torch.testing.assert_close(shared, repeated, rtol=1e-9, atol=1e-11)


def test_shapes():
    gan = GAN(COLOUR, SEEDS)
    x = images(2, 9)
    made = gan.generator(x)
    assert [t.shape for t in made] == [(2, 24), (2, 9, 32, 32), (2, 24)]
    judged = gan.discriminator(x, made.xh)
    assert [t.shape for t in judged] == [(2, 3), (2, 3), (2, 12, 4, 4), (2, 12, 4, 4)]
    assert made.xh.abs().max() <= 1


@pytest.mark.parametrize("training", [True, False])
def test_outputs_for_an_image_do_not_depend_on_its_batch(training):
    x = images(5, 3)
    gan = GAN(TINY, SEEDS).train(training)
    together = [*gan.generator(x), *gan.discriminator(x, x.flip(0))]
    for k in range(len(x)):
        one = x[k : k + 1]
        alone = [*gan.generator(one), *gan.discriminator(one, x.flip(0)[k : k + 1])]
        for batch, single in zip(together, alone, strict=True):
            torch.testing.assert_close(batch[k : k + 1], single, rtol=1e-9, atol=1e-11)


def test_real_and_fake_in_one_discriminator_call_are_two_calls():
    x, xh = images(3, 3), images(3, 3, seed=1).requires_grad_()
    discriminator = GAN(TINY, SEEDS).discriminator
    assert discriminator.one_call
    results = []
    for discriminator.one_call in (True, False):
        judged = discriminator(x, xh)
        loss = sum((k + 1) * t.sin().sum() for k, t in enumerate(judged))
        results.append([*judged, *torch.autograd.grad(loss, [xh, *discriminator.parameters()])])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-11)


def test_batch_statistics_never_mix_real_and_fake():
    """What D says of real images is the same whatever the fakes, though normalised by batch."""
    x = images(3, 1)
    said = []
    for fake in (images(3, 1, seed=1), images(3, 1, seed=2) / 10):
        judged = GAN(Architecture(1, (2, 4, 8), 8, "batch"), [0]).discriminator(x, fake)
        said.append((judged.logits_real, judged.f_real))
    assert torch.equal(said[0][0], said[1][0])
    assert torch.equal(said[0][1], said[1][1])


def test_a_norm_over_the_batch_does_depend_on_neighbours():
    """Guards the tests above: they would notice statistics that are not those of one image."""
    x = images(3, 1)
    generator = GAN(Architecture(1, (2, 4, 8), 8, "batch"), [0]).generator
    assert (generator(x).z1[:1] - generator(x[:1]).z1).abs().max() > 1e-3


def test_networks_come_back_from_their_tensors():
    saved = make_networks(norm="batch")
    with torch.no_grad():
        for tensor in network_tensors(saved).values():
            tensor.add_(0.5)
    loaded = make_networks(norm="batch")
    load_networks(loaded, network_tensors(saved))
    for key, value in network_tensors(saved).items():
        assert torch.equal(network_tensors(loaded)[key], value), key


def test_only_the_networks_asked_for_are_loaded_and_none_may_be_missing():
    networks = make_networks()
    before = {k: v.clone() for k, v in network_tensors(networks).items()}
    other = {k: v + 1 for k, v in before.items() if k.startswith("teacher.")}
    load_networks({"teacher": networks["teacher"]}, other)
    after = network_tensors(networks)
    changed = {k for k, v in after.items() if not torch.equal(v, before[k])}
    assert changed == {k for k in after if k.startswith("teacher.")}
    with pytest.raises(PkdError, match="holds no student"):
        load_networks(networks, other)


OTHERS = {
    "latent": lambda: make_networks(latent=4),
    "norm": lambda: make_networks(norm="batch"),
    "stack": lambda: make_networks(MEMBERS[:2]),
}


@pytest.mark.parametrize("others", OTHERS.values(), ids=OTHERS)
def test_tensors_of_another_architecture_are_refused(others):
    tensors = network_tensors(others())
    with pytest.raises(PkdError, match="teacher is of another architecture"):
        load_networks(make_networks(), tensors)
