"""Plots: what is drawn where, ticks of the axes, and the PNG of the training curves."""

import io

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import roc_curve

from pkd.runs.plots import (
    COLOURS,
    draw_auc,
    draw_histogram,
    draw_losses,
    draw_roc,
    log_ticks,
    ratio_limits,
    round_ticks,
    split_phases,
    training_curves_png,
)
from pkd.scoring.metrics import MemberMetrics


def record(phase, network, epoch, auc=(0.5, 0.7), generator=(2.0, 4.0), discriminator=(0.0, 0.0)):
    losses = {network: {"generator": [*generator], "discriminator": [*discriminator]}}
    return {
        "phase": phase,
        "network": network,
        "epoch": epoch,
        "auc": [*auc],
        "losses": losses,
        "test_images": 360,
    }


# One epoch of the teacher, twenty of the student.
METRICS = [record("teacher", "teacher", 1)] + [
    record("step1", "student", k, (0.8, 0.9 + k / 1000), (k, k + 2.0)) for k in range(1, 21)
]


def drawn(draw, *arguments, **settings):
    """Empty axes on which `draw` has drawn."""
    axes = Figure(figsize=(6, 4)).subplots()
    draw(axes, *arguments, **settings)
    return axes


def curves(axes, network):
    """Points (n, 2) of the curves and dots of a network."""
    return [
        line.get_xydata()
        for line in axes.lines
        if COLOURS[network] in (line.get_color(), line.get_markerfacecolor())
    ]


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_phases_follow_each_other():
    phases = split_phases(METRICS)
    assert [(phase.name, phase.begin) for phase in phases] == [("teacher", 0), ("step1", 1)]
    assert phases[1].epochs.tolist() == [*range(2, 22)]


def test_auc_curve_is_the_mean_and_the_band_covers_all_members():
    axes = drawn(draw_auc, split_phases(METRICS))
    (student,) = curves(axes, "student")
    np.testing.assert_array_equal(student[:, 0], np.arange(2, 22))
    np.testing.assert_allclose(student[:, 1], 0.85 + np.arange(1, 21) / 2000)
    band = axes.collections[1].get_paths()[0].get_extents()
    np.testing.assert_allclose(band.extents, [2, 0.8, 21, 0.92])
    assert axes.get_xlim() == (0, 21)
    assert axes.get_ylim() == pytest.approx((0.5, 1.0))


@pytest.mark.parametrize("auc", [1.0, 0.99, 0.5])
def test_auc_axis_of_equal_values(auc):
    axes = drawn(draw_auc, split_phases([record("teacher", "teacher", 1, (auc, auc))]))
    low, high = axes.get_ylim()
    assert low < auc <= high
    assert high <= 1.05


def test_loss_curves_are_means_without_untrained_discriminators():
    axes = drawn(draw_losses, split_phases(METRICS))
    (student,) = curves(axes, "student")
    np.testing.assert_allclose(student[:, 1], 1 + np.arange(1, 21))
    assert axes.get_yscale() == "log"
    assert axes.get_ylim() == pytest.approx((2, 50))


def test_discriminators_are_dotted():
    metrics = [record("step1", "student", k, discriminator=(0.1, 0.3)) for k in (1, 2)]
    solid, dotted = drawn(draw_losses, split_phases(metrics)).lines
    assert solid.get_linestyle() == "-"
    assert dotted.get_linestyle() == "--"
    np.testing.assert_allclose(dotted.get_ydata(), [0.2, 0.2])


@pytest.mark.parametrize("draw", [draw_auc, draw_losses])
def test_a_phase_of_one_epoch_is_a_dot_at_its_end(draw):
    axes = drawn(draw, split_phases(METRICS))
    (dot,) = [line for line in axes.lines if line.get_marker() == "o"]
    (end,) = [line for line in axes.lines if line.get_color() == COLOURS["soft"]]
    assert dot.get_markerfacecolor() == COLOURS["teacher"]
    assert dot.get_xdata()[0] == end.get_xdata()[0] == 1


@pytest.mark.parametrize("draw", [draw_auc, draw_losses])
def test_phases_are_named_as_far_as_there_is_space(draw):
    """In full, by a letter, or not at all."""
    assert texts(drawn(draw, split_phases(METRICS))) == ["T", "step 1"]
    long = [record("step1", "student", k) for k in range(1, 400)]
    assert texts(drawn(draw, split_phases(METRICS[:1] + long))) == ["step 1"]


def test_bands_of_long_trainings_keep_their_extremes():
    metrics = [record("step1", "student", k, (0.6, 0.8)) for k in range(1, 1501)]
    metrics[700] = record("step1", "student", 701, (0.2, 0.95))
    path = drawn(draw_auc, split_phases(metrics)).collections[0].get_paths()[0]
    assert len(path.vertices) < 500
    assert path.get_extents().y0 == pytest.approx(0.2)
    assert path.get_extents().y1 == pytest.approx(0.95)
    lowest = path.vertices[path.vertices[:, 1].argmin(), 0]
    assert lowest == pytest.approx(701, abs=8)


