"""Held-out images, and scores of each model's own images."""

import numpy as np
import pytest
import torch
from stack_helpers import MEMBERS, make_networks

from pkd.data.dataset import hold_out
from pkd.scoring.novelty import novelty_scores, own_scores

LABELS = np.repeat([0, 1, 5], [10, 21, 3])


@pytest.mark.parametrize(
    ("share", "counts"), [(0.1, [1, 3, 1]), (0.5, [5, 11, 2]), (1e-9, [1, 1, 1])]
)
def test_a_share_of_each_class_is_held_out_rounded_up(share, counts):
    held = hold_out(LABELS, share)
    assert [int(held[k == LABELS].sum()) for k in (0, 1, 5)] == counts


def test_what_is_held_out_of_a_class_depends_on_the_seed_and_on_its_own_images():
    held = hold_out(LABELS, 0.3)
    np.testing.assert_array_equal(held, hold_out(LABELS, 0.3))
    np.testing.assert_array_equal(held[10:31], hold_out(np.ones(21, np.int64), 0.3))
    assert (held != hold_out(LABELS, 0.3, seed=1)).any()
    later = np.flatnonzero(hold_out(np.zeros(1000, np.int64), 0.1)) > 500
    assert 0.3 < later.mean() < 0.7  # neither the first nor the last


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_each_model_scores_its_own_images_as_in_a_pass_over_all(norm):
    """Also where models have different numbers, and more than fit one batch."""
    generator = make_networks(norm=norm)["student"].generator
    drawn = torch.Generator().manual_seed(0)
    images = torch.randint(256, (150, 1, 32, 32), generator=drawn, dtype=torch.uint8)
    own = [images[:150], images[20:21], images[30:100]]
    expected = novelty_scores(generator, images, len(MEMBERS))
    found = own_scores(generator, own)
    for k, part in enumerate((slice(0, 150), slice(20, 21), slice(30, 100))):
        assert found[k].dtype == np.float64
        np.testing.assert_allclose(found[k], expected[part, k], rtol=1e-5)
    assert generator.training
