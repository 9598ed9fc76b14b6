"""Novelty scores of image sets."""

import numpy as np
import pytest
import torch

from pkd.models.architecture import Architecture
from pkd.models.ganomaly import GAN
from pkd.scoring.novelty import novelty_scores

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
def test_scores_are_mean_squares_of_latent_differences(norm):
    generator = make_generator(norm)
    scores = novelty_scores(generator, images(), len(SEEDS))
    assert scores.shape == (11, 3)
    assert scores.dtype == np.float32
    with torch.no_grad():
        outputs = generator.eval()(images().float() / 127.5 - 1)
    difference = (outputs.z1 - outputs.z2).double().numpy().reshape(11, 3, 8)
    np.testing.assert_allclose(scores, (difference**2).mean(2), rtol=1e-3)
    assert scores.min() > 0


@NORMS
@pytest.mark.parametrize("batch", [1, 4, 11])
def test_scores_do_not_depend_on_batch_size_neighbours_or_order(norm, batch, monkeypatch):
    generator = make_generator(norm)
    expected = novelty_scores(generator, images(), len(SEEDS))
    assert (expected.std(0) > 1e-2 * expected.mean(0)).all()
    monkeypatch.setattr("pkd.scoring.novelty.MODEL_IMAGES_PER_BATCH", batch * len(SEEDS))
    order = np.random.default_rng(0).permutation(11)
    shuffled = novelty_scores(generator, images()[order], len(SEEDS))
    np.testing.assert_allclose(shuffled, expected[order], rtol=1e-4)
    some = novelty_scores(generator, images()[3:5], len(SEEDS))
    np.testing.assert_allclose(some, expected[3:5], rtol=1e-4)


def test_a_model_gives_the_same_scores_in_a_stack_and_alone():
    architecture = Architecture(1, (2, 4, 8), 8)
    stacked = novelty_scores(GAN(architecture, SEEDS).generator, images(), len(SEEDS))
    for m, seed in enumerate(SEEDS):
        alone = novelty_scores(GAN(architecture, [seed]).generator, images(), 1)
        np.testing.assert_allclose(stacked[:, m], alone[:, 0], rtol=1e-4)


@NORMS
@pytest.mark.parametrize("training", [True, False])
def test_scoring_does_not_change_the_generator(norm, training):
    generator = make_generator(norm).train(training)
    before = {k: v.clone() for k, v in generator.state_dict().items()}
    novelty_scores(generator, images(), len(SEEDS))
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
        novelty_scores(generator, images(), len(SEEDS), stop_at_third_batch)
    assert generator.training


@pytest.mark.parametrize(("limit", "sizes"), [(12, [4, 4, 3]), (100, [11]), (2, [1] * 11)])
def test_all_models_share_the_images_of_a_batch(limit, sizes, monkeypatch):
    monkeypatch.setattr("pkd.scoring.novelty.MODEL_IMAGES_PER_BATCH", limit)
    generator, shapes = make_generator("instance"), []
    generator.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    novelty_scores(generator, images(), len(SEEDS))
    assert shapes == [(n, 1, 32, 32) for n in sizes]
