"""Parts of the novelty scores of image sets."""

import numpy as np
import pytest
import torch

from pkd.models.architecture import Architecture
from pkd.models.ganomaly import GAN
from pkd.scoring.novelty import score_parts

SEEDS = (3, 1, 4)
NORMS = pytest.mark.parametrize("norm", ["instance", "batch"])


def make_generator(norm):
    """A generator whose running statistics, if any, differ from the initial ones."""
    generator = GAN(Architecture(1, (2, 4, 8), 8, norm), SEEDS).generator
    with torch.no_grad():
        generator(torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    return generator


def images(n=11):
    generator = torch.Generator().manual_seed(0)
    brightness = torch.arange(1, n + 1)[:, None, None, None] * 23
    noise = torch.randint(256, (n, 1, 32, 32), generator=generator)
    return (noise * brightness // 256).to(torch.uint8)


@NORMS
def test_parts_are_latent_difference_energy_and_reconstruction_error(norm):
    generator = make_generator(norm)
    parts = score_parts(generator, images(), len(SEEDS))
    assert parts.shape == (11, 3, 3)
    assert parts.dtype == np.float32
    x = images().float() / 127.5 - 1
    with torch.no_grad():
        z1, xh, z2 = (t.double().reshape(11, 3, -1).numpy() for t in generator.eval()(x))
    error = np.abs(x.double().reshape(11, 1, -1).numpy() - xh)
    expected = [((z1 - z2) ** 2).mean(2), (z1**2).mean(2), error.mean(2)]
    np.testing.assert_allclose(parts, np.stack(expected, 2), rtol=1e-3)
    assert parts.min() > 0


@NORMS
@pytest.mark.parametrize("batch", [1, 4, 11])
def test_parts_do_not_depend_on_batch_size_neighbours_or_order(norm, batch, monkeypatch):
    generator = make_generator(norm)
    expected = score_parts(generator, images(), len(SEEDS))
    assert (expected.std(0) > 1e-2 * expected.mean(0)).all()
    monkeypatch.setattr("pkd.scoring.novelty.MODEL_IMAGES_PER_BATCH", batch * len(SEEDS))
    order = np.random.default_rng(0).permutation(11)
    shuffled = score_parts(generator, images()[order], len(SEEDS))
    np.testing.assert_allclose(shuffled, expected[order], rtol=1e-4)
    some = score_parts(generator, images()[3:5], len(SEEDS))
    np.testing.assert_allclose(some, expected[3:5], rtol=1e-4)


def test_a_model_gives_the_same_parts_in_a_stack_and_alone():
    architecture = Architecture(1, (2, 4, 8), 8)
    stacked = score_parts(GAN(architecture, SEEDS).generator, images(), len(SEEDS))
    for m, seed in enumerate(SEEDS):
        alone = score_parts(GAN(architecture, [seed]).generator, images(), 1)
        np.testing.assert_allclose(stacked[:, m], alone[:, 0], rtol=1e-4)


@NORMS
@pytest.mark.parametrize("training", [True, False])
def test_scoring_does_not_change_the_generator(norm, training):
    generator = make_generator(norm).train(training)
    before = {k: v.clone() for k, v in generator.state_dict().items()}
    score_parts(generator, images(), len(SEEDS))
    assert all(module.training == training for module in generator.modules())
    assert all(torch.equal(v, before[k]) for k, v in generator.state_dict().items())


def test_scoring_can_be_stopped_between_batches(monkeypatch):
    monkeypatch.setattr("pkd.scoring.novelty.MODEL_IMAGES_PER_BATCH", 4 * len(SEEDS))
    generator, batches = make_generator("instance"), []

    def stop_at_third_batch():
        batches.append(None)
        if len(batches) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_parts(generator, images(), len(SEEDS), stop_at_third_batch)
    assert generator.training


@pytest.mark.parametrize(("limit", "sizes"), [(12, [4, 4, 3]), (100, [11]), (2, [1] * 11)])
def test_all_models_share_the_images_of_a_batch(limit, sizes, monkeypatch):
    monkeypatch.setattr("pkd.scoring.novelty.MODEL_IMAGES_PER_BATCH", limit)
    generator, shapes = make_generator("instance"), []
    generator.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    score_parts(generator, images(), len(SEEDS))
    assert shapes == [(n, 1, 32, 32) for n in sizes]
