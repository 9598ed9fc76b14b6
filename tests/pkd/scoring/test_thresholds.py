"""Held-out images, and scores of each model's own images."""

import numpy as np
import pytest
import torch
from stack_helpers import MEMBERS, make_networks

from pkd.data.dataset import hold_out
from pkd.scoring.novelty import novelty_scores, scores_per_member

LABELS = np.repeat([0, 1, 5], [10, 21, 3])


@pytest.mark.parametrize(
    ("share", "counts"), [(0.1, [1, 3, 1]), (0.5, [5, 11, 2]), (1e-9, [1, 1, 1])]
)
def test_a_share_of_each_class_is_held_out_rounded_up(share, counts):
    held = hold_out(LABELS, share)
    assert [int(held[k == LABELS].sum()) for k in (0, 1, 5)] == counts


def test_held_out_images_of_a_class_depend_on_the_seed_and_the_class_alone():
    held = hold_out(LABELS, 0.3)
    np.testing.assert_array_equal(held, hold_out(LABELS, 0.3))
    np.testing.assert_array_equal(held[10:31], hold_out(np.ones(21, np.int64), 0.3))
    assert (held != hold_out(LABELS, 0.3, seed=1)).any()
    later = np.flatnonzero(hold_out(np.zeros(1000, np.int64), 0.1)) > 500
    assert 0.3 < later.mean() < 0.7  # neither the first nor the last


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
