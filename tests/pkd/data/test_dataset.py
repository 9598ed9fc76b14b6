"""The digest of a data set, and the choice of held-out images."""

import dataclasses

import numpy as np
import pytest

from pkd.data import standard
from pkd.data.dataset import hold_out


@pytest.mark.parametrize("field", ["train_images", "train_labels", "test_images", "test_labels"])
def test_the_digest_depends_on_values_and_shapes_only(field):
    digits = standard.load("digits")
    changed = getattr(digits, field).copy()
    changed.flat[-1] += 1
    assert dataclasses.replace(digits, **{field: changed}).digest != digits.digest
    reshaped = getattr(digits, field)[..., None]
    assert dataclasses.replace(digits, **{field: reshaped}).digest != digits.digest
    assert dataclasses.replace(digits, name="other").digest == digits.digest
    assert len(digits.digest) == 64


LABELS = np.repeat([0, 1, 5], [10, 21, 3])


@pytest.mark.parametrize(
    ("share", "counts"), [(0.1, [1, 3, 1]), (0.5, [5, 11, 2]), (1e-9, [1, 1, 1])]
)
def test_a_share_of_each_class_is_held_out_rounded_up(share, counts):
    held_out = hold_out(LABELS, share)
    assert [int(held_out[label == LABELS].sum()) for label in (0, 1, 5)] == counts


def test_held_out_images_depend_on_the_seed_and_the_images_of_their_class_only():
    held_out = hold_out(LABELS, 0.3)
    np.testing.assert_array_equal(held_out, hold_out(LABELS, 0.3))
    np.testing.assert_array_equal(held_out[10:31], hold_out(np.ones(21, np.int64), 0.3))
    assert (held_out != hold_out(LABELS, 0.3, seed=1)).any()
    in_second_half = np.flatnonzero(hold_out(np.zeros(1000, np.int64), 0.1)) > 500
    assert 0.3 < in_second_half.mean() < 0.7  # neither the first images nor the last
