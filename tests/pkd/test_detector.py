"""`pkd.Detector`: conventions of scikit-learn and PyOD, forms of images, and errors."""

import copy
import pickle
import subprocess
import sys
import warnings

import joblib
import numpy as np
import pytest
import torch
from joblib.externals.loky import get_reusable_executor
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

import pkd
from pkd import Detector
from pkd.detector import _resized
from pkd.scoring.metrics import threshold
from pkd.utils.errors import ConfigError, DataError, DivergenceError

TINY = {
    "structure": "progressive-23",
    "image_size": 16,
    "teacher_widths": (2, 4, 4),
    "student_widths": (1, 2, 2),
    "latent": 4,
    "teacher_epochs": 1,
    "step1_epochs": 1,
    "step2_epochs": 1,
    "random_state": 0,
    "device": "cpu",
}


FAST_SIZES = {(1, 64), (3, 16)}


def images(n=30, channels=0, side=12, seed=0):
    """Return n random uint8 images, (n, side, side) or (n, channels, side, side)."""
    shape = (n, channels, side, side) if channels else (n, side, side)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def fitted():
    return Detector(**TINY).fit(images())


EXPECTED_FAILURES = dict.fromkeys(
    ("check_outliers_train", "check_outliers_fit_predict"),
    "the held-out images meet the contamination, not all training images",
)


def test_the_estimator_checks_of_scikit_learn_pass():
    """The checks fit tables of any width: image_shape=(1, -1) makes each row an image."""
    detector = Detector(**TINY | {"image_shape": (1, -1), "batch_size": 64})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(
            detector, expected_failed_checks=EXPECTED_FAILURES, on_skip=None, on_fail="raise"
        )
    failed = {row["check_name"] for row in results if row["status"] == "xfail"}
    assert failed == set(EXPECTED_FAILURES)
    assert len(results) > 40


def test_importing_the_package_does_not_import_torch():
    code = "import pkd, sys; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_package_exports_the_detector_alone():
    assert pkd.Detector is pkd.detector.Detector
    with pytest.raises(AttributeError, match="'pkd' has no attribute 'no_detector'"):
        _ = pkd.no_detector


def test_a_detector_separates_novel_from_normal_images():
    rng = np.random.default_rng(0)
    normal = rng.integers(0, 40, (80, 16, 16), dtype=np.uint8)
    normal[:, 4:12, 4:12] += 180
    novel = rng.integers(0, 40, (40, 16, 16), dtype=np.uint8)
    novel[:, :, 2:6] += 180
    settings = {"teacher_widths": (8, 16, 16), "student_widths": (4, 8, 8), "lr": 0.002}
    epochs = {"teacher_epochs": 8, "step1_epochs": 12, "step2_epochs": 4}
    detector = Detector(**TINY | settings | epochs, held_out=0.3, contamination=0.1)
    detector.fit(normal[:60])
    test, y = np.concatenate([normal[60:], novel]), np.repeat([1, -1], [20, 40])
    assert roc_auc_score(y, detector.score_samples(test)) > 0.95
    assert (detector.predict(novel) == -1).mean() > 0.9
    assert (detector.predict(normal[60:]) == 1).mean() > 0.7


def test_fitted_attributes_follow_scikit_learn_and_pyod(fitted):
    x = images(20, seed=1)
    scores = fitted.score_samples(x)
    assert scores.shape == (20,)
    assert scores.dtype == np.float64
    assert (scores <= 0).all()
    np.testing.assert_array_equal(fitted.decision_function(x), scores - fitted.offset_)
    np.testing.assert_array_equal(fitted.predict(x), np.where(scores >= fitted.offset_, 1, -1))
    assert fitted.threshold_ == -fitted.offset_
    training = fitted.decision_scores_
    np.testing.assert_array_equal(training, -fitted.score_samples(images()))
    np.testing.assert_array_equal(fitted.labels_, training > fitted.threshold_)
    assert fitted.n_features_in_ == 144
    assert fitted.teacher_.architecture.widths == (2, 4, 4)
    assert fitted.student_.architecture.widths == (1, 2, 2)