def member(seed=0, threshold=1.0):
    rng = np.random.default_rng(seed)
    y_true = np.repeat([False, True], [40, 60])
    return MemberMetrics(y_true, rng.exponential(np.where(y_true, 2.0, 0.5)), threshold, 0.8)


def test_roc_curves_and_thresholds():
    teachers, students = [member(0), member(1)], [member(2, 0.7), member(3, 0.9)]
    axes = drawn(draw_roc, {"teacher": teachers, "student": students})
    for network, metrics in (("teacher", teachers), ("student", students)):
        expected = [np.stack(roc_curve(m.y_true, m.y_score)[:2], 1) for m in metrics]
        if network == "student":
            expected += [np.array([[m.false_positive_rate, m.recall]]) for m in metrics]
        for points, values in zip(curves(axes, network), expected, strict=True):
            np.testing.assert_allclose(points, values)
    assert axes.get_xlim() == axes.get_ylim() == (0, 1)


def test_histograms_are_separated_by_the_threshold():
    """Scores at the threshold are normal; those beyond the axis count in the last bin."""
    scores = np.array([0.5, 1.0, 1.0, 1.5, 7.0, 900.0])
    y_true = np.array([False, False, False, True, True, True])
    limits = ratio_limits([MemberMetrics(y_true[:5], scores[:5], 1.0, 1.0)])
    assert limits == pytest.approx((0.5, 10))
    axes = drawn(draw_histogram, [MemberMetrics(y_true, 2 * scores, 2.0, 1.0)], limits)
    for kind, patch, shares in zip(
        ("normal", "novel"), axes.patches, ([1 / 3, 2 / 3], [1 / 3] * 3), strict=True
    ):
        percent, edges, _ = patch.get_data()
        assert to_hex(patch.get_edgecolor()) == COLOURS[kind]
        assert sorted(percent[percent > 0] / 100) == pytest.approx(shares)
        centres = (edges[1:] * edges[:-1])[percent > 0] ** 0.5
        assert ((centres > 1) == (kind == "novel")).all()
        assert (edges[0], edges[-1]) == pytest.approx(limits)
        assert 1.0 in edges
    assert texts(axes) == ["threshold"]
    (line,) = axes.lines
    assert line.get_xdata() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("low", "high", "ends"),
    [(0.84, 0.93, (0.84, 0.94)), (0.5, 1.0, (0.5, 1.0)), (0.97, 0.97, None), (0, 13.2, (0, 15))],
)
def test_round_ticks_enclose_the_values(low, high, ends):
    ticks = round_ticks(low, high)
    assert ticks[0] <= low <= high <= ticks[-1]
    assert (np.diff(ticks) > 0).all()
    assert 2 <= len(ticks) <= 8
    if ends:
        assert (ticks[0], ticks[-1]) == pytest.approx(ends)


@pytest.mark.parametrize(
    ("low", "high", "ends"),
    [(0.3, 7, (0.2, 10)), (1, 1, (1, 2)), (0.02, 0.04, (0.02, 0.05)), (3e-6, 2e6, (2e-6, 2e6))],
)
def test_log_ticks_enclose_the_values(low, high, ends):
    ticks = log_ticks(low, high)
    assert (ticks[0], ticks[-1]) == pytest.approx(ends)
    axes = drawn(draw_histogram, [member()], (min(low, 0.5), max(high, 2)))
    assert 1 <= len(axes.get_xticks()) <= 8
    assert min(axes.get_xticks()) >= axes.get_xlim()[0] * (1 - 1e-9)
    assert max(axes.get_xticks()) <= axes.get_xlim()[1] * (1 + 1e-9)


@pytest.mark.parametrize("epochs", [1, 2, 7, 1500])
def test_epoch_axis_has_whole_numbers_and_ends_with_the_last_epoch(epochs):
    metrics = [record("step1", "student", k) for k in range(1, epochs + 1)]
    axes = drawn(draw_losses, split_phases(metrics))
    assert axes.get_xlim() == (0, epochs)
    assert all(tick == int(tick) for tick in axes.get_xticks())


def test_training_curves_as_png():
    """Settings of matplotlib are neither used nor changed."""
    settings = {"lines.linewidth": 9.0, "axes.facecolor": "#ff0000"}
    with mpl.rc_context(settings):
        png = training_curves_png(METRICS, "digits")
        assert {key: mpl.rcParams[key] for key in settings} == settings
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        pixels = {tuple(pixel) for pixel in np.asarray(image.convert("RGB")).reshape(-1, 3)}
    assert {mpl.colors.to_rgb(COLOURS[name]) for name in ("page", "student", "teacher")} <= {
        tuple(value / 255 for value in pixel) for pixel in pixels
    }
    assert (255, 0, 0) not in pixels
    assert training_curves_png(METRICS, "digits") == png
