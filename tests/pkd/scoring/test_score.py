"""Novelty scores from their parts."""

import numpy as np
import pytest
import torch
from stack_helpers import MEMBERS

from pkd.models.architecture import Architecture
from pkd.models.ganomaly import GAN
from pkd.scoring.metrics import auc_by_member
from pkd.scoring.novelty import score_parts
from pkd.scoring.score import (
    LATENT,
    MIN_IMAGES,
    SCORES,
    Parts,
    Score,
    ScoreRule,
)
from pkd.scoring.single import Scorer
from pkd.utils.errors import ConfigError

WEIGHTS = (0.5, 0.25)  # of "fused"


def fit_score(name: str, parts: np.ndarray) -> Score:
    return ScoreRule(name, WEIGHTS).fit(parts)


def random_parts(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).lognormal(size=(*shape, 3)).astype(np.float32)


def test_the_latent_score_is_the_latent_part():
    parts = random_parts(7)
    assert fit_score("latent", parts) == LATENT
    assert LATENT(parts).dtype == np.float32
    assert (LATENT(parts) == parts[:, 0]).all()


def test_the_reconstruction_score_is_the_reconstruction_part():
    parts = random_parts(7)
    np.testing.assert_allclose(fit_score("reconstruction", parts)(parts), parts[:, 2], rtol=1e-6)


def test_the_fused_score_ranks_as_the_sum_of_standardised_logarithms():
    normal, parts = random_parts(50), 3 * random_parts(30)
    fit_logs, logs = (
        np.stack([np.log(p[:, 0] / p[:, 1] ** WEIGHTS[0]), np.log(p[:, 2])]).astype(float)
        for p in (normal, parts)
    )
    standardised = (logs - fit_logs.mean(1)[:, None]) / fit_logs.std(1)[:, None]
    expected = standardised[0] + WEIGHTS[1] * standardised[1]
    scores = fit_score("fused", normal)(parts)
    correlation = np.corrcoef(np.log(scores), expected)[0, 1]
    assert correlation == pytest.approx(1, abs=1e-6)
    assert (scores.argsort() == expected.argsort()).all()


@pytest.mark.parametrize(
    "parts", [random_parts(MIN_IMAGES - 1), np.ones((50, 3))], ids=["few images", "constant"]
)
def test_without_enough_normal_images_fused_is_the_latent_score(parts):
    assert fit_score("fused", parts) == LATENT


@pytest.mark.parametrize("name", ["reconstruction", "fused"])
def test_parts_of_an_earlier_version_have_the_latent_score_only(name):
    parts = random_parts(50)[:, :1]
    assert (fit_score("latent", parts)(parts) == parts[:, 0]).all()
    with pytest.raises(ConfigError, match=f"`score` is '{name}', .* use 'latent'"):
        fit_score(name, parts)


@pytest.mark.parametrize("name", SCORES)
def test_parts_that_are_zero_give_finite_scores(name):
    score = fit_score(name, random_parts(50))
    assert np.isfinite(score(np.zeros((4, 3)))).all()


@pytest.mark.parametrize("name", SCORES)
def test_members_have_scores_of_their_held_out_images(name):
    test, held_out = random_parts(40, len(MEMBERS)), [random_parts(n) for n in (30, 25, 60)]
    parts = Parts(test, held_out)
    rule = ScoreRule(name, WEIGHTS)
    scores = parts.test_scores(rule)
    for k, normal in enumerate(held_out):
        score = fit_score(name, normal)
        np.testing.assert_array_equal(scores[:, k], score(test[:, k]))
        np.testing.assert_array_equal(parts.held_out_scores(rule)[k], score(normal))
    labels = np.arange(40) % 4
    assert parts.auc(rule, labels, MEMBERS) == auc_by_member(scores, labels, MEMBERS)


@pytest.mark.parametrize("score", [LATENT, Score(0.0, 0.0, 1.0), Score(1.0, -1.0, 0.7, 0.3)])
def test_a_scorer_combines_the_parts_as_the_score_does(score):
    generator = GAN(Architecture(1, (2, 4, 8), 8), (3, 1)).generator
    drawn = torch.Generator().manual_seed(0)
    images = torch.randint(256, (5, 1, 32, 32), generator=drawn, dtype=torch.uint8)
    parts = score_parts(generator, images, 2)[:, 1]
    scores, *actual = (t.numpy() for t in Scorer(generator.eval(), 1, score)(images))
    np.testing.assert_allclose(np.stack(actual, 1), parts, rtol=1e-4)
    np.testing.assert_allclose(scores, score(parts), rtol=1e-4)