def test_a_student_alone_has_no_teacher(fitted):
    alone = clone(fitted).set_params(structure="student-only").fit(images())
    assert alone.teacher_ is None
    assert set(alone.predict(images())) <= {-1, 1}
    with pytest.raises(ValueError, match="`structure` is 'teacher-only'"):
        clone(fitted).set_params(structure="teacher-only").fit(images())


@pytest.mark.parametrize("name", ["latent", "reconstruction", "fused"])
def test_the_novelty_score_is_a_parameter(name, fitted):
    detector = clone(fitted).set_params(novelty_score=name).fit(images())
    assert detector.threshold_ > 0
    ranks = [d.score_samples(images()).argsort().tolist() for d in (detector, fitted)]
    parts = detector._parts(_resized(images()[:, None], detector.pixel_range_, 16))
    expected = {"latent": parts[:, 0], "reconstruction": parts[:, 2]}
    if name in expected:
        np.testing.assert_allclose(-detector.score_samples(images()), expected[name], rtol=1e-6)
    else:
        assert ranks[0] == ranks[1]  # the default
    with pytest.raises(ConfigError, match="`novelty_score` is 'cosine'"):
        clone(fitted).set_params(novelty_score="cosine").fit(images())


def test_probabilities_increase_with_the_score_and_are_one_half_at_the_threshold(fitted):
    x = images(20, seed=1)
    normal, novel = fitted.predict_proba(x).T
    np.testing.assert_allclose(normal + novel, 1)
    np.testing.assert_array_equal(novel > 0.5, fitted.predict(x) == -1)
    assert (np.argsort(novel) == np.argsort(-fitted.score_samples(x))).all()
    row = np.argmin(abs(fitted.decision_scores_ - fitted.threshold_))
    assert fitted.predict_proba(images()[row : row + 1])[0, 1] == 0.5


@pytest.mark.parametrize("held_out", [0.1, 0.5])
@pytest.mark.parametrize("contamination", ["auto", 0.2])
def test_the_threshold_is_a_quantile_of_the_held_out_scores(held_out, contamination):
    detector = Detector(**TINY, held_out=held_out, contamination=contamination).fit(images())
    assert detector.held_out_.sum() == 30 * held_out
    held_out_scores = detector.decision_scores_[detector.held_out_]
    share = 0.05 if contamination == "auto" else contamination
    assert detector.threshold_ == threshold(held_out_scores, share)


def test_held_out_images_do_not_change_the_training(fitted):
    x = images()
    x[fitted.held_out_] = 255 - x[fitted.held_out_]
    other = Detector(**TINY).fit(x)
    np.testing.assert_array_equal(other.held_out_, fitted.held_out_)
    fresh = images(5, seed=2)
    np.testing.assert_array_equal(other.score_samples(fresh), fitted.score_samples(fresh))


def test_scores_do_not_depend_on_other_images_order_or_batch_size(fitted):
    x = images(150, seed=3)
    scores = fitted.score_samples(x)
    for rows in (slice(7, 8), slice(3, 12), slice(None, None, -1), slice(1, 150, 2)):
        np.testing.assert_array_equal(fitted.score_samples(x[rows]), scores[rows])
    others = np.concatenate([x[:5], np.full_like(x[:90], 255)])
    np.testing.assert_array_equal(fitted.score_samples(others)[:5], scores[:5])


def test_the_random_state_determines_the_fit_and_global_states_are_unchanged():
    x = images()
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    runs = [
        Detector(**TINY | {"random_state": seed}).fit(x).decision_scores_
        for seed in (0, 0, 1, np.random.RandomState(0))
    ]
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    np.testing.assert_array_equal(runs[0], runs[1])
    np.testing.assert_array_equal(runs[0], runs[3])
    assert (runs[0] != runs[2]).any()


@pytest.mark.parametrize("layout", ["(n, C, H, W)", "(n, H, W, C)", "flat", "float", "int", "list"])
def test_scores_do_not_depend_on_the_layout_or_type_of_the_images(layout, fitted):
    x, detector = images(6, seed=4), copy.copy(fitted)
    if layout == "flat":
        detector.set_params(image_shape=(12, 12))
    converted = {
        "(n, C, H, W)": x[:, None],
        "(n, H, W, C)": x[..., None],
        "flat": x.reshape(6, -1),
        "float": x.astype(np.float32),
        "int": x.astype(np.int64),
        "list": x.tolist(),
    }[layout]
    np.testing.assert_array_equal(detector.score_samples(converted), fitted.score_samples(x))


