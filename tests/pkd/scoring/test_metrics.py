"""Metrics of members, AUC, and the threshold computed from held-out scores."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from pkd.models.stack import Member
from pkd.scoring.metrics import (
    MIN_SCORE_RATIO,
    MemberMetrics,
    auc_by_member,
    average,
    threshold,
)


def test_metrics_at_the_threshold():
    """A score equal to the threshold is not predicted novel."""
    y_true = np.array([False, False, False, False, True, True, True])
    y_score = np.array([0.1, 0.5, 0.6, 0.2, 0.5, 0.7, 0.9])
    metrics = MemberMetrics(y_true, y_score, threshold=0.5, auc=0.8)
    assert metrics.y_pred.tolist() == [False, False, True, False, False, True, True]
    assert metrics.recall == pytest.approx(2 / 3)
    assert metrics.false_positive_rate == pytest.approx(1 / 4)
    assert metrics.f1 == pytest.approx(2 * 2 / (3 + 3))
    assert metrics.average_precision == average_precision_score(y_true, y_score)
    np.testing.assert_allclose(metrics.score_ratios, y_score / 0.5)


def test_score_ratios_are_finite_and_positive():
    y_score = np.array([0.0, 1e-30, 1.0, 1e30], np.float32)
    for value in (0.0, 1e-20, 1.0, 1e20):
        ratios = MemberMetrics(np.zeros(4, bool), y_score, value, 0.5).score_ratios
        assert ratios.min() >= MIN_SCORE_RATIO
        assert ratios.max() <= 1 / MIN_SCORE_RATIO


def test_auc_is_the_share_of_correctly_ordered_pairs():
    """Pairs of a novel and a normal image; ties count one half."""
    labels = np.array([0, 0, 1, 2, 1])
    scores = np.array(
        [
            # class 0 is normal: 0.1 and 0.4 against 0.3, 0.4 and 0.9: 3 + (0 + 0.5 + 1) of 6
            # class 1 is normal: 5 and 6 against 1, 9 and 6: (0 + 1 + 1) + (0 + 1 + 0.5) of 6
            [0.1, 1.0],
            [0.4, 9.0],
            [0.3, 5.0],
            [0.4, 6.0],
            [0.9, 6.0],
        ]
    )
    aucs = auc_by_member(scores, labels, [Member(0, 7), Member(1, 0)])
    assert aucs == pytest.approx([4.5 / 6, 3.5 / 6])
    assert all(type(auc) is float for auc in aucs)


def test_auc_of_a_perfect_and_of_a_reversed_score():
    labels = np.array([4, 4, 2, 3])
    scores = np.array([[0.0, 3.0], [1.0, 2.0], [2.0, 1.0], [3.0, 0.0]], np.float32)
    assert auc_by_member(scores, labels, [Member(4, 0), Member(4, 1)]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("n", "contamination", "rank"), [(99, 0.05, 95), (100, 0.05, 96), (19, 0.05, 19), (9, 0.5, 5)]
)
def test_the_threshold_is_the_conformal_rank(n, contamination, rank):
    scores = np.random.default_rng(0).permutation(np.arange(1.0, n + 1))
    assert threshold(scores, contamination) == rank


@pytest.mark.parametrize("n", [1, 5, 18])
def test_the_threshold_of_too_few_scores_is_the_largest(n):
    assert threshold(np.arange(1.0, n + 1), 0.05) == n


@pytest.mark.parametrize("contamination", [0.05, 0.2, 0.5])
def test_false_positive_rate_of_new_normal_scores_is_the_contamination(contamination):
    rng = np.random.default_rng(0)
    n, trials = 25, 4000
    scores = rng.exponential(size=(trials, n + 1))
    exceed = [row[n] > threshold(row[:n], contamination) for row in scores]
    assert contamination - 1 / (n + 1) - 0.02 < np.mean(exceed) < contamination + 0.02


def test_average_over_classes_and_its_spread_over_seeds():
    values = {Member(k, seed): k + seed / 10 for k in (0, 1, 5) for seed in (0, 1, 2)}
    assert average(values) == pytest.approx((2.1, 0.1))
    assert average({Member(3, 1): 0.25}) == (0.25, None)
    assert average({Member(3, 1): 0.25, Member(4, 1): 0.75}) == (0.5, None)


def test_average_of_classes_with_different_seeds_has_no_spread():
    values = {Member(0, 0): 0.2, Member(0, 1): 0.4, Member(1, 0): 0.9}
    assert average(values) == pytest.approx((0.6, None))
    assert average({Member(0, 0): 0.2, Member(1, 1): 0.4}) == pytest.approx((0.3, None))
