"""`pkd.Detector`: the small network of P-KDGAN as a scikit-learn outlier estimator."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from pkd.data.arrays import channels_first, check_span, pixel_range, resize, to_uint8
from pkd.data.dataset import hold_out
from pkd.models.ganomaly import GAN, Generator
from pkd.runs.memory import check_memory
from pkd.scoring.metrics import threshold
from pkd.scoring.novelty import score_parts_per_member
from pkd.scoring.score import LATENT, SCORES, ScoreRule
from pkd.training.config import CONTAMINATION, TrainConfig
from pkd.training.fit import fit_member
from pkd.utils.errors import ConfigError, DataError

CHUNK = 1024  # images converted to 8 bits at a time
# Parameters of Detector that are settings of a training run with the same name and value.
SETTINGS = (
    *("preset", "structure", "image_size", "held_out", "latent", "lr", "batch_size", "device"),
    *("precision", "teacher_epochs", "step1_epochs", "step2_epochs"),
)


class Detector(OutlierMixin, BaseEstimator):
    """One-class novelty detector for images, trained on normal images only.

    `fit` trains a small GANomaly network, the student, by itself, or, with a `structure` of the
    paper, distils a large teacher into it. The student computes the scores. The threshold is a
    quantile of the scores of held-out training images. The score of an image does not depend on the
    other images of a batch: scores are computed in float64 and rounded to float32, so that the
    order of sums in a batch cannot change a prediction.

    X is (n, H, W) or (n, 1, H, W) grey, (n, 3, H, W) or (n, H, W, 3) RGB, or flattened, see
    `image_shape`. Images may have any size. Pixels are converted to 8 bits.

    Args:
        contamination: share in (0, 0.5] of normal images that the threshold may classify as novel;
            "auto" is 0.05.
        image_size: height and width that images are resized to, bilinearly: 16, 32, 64 or 128.
        image_shape: (H, W), (C, H, W) or (H, W, C) of flattened images (n, pixels); one size may
            be -1.
        pixel_range: values of black and white. None: (0, 255) for uint8; otherwise (0, 1) if the
            training images lie within, else their minimum and maximum. Values outside are clipped.
        held_out: share in (0, 1) of the images given to `fit` that set the threshold and are not
            trained on.
        novelty_score: "latent", "reconstruction" or "fused", see `--score` of `pkd train`; default
            by preset.
        preset: "quick" for a laptop, or "paper": batch 1, 500 epochs a phase.
        structure: "student-only" trains the student by itself; "1" to "4", "progressive-23" and
            "progressive-24" distil a teacher into it; None takes the preset's.
        teacher_widths: channels of the teacher's stages; None takes the preset's.
        student_widths: channels of the student's stages; None takes the preset's.
        teacher_epochs, step1_epochs, step2_epochs: of each phase; None takes the preset's, more
            for fewer than 1,000 images.
        batch_size: images per step, at most as many as are trained on; None takes the preset's.
        lr: Adam's learning rate; None takes the preset's.
        latent: size of the latent vectors.
        device: "auto" takes a GPU if there is one; or "cpu", "cuda".
        precision: of training on a GPU, "float32" in full or "tf32", see `pkd train --help`;
            scores are always computed in float64.
        random_state: seed of initial weights, data order and the selection of held-out images.

    Attributes:
        student_: generator that computes the scores, on the CPU.
        teacher_: the teacher's generator, on the CPU; None with structure "student-only". Scoring
            does not need it: `del detector.teacher_` before pickling makes a small file.
        threshold_: novelty score above which an image is novel.
        score_function_: constants of the novelty score.
        offset_: -threshold_, scikit-learn's sign.
        held_out_: (n,) bool, the training images that set the threshold.
        decision_scores_: (n,) novelty scores of the training images, higher is more novel.
        labels_: (n,) 1 for training images above the threshold, 0 for the rest.
        pixel_range_: values of black and white.
        n_channels_: 1 or 3.
        n_features_in_: values in an image.

    Raises:
        ConfigError, DataError: parameters or images cannot be used.
        DivergenceError: losses or weights are not finite. All three are a ValueError.
    """

    def __init__(
        self,
        *,
        contamination: float | str = "auto",
        image_size: int = 32,
        image_shape: Sequence[int] | None = None,
        pixel_range: tuple[float, float] | None = None,
        held_out: float = 0.1,
        novelty_score: str | None = None,
        preset: str = "quick",
        structure: str | None = None,
        teacher_widths: tuple[int, int, int] | None = None,
        student_widths: tuple[int, int, int] | None = None,
        teacher_epochs: int | None = None,
        step1_epochs: int | None = None,
        step2_epochs: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        latent: int = 256,
        device: str = "auto",
        precision: str = "float32",
        random_state: int | np.random.RandomState | None = None,
    ):
        self.contamination = contamination
        self.image_size = image_size
        self.image_shape = image_shape
        self.pixel_range = pixel_range
        self.held_out = held_out
        self.novelty_score = novelty_score
        self.preset = preset
        self.structure = structure
        self.teacher_widths = teacher_widths
        self.student_widths = student_widths
        self.teacher_epochs = teacher_epochs
        self.step1_epochs = step1_epochs
        self.step2_epochs = step2_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.latent = latent
        self.device = device
        self.precision = precision
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> "Detector":  # noqa: N803
        """Train teacher and student on normal images and set the threshold; y is ignored."""
        images = channels_first(self._checked(X, fitting=True), self.image_shape)
        span = self._pixel_range(images)
        settings = self._config()
        config = settings.resolved()
        check_memory(config, 1, images.shape[1])
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        held_out = hold_out(np.zeros(len(images), np.int64), config.held_out, seed)
        if held_out.all():
            raise ConfigError(
                "held_out",
                f"is {self.held_out}, which leaves none of {len(images)} images to train on: "
                "choose a smaller share or give more images",
            )
        resized = _resized(images, span, config.image_size)
        train_images = resized[~held_out]
        config = replace(config, **settings.lengths(len(train_images)))
        networks = fit_member(config, train_images, seed)
        self.student_ = _copied(networks["student"])
        self.teacher_ = _copied(networks["teacher"]) if "teacher" in networks else None
        self.n_channels_, self.n_features_in_ = images.shape[1], math.prod(images.shape[1:])
        self.pixel_range_, self.held_out_ = span, held_out
        parts = self._parts(resized)
        rule = ScoreRule(config.score, config.fused_weights)
        self.score_function_ = rule.fit(parts[held_out])
        self.decision_scores_ = _rounded(self.score_function_(parts))
        self.threshold_ = threshold(self.decision_scores_[held_out], config.contamination)
        self.offset_ = -self.threshold_
        self.labels_ = (self.decision_scores_ > self.threshold_).astype(int)
        return self

    def score_samples(self, X: Any) -> np.ndarray:  # noqa: N803
        """(n,) float64, minus the novelty score: higher is more normal."""
        check_is_fitted(self)
        images = channels_first(self._checked(X, fitting=False), self.image_shape)
        if images.shape[1] != self.n_channels_:
            raise DataError(
                f"X has images with {images.shape[1]} channels, but this Detector was fitted on "
                f"{self.n_channels_}: convert them to {'grey' if self.n_channels_ == 1 else 'RGB'}"
            )
        size = self.student_.architecture.image_size
        if images.dtype.kind == "f" and self.pixel_range_ == (0, 255) and 0 < images.max() <= 1:
            raise DataError(
                "X has floats up to 1, but this Detector was fitted on pixels in [0, 255]: scale X "
                "to that range, or fit the Detector with `pixel_range` (0, 1)"
            )
        parts = self._parts(_resized(images, self.pixel_range_, size))
        return -_rounded(self.score_function_(parts))

    def decision_function(self, X: Any) -> np.ndarray:  # noqa: N803
        """(n,) `score_samples` minus `offset_`: negative is novel."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """(n,) +1 for normal images, -1 for novel ones."""
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """(n, 2) for normal and novel: novel is score / (score + threshold), 0.5 at the threshold.

        It increases with the score, but is not calibrated: the share of novel images is unknown.
        """
        scores = -self.score_samples(X)
        total = scores + self.threshold_
        novel = np.divide(scores, total, out=np.full_like(scores, 0.5), where=total > 0)
        return np.stack([1 - novel, novel], 1)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle; Detectors of early versions lack `precision` and have the latent score."""
        if "novelty_score" not in state:
            state = {"novelty_score": "latent"} | state
            if "student_" in state:
                state |= {"score_function_": LATENT}
        super().__setstate__({"precision": "float32"} | state)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def _checked(self, X: Any, fitting: bool) -> np.ndarray:  # noqa: N803
        """X as an array of finite numbers; flattened, with the number of features of `fit`."""
        least = 2 if fitting else 1  # one to train on, one for the threshold
        if isinstance(X, Tensor):
            X = X.detach().cpu()  # noqa: N806
            X = (X.float() if X.dtype == torch.bfloat16 else X).numpy()  # noqa: N806
        if np.ndim(np.asarray(X)) <= 2:
            return validate_data(self, X, reset=fitting, ensure_min_samples=least)
        images = check_array(X, ensure_2d=False, allow_nd=True, ensure_min_samples=least)
        if not images.size:
            raise DataError(f"X has the shape {images.shape}: give images with pixels")
        return images

    def _pixel_range(self, images: np.ndarray) -> tuple[float, float]:
        """Values of black and white: the parameter, or those of the images."""
        if self.pixel_range is None:
            return pixel_range(images)
        try:
            low, high = map(float, self.pixel_range)
        except (TypeError, ValueError):
            low = high = np.nan
        if not -np.inf < low < high < np.inf:
            raise ConfigError(
                "pixel_range", f"is {self.pixel_range!r}, but must be two numbers (black, white)"
            )
        check_span(low, high)
        return low, high

    def _config(self) -> TrainConfig:
        """Settings of a training run with these parameters."""
        contamination = CONTAMINATION if self.contamination == "auto" else self.contamination
        if isinstance(contamination, str):
            raise ConfigError(
                "contamination", f"is {self.contamination!r}, but must be 'auto' or a number"
            )
        if self.structure == "teacher-only":
            raise ConfigError(
                "structure", "is 'teacher-only', but a Detector needs a student: choose another"
            )
        if self.novelty_score not in (None, *SCORES):
            raise ConfigError(
                "novelty_score", f"is {self.novelty_score!r}, but must be one of {SCORES}"
            )
        return TrainConfig(
            **{name: getattr(self, name) for name in SETTINGS},
            score=self.novelty_score,
            teacher_widths=_as_tuple(self.teacher_widths),
            student_widths=_as_tuple(self.student_widths),
            contamination=contamination,
        )

    def _parts(self, images: Tensor) -> np.ndarray:
        """(n, 3) parts of the novelty scores of resized images."""
        device = self._config().torch_device()
        student = copy.deepcopy(self.student_).double().to(device)
        (parts,) = score_parts_per_member(student, [images])
        return parts


def _rounded(scores: np.ndarray) -> np.ndarray:
    """Scores rounded to float32, so that a batch of another size or a GPU gives the same ones."""
    return scores.astype(np.float32).astype(np.float64)


def _as_tuple(value: Any) -> Any:
    """Sequences as tuples, the type of settings; `check_settings` checks the rest."""
    return tuple(value) if isinstance(value, (list, np.ndarray)) else value


def _resized(images: np.ndarray, span: tuple[float, float], size: int) -> Tensor:
    """(n, C, size, size) uint8 of images (n, C, H, W), span[0] black and span[1] white."""
    parts = (images[k : k + CHUNK] for k in range(0, len(images), CHUNK))
    return torch.cat([resize(to_uint8(part, span), size) for part in parts])


def _copied(gan: GAN) -> Generator:
    """Copy of the generator on the CPU; its parameters are not views of an optimizer's buffer."""
    generator = Generator(gan.architecture).requires_grad_(False).eval()
    generator.load_state_dict(gan.generator.state_dict())
    return generator