@pytest.mark.parametrize(
    ("channels", "size"),
    [
        pytest.param(
            channels, size, marks=() if (channels, size) in FAST_SIZES else pytest.mark.slow
        )
        for channels in (1, 3)
        for size in (16, 32, 64)
    ],
)
def test_grey_and_rgb_images_of_any_size_are_fitted_and_scored(channels, size):
    detector = Detector(**TINY | {"image_size": size}).fit(images(9, channels, 40))
    assert detector.n_channels_ == channels
    assert detector.student_.architecture.image_size == size
    for side in (10, 40, 100):
        assert np.isfinite(detector.score_samples(images(3, channels, side))).all()


def test_the_pixel_range_is_that_of_the_training_images():
    x = images(20, seed=5)
    reference = Detector(**TINY).fit(x)
    unit = Detector(**TINY).fit(x / 255)
    assert (reference.pixel_range_, unit.pixel_range_) == ((0, 255), (0, 1))
    np.testing.assert_array_equal(unit.decision_scores_, reference.decision_scores_)
    scaled = Detector(**TINY, pixel_range=(-255, 255)).fit(x * 2.0 - 255)
    np.testing.assert_array_equal(scaled.decision_scores_, reference.decision_scores_)
    assert Detector(**TINY).fit(x / 10 - 3).pixel_range_ == ((x / 10 - 3).min(), (x / 10 - 3).max())


@pytest.mark.parametrize("value", [0, 7, 255])
def test_identical_images_have_finite_scores_and_are_normal(value):
    x = np.full((10, 12, 12), value, np.uint8)
    detector = Detector(**TINY).fit(x)
    assert np.isfinite(detector.decision_scores_).all()
    assert (detector.predict(x) == 1).all()
    assert np.isfinite(detector.predict_proba(np.concatenate([x, images(5)]))).all()


def test_a_fit_needs_two_images():
    assert Detector(**TINY).fit(images(2)).held_out_.sum() == 1
    for x in (images(1), images(1).reshape(1, -1)):
        with pytest.raises(ValueError, match="1 sample"):
            Detector(**TINY, image_shape=(12, 12)).fit(x)


def test_parameters_are_stored_unchanged_and_cloned():
    parameters = {"teacher_widths": [2, 4, 4], "image_shape": [1, -1], "pixel_range": [0, 9]}
    detector = Detector(**TINY | parameters)
    for name, value in parameters.items():
        assert getattr(detector, name) is value
    before = copy.deepcopy(detector.get_params())
    detector.fit(np.arange(40.0).reshape(4, 10) % 10)
    assert detector.get_params() == before
    assert clone(detector).get_params() == before
    assert not hasattr(clone(detector), "student_")


@pytest.mark.parametrize("store", ["pickle", "joblib", "deepcopy"])
def test_a_stored_detector_has_the_same_scores(store, fitted, tmp_path):
    if store == "pickle":
        stored = pickle.loads(pickle.dumps(fitted))
    elif store == "joblib":
        joblib.dump(fitted, tmp_path / "detector.joblib")
        stored = joblib.load(tmp_path / "detector.joblib")
    else:
        stored = copy.deepcopy(fitted)
    x = images(5, seed=6)
    np.testing.assert_array_equal(stored.decision_function(x), fitted.decision_function(x))


def test_without_its_teacher_a_detector_is_small_and_has_the_same_scores(fitted):
    """A pickle has the student's weights, and nothing of an optimizer's buffer."""
    small = copy.deepcopy(fitted)
    del small.teacher_
    x = images(5, seed=6)
    np.testing.assert_array_equal(small.score_samples(x), fitted.score_samples(x))
    weight_bytes = [
        4 * sum(p.numel() for p in d.parameters()) for d in (small.student_, fitted.teacher_)
    ]
    assert len(pickle.dumps(small)) < weight_bytes[0] + 40_000
    assert len(pickle.dumps(fitted)) - len(pickle.dumps(small)) < weight_bytes[1] + 40_000


