"""Scores of different images by each model of a stack."""

import numpy as np
import pytest
import torch
from stack_helpers import MEMBERS, make_networks

from pkd.scoring.novelty import score_parts, score_parts_per_member


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_scores_per_member_equal_the_scores_of_all_images(norm):
    """Also for different numbers of images, of which some need several batches."""
    generator = make_networks(norm=norm)["student"].generator
    drawn = torch.Generator().manual_seed(0)
    images = torch.randint(256, (150, 1, 32, 32), generator=drawn, dtype=torch.uint8)
    parts = [images[:150], images[20:21], images[30:100]]
    expected = score_parts(generator, images, len(MEMBERS))
    scores = score_parts_per_member(generator, parts)
    for k, rows in enumerate((slice(0, 150), slice(20, 21), slice(30, 100))):
        assert scores[k].dtype == np.float64
        np.testing.assert_allclose(scores[k], expected[rows, k], rtol=1e-5)
    assert generator.training
