"""Novelty scores: how the latent difference and the reconstruction error of an image combine.

Every score is a product of powers of the parts that one forward pass gives,

    score = latent^a · energy^b · (reconstruction / reference)^c

with latent the mean square of z1 - z2 (Eq. 3), energy the mean square of z1, and reconstruction the
mean of |x - xh|.

    "latent"            a = 1, b = 0, c = 0: the paper's score
    "reconstruction"    a = 0, b = 0, c = 1
    "fused"             a = 1, b = -v, c = w · std(log(latent / energy^v)) / std(log reconstruction)

The logarithm of "fused" is, up to a factor, the sum of both logarithms standardised on normal
images, the second one with the weight w. v and w are settings; with v = 1 the latent difference is
relative to the latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pkd.models.stack import Member
from pkd.scoring.metrics import auc_by_member
from pkd.utils.errors import ConfigError

ScoreName = Literal["latent", "reconstruction", "fused"]
SCORES: tuple[ScoreName, ...] = ("latent", "reconstruction", "fused")

MIN_IMAGES = 20  # normal images that "fused" needs; with fewer it is "latent"
TINY = np.finfo(np.float32).tiny  # keeps logarithms and powers of parts finite


@dataclass(frozen=True)
class Score:
    """A novelty score as a function of its parts.

    Attributes:
        latent: exponent of the latent part.
        energy: exponent of the energy.
        reconstruction: exponent of the reconstruction part.
        reference: reconstruction part of a typical normal image, positive.
    """

    latent: float = 1.0
    energy: float = 0.0
    reconstruction: float = 0.0
    reference: float = 1.0

    @property
    def exponents(self) -> tuple[float, float, float]:
        """Exponents in the order of `NOVELTY_PARTS`."""
        return self.latent, self.energy, self.reconstruction

    def __call__(self, parts: np.ndarray) -> np.ndarray:
        """Scores (...) of parts (..., 3), or (..., 1) if only the latent part counts."""
        if self == LATENT:
            return parts[..., 0]
        scaled = np.maximum(parts, TINY, dtype=np.float64) / (1.0, 1.0, self.reference)
        return np.prod(scaled**self.exponents, axis=-1)


LATENT = Score()


@dataclass(frozen=True)
class ScoreRule:
    """How to determine the constants of a score.

    Attributes:
        name: of the score.
        weights: v and w of "fused".
    """

    name: ScoreName
    weights: tuple[float, float]

    def fit(self, parts: np.ndarray) -> Score:
        """Determine the constants of the score.

        Args:
            parts: (n, 3) parts of normal images, or (n, 1) with the latent part alone.

        Raises:
            ConfigError: the score needs parts that are missing.
        """
        if self.name == "latent":
            return LATENT
        if parts.shape[1] == 1:
            raise ConfigError(
                "score",
                f"is {self.name!r}, but an earlier version of pkd stored no reconstruction errors: "
                "use 'latent', or train again",
            )
        if self.name == "reconstruction":
            return Score(latent=0.0, reconstruction=1.0)
        latent, energy, reconstruction = np.log(np.maximum(parts, TINY, dtype=np.float64)).T
        if len(parts) < MIN_IMAGES or not reconstruction.std() > 0:
            return LATENT
        v, w = self.weights
        exponent = w * (latent - v * energy).std() / reconstruction.std()
        return Score(1.0, -v, float(exponent), float(np.exp(reconstruction.mean())))


@dataclass(frozen=True)
class Parts:
    """Parts of the scores of all members of a run, by one network.

    Attributes:
        test: (T, M, 3) of the test split, or (T, M, 1) with the latent part alone.
        held_out: for each member (n, 3) or (n, 1) of its held-out images.
    """

    test: np.ndarray
    held_out: Sequence[np.ndarray]

    def fit(self, rule: ScoreRule) -> list[Score]:
        """Score of each member; ConfigError as `ScoreRule.fit`."""
        return [rule.fit(parts) for parts in self.held_out]

    def test_scores(self, rule: ScoreRule) -> np.ndarray:
        """(T, M) scores of the test split."""
        return np.stack([score(self.test[:, k]) for k, score in enumerate(self.fit(rule))], 1)

    def held_out_scores(self, rule: ScoreRule) -> list[np.ndarray]:
        """(n,) scores of each member's held-out images."""
        pairs = zip(self.fit(rule), self.held_out, strict=True)
        return [score(parts) for score, parts in pairs]

    def auc(self, rule: ScoreRule, labels: np.ndarray, members: Sequence[Member]) -> list[float]:
        """AUC of each member on the test split.

        Args:
            rule: of the score.
            labels: (T,) classes of the test images.
            members: the M members.
        """
        return auc_by_member(self.test_scores(rule), labels, members)