def test_a_detector_is_the_last_step_of_a_pipeline():
    x = images().reshape(30, -1) / 255
    steps = FunctionTransformer(np.sqrt), Detector(**TINY, image_shape=(12, 12))
    pipeline = make_pipeline(*steps).fit(x)
    alone = Detector(**TINY, image_shape=(12, 12)).fit(np.sqrt(x))
    np.testing.assert_array_equal(pipeline.score_samples(x), alone.score_samples(np.sqrt(x)))
    assert set(pipeline.predict(x)) <= {-1, 1}


@pytest.mark.parametrize("n_jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_grid_search_compares_settings(n_jobs):
    x, y = (
        np.concatenate([images(20), np.zeros((6, 12, 12), np.uint8)]),
        np.repeat([1, -1], [20, 6]),
    )
    folds = [(np.arange(12), np.arange(12, 26)), (np.arange(8, 20), np.r_[:8, 20:26])]
    grid = {"latent": [2, 4], "student_widths": [(1, 2, 2), (2, 2, 2)]}
    search = GridSearchCV(
        Detector(**TINY), grid, scoring="roc_auc", cv=folds, n_jobs=n_jobs, error_score="raise"
    )
    try:
        search.fit(x, y)
    finally:
        get_reusable_executor().shutdown()
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert len(search.cv_results_["params"]) == 4
    assert search.best_estimator_.predict(x).shape == (26,)


NAN, INF = images().astype(float), images().astype(float)
NAN[2, 3, 3], INF[4, 5, 5] = np.nan, np.inf
INVALID = {
    "nan": (NAN, {}, "NaN"),
    "inf": (INF, {}, "infinity"),
    "none": (images(0), {}, "0 sample"),
    "flat": (images().reshape(30, -1), {}, "image_shape=\\(H, W\\)"),
    "shape": (images().reshape(30, -1), {"image_shape": (5, 5)}, "image_shape=\\(5, 5\\)"),
    "four channels": (images(9, 4), {}, "1 channel \\(grey\\) or 3"),
    "text": (np.full((3, 4, 4), "a"), {}, "numeric|numbers|convert"),
    "contamination": (images(), {"contamination": 0.6}, "`contamination` is 0.6.*0.5"),
    "contamination 0": (images(), {"contamination": 0}, "`contamination` is 0,"),
    "contamination text": (images(), {"contamination": "high"}, "'high', but must be 'auto'"),
    "held out": (images(), {"held_out": 1.5}, "`held_out` is 1.5"),
    "nothing to train on": (images(), {"held_out": 0.99}, "`held_out` is 0.99.* leaves none of 30"),
    "size": (images(), {"image_size": 33}, "`image_size` is 33.*16, 32, 64, 128"),
    "widths": (images(), {"teacher_widths": (1, 2)}, r"`teacher_widths` is \(1, 2\).* three"),
    "structure": (images(), {"structure": "5"}, "`structure` is '5'.*progressive-23"),
    "preset": (images(), {"preset": "slow"}, "`preset` is 'slow'.*quick"),
    "device": (images(), {"device": "tpu"}, "`device` is 'tpu'.*cuda"),
    "range": (images(), {"pixel_range": (1, 1)}, r"\(black, white\)"),
    "lr": (images(), {"lr": 0.0}, "`lr` is 0.0"),
    "lr text": (images(), {"lr": "x"}, "`lr` is 'x', but must be a number"),
    "fractional size": (images(), {"image_size": 16.5}, "`image_size` is 16.5.* whole number"),
    "one width": (
        images(),
        {"student_widths": 8},
        "`student_widths` is 8.*three positive integers",
    ),
    "incomplete range": (images(), {"pixel_range": (1,)}, r"\(black, white\)"),
    "no width": (images()[:, :, :0], {}, "with pixels"),
    "scalar shape": (images().reshape(30, -1), {"image_shape": 12}, "image_shape=12"),
    "real shape": (images().reshape(30, -1), {"image_shape": (12.0, 12)}, "image_shape="),
    "tiny range": (images(), {"pixel_range": (0, 1e-320)}, r"mapped to 0\.\.255"),
    "huge range": (images() * 1e300, {}, r"mapped to 0\.\.255"),
    "infinite width": (images(), {"student_widths": (1, np.inf, 2)}, "`student_widths` is"),
    "huge widths": (images(), {"teacher_widths": (10**6,) * 3}, "GiB.*smaller widths"),
    "huge latent": (images(), {"latent": 10**300}, "GiB.*smaller widths"),
    "diverging": (images(), {"lr": 1e30}, "not finite.* lower `lr`"),
}


@pytest.mark.parametrize(("x", "changes", "pattern"), INVALID.values(), ids=INVALID)
def test_invalid_images_and_parameters_raise_a_value_error(x, changes, pattern):
    detector = Detector(**TINY | changes)
    with pytest.raises(ValueError, match=pattern) as caught:
        detector.fit(x)
    assert "--" not in str(caught.value)
    assert not hasattr(detector, "threshold_")


@pytest.mark.parametrize("convert", [np.uint64, lambda x: x.astype(np.uint64) << 56])
def test_unsigned_integers_of_64_bits_are_images(convert, fitted):
    x = convert(images())
    detector = Detector(**TINY, pixel_range=(0, 255 * (int(x.max()) // 255))).fit(x)
    np.testing.assert_allclose(detector.decision_scores_, fitted.decision_scores_)


def test_tensors_that_require_gradients_are_images(fitted):
    x = torch.tensor(images(5), dtype=torch.float32, requires_grad=True)
    for tensor in (x, x.bfloat16()):  # 8 bits of mantissa hold the values of 8-bit pixels
        np.testing.assert_array_equal(fitted.predict(tensor), fitted.predict(images(5)))
    assert x.requires_grad


def test_identical_images_of_huge_numbers_are_fitted():
    x = np.full((6, 8, 8), 2**64 - 1, np.uint64)
    assert np.isfinite(Detector(**TINY).fit(x).decision_scores_).all()


def test_a_failed_fit_keeps_the_fitted_state(fitted):
    detector, x = copy.deepcopy(fitted), images(5, seed=6)
    detector.set_params(lr=1e30)
    with pytest.raises(DivergenceError, match="not finite"):
        detector.fit(images(10, 3) / 255)
    np.testing.assert_array_equal(detector.score_samples(x), fitted.score_samples(x))


def test_a_fitted_detector_scores_at_the_size_of_its_fit(fitted):
    detector, x = copy.copy(fitted).set_params(image_size=64), images(5, seed=6)
    np.testing.assert_array_equal(detector.score_samples(x), fitted.score_samples(x))


@pytest.mark.gpu
def test_scores_of_a_gpu_equal_those_of_a_cpu(fitted):
    x = images(20, seed=6)
    on_gpu = copy.copy(fitted).set_params(device="cuda")
    np.testing.assert_allclose(on_gpu.score_samples(x), fitted.score_samples(x), rtol=1e-6)
    detector = Detector(**TINY | {"device": "cuda"}).fit(images())
    assert all(p.device.type == "cpu" for p in detector.student_.parameters())
    stored = pickle.loads(pickle.dumps(detector)).set_params(device="cpu")
    np.testing.assert_allclose(stored.score_samples(x), detector.score_samples(x), rtol=1e-6)


def test_an_unavailable_device_is_refused(fitted, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    detector = copy.copy(fitted).set_params(device="cuda")
    with pytest.raises(ConfigError, match=r"^`device` is 'cuda', .*use 'cpu' or 'auto'"):
        detector.predict(images(3))


def test_images_of_other_channels_or_features_are_refused(fitted):
    with pytest.raises(DataError, match=r"3 channels, but this Detector was fitted on 1.* grey"):
        fitted.predict(images(3, 3))
    flat = Detector(**TINY, image_shape=(12, 12)).fit(images().reshape(30, -1))
    with pytest.raises(ValueError, match="X has 100 features, but Detector is expecting 144"):
        flat.predict(np.zeros((2, 100)))
    with pytest.raises(ValueError, match="NaN"):
        fitted.score_samples(NAN)
    assert fitted.pixel_range_ == (0, 255)
    with pytest.raises(DataError, match=r"floats up to 1.*`pixel_range` \(0, 1\)"):
        fitted.predict(images(3) / 255)


def test_an_unfitted_detector_raises_not_fitted_error():
    with pytest.raises(NotFittedError):
        Detector().predict(images())
