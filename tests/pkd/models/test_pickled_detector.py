"""Detectors that were pickled by earlier versions."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

FIXTURES = Path(__file__).parents[1] / "fixtures"


def images(n, start=0):
    """Integer patterns (n, 12, 12) uint8, the same on every machine."""
    row, column = np.mgrid[:12, :12]
    k = np.arange(start, start + n)[:, None, None]
    return ((row * (1 + k % 3) + column * (2 + k % 4) + 5 * k) * 8 % 256).astype(np.uint8)


def test_a_detector_of_version_0_1_0_gives_the_same_scores():
    """Its pickle imports the networks from `pkd.models`; it was fitted on images(24)."""
    detector = pickle.loads((FIXTURES / "detector-0.1.0.pkl").read_bytes())
    edge = 255 - np.tri(12, dtype=np.uint8) * 200
    flat = np.full((12, 12), 90, np.uint8)
    x = np.concatenate([images(2, start=30), [edge, flat]])
    scores = detector.score_samples(x)
    recorded = [-0.00221116584725678, -0.00397858256474137, -0.00492519466206431, -0.0114413704723]
    np.testing.assert_allclose(scores, recorded, rtol=1e-6)
    np.testing.assert_allclose(
        -detector.score_samples(images(24)), detector.decision_scores_, rtol=1e-6
    )
    assert detector.threshold_ == pytest.approx(0.004276257008314133)
    assert detector.predict(x).tolist() == [1, 1, -1, -1]
    xh = detector.teacher_(torch.zeros(2, 1, 16, 16)).xh
    assert xh.shape == (2, 1, 16, 16)
