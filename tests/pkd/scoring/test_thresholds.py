"""Scores of the held-out images by each model, and the threshold computed from them."""

import numpy as np
import pytest
import torch
from stack_helpers import MEMBERS, make_networks

from pkd.scoring.metrics import threshold
from pkd.scoring.novelty import novelty_scores, scores_per_member


@pytest.mark.parametrize(
    ("n", "contamination", "rank"), [(99, 0.05, 95), (100, 0.05, 96), (19, 0.05, 19), (9, 0.5, 5)]
)
def test_the_threshold_is_the_conformal_rank(n, contamination, rank):
    scores = np.random.default_rng(0).permutation(np.arange(1.0, n + 1))
    assert threshold(scores, contamination) == rank


@pytest.mark.parametrize("n", [1, 5, 18])
def test_threshold_of_too_few_scores_is_the_largest(n):
    assert threshold(np.arange(1.0, n + 1), 0.05) == n


@pytest.mark.parametrize("contamination", [0.05, 0.2, 0.5])
def test_share_of_new_normal_scores_above_the_threshold_is_the_contamination(contamination):
    rng = np.random.default_rng(0)
    n, trials = 25, 4000
    scores = rng.exponential(size=(trials, n + 1))
    exceed = [row[n] > threshold(row[:n], contamination) for row in scores]
    assert contamination - 1 / (n + 1) - 0.02 < np.mean(exceed) < contamination + 0.02


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_scores_per_member_equal_the_scores_of_all_images(norm):
    """Also for different numbers of images, of which some need several batches."""
    generator = make_networks(norm=norm)["student"].generator
    drawn = torch.Generator().manual_seed(0)
    images = torch.randint(256, (150, 1, 32, 32), generator=drawn, dtype=torch.uint8)
    parts = [images[:150], images[20:21], images[30:100]]
    expected = novelty_scores(generator, images, len(MEMBERS))
    scores = scores_per_member(generator, parts)
    for k, rows in enumerate((slice(0, 150), slice(20, 21), slice(30, 100))):
        assert scores[k].dtype == np.float64
        np.testing.assert_allclose(scores[k], expected[rows, k], rtol=1e-5)
    assert generator.training
