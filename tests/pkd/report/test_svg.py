"""Charts as SVG: where values are drawn, which ticks an axis has, and that texts stay texts."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from pkd.report.svg import Axis, Chart, count_axis, linear_axis, log_axis

UNIT = Axis("x", 0, 1, (0, 1))


def drawn(chart, kind):
    """Points (n, 2) of the one path of a kind, as shares of the plot from its lower left corner."""
    chart.dot(0, 0, "low")
    chart.dot(1, 1, "high")
    svg = ElementTree.fromstring(chart.markup())
    corners = [
        [float(svg.find(f"circle[@class='dot {name}']").get(c)) for c in ("cx", "cy")]
        for name in ("low", "high")
    ]
    (path,) = [p.get("d") for p in svg.iter("path") if kind in p.get("class").split()]
    points = np.array(re.findall(r"-?[\d.]+", path), float).reshape(-1, 2)
    return (points - corners[0]) / (np.array(corners[1]) - corners[0])


@pytest.mark.parametrize(
    ("low", "high", "ends"),
    [(0.84, 0.93, (0.84, 0.94)), (0.5, 1.0, (0.5, 1.0)), (0.97, 0.97, None), (0, 13.2, (0, 15))],
)
def test_linear_axis_is_round_and_holds_its_values(low, high, ends):
    axis = linear_axis("AUC", low, high)
    assert axis.low <= low <= high <= axis.high
    assert axis.low < axis.high
    assert (axis.ticks[0], axis.ticks[-1]) == (axis.low, axis.high)
    assert 2 <= len(axis.ticks) <= 8
    if ends:
        assert (axis.low, axis.high) == pytest.approx(ends)


@pytest.mark.parametrize(
    ("low", "high", "ends"),
    [(0.3, 7, (0.2, 10)), (1, 1, (1, 2)), (0.02, 0.04, (0.02, 0.05)), (3e-6, 2e6, (2e-6, 2e6))],
)
def test_log_axis_is_round_and_holds_its_values(low, high, ends):
    axis = log_axis("loss", low, high)
    assert (axis.low, axis.high) == pytest.approx(ends)
    assert 1 <= len(axis.ticks) <= 8
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)


@pytest.mark.parametrize("epochs", [1, 2, 7, 1500])
def test_count_axis_ends_with_the_last(epochs):
    axis = count_axis("epoch", epochs)
    assert (axis.low, axis.high) == (0, epochs)
    assert all(tick == int(tick) and 0 <= tick <= epochs for tick in axis.ticks)


def test_values_lie_where_the_axis_says():
    assert UNIT.share([-1, 0, 0.25, 2]).tolist() == [0, 0, 0.25, 1]
    assert log_axis("x", 0.1, 10).share([0.1, 1, 10]) == pytest.approx([0, 0.5, 1])


def test_a_line_runs_through_its_points():
    chart = Chart(UNIT, UNIT, "")
    chart.line((0.1, 0.5, 0.9), (0.2, 0.8, 0.4), "student")
    assert drawn(chart, "line") == pytest.approx(
        np.array([[0.1, 0.2], [0.5, 0.8], [0.9, 0.4]]), abs=1e-3
    )


def test_a_line_of_one_point_is_seen():
    chart = Chart(UNIT, UNIT, "")
    chart.line([0.5], [0.5], "student")
    assert 'class="dot student"' in chart.markup()


def test_a_long_line_keeps_its_ends_and_its_shape():
    x = np.linspace(0, 1, 20_000)
    chart = Chart(UNIT, UNIT, "")
    chart.line(x, x**2, "student")
    points = drawn(chart, "line")
    assert len(points) < 1000
    assert points[0] == pytest.approx([0, 0])
    assert points[-1] == pytest.approx([1, 1])
    assert abs(points[:, 1] - points[:, 0] ** 2).max() < 2e-3


def test_a_histogram_is_its_columns():
    chart = Chart(UNIT, UNIT, "")
    chart.histogram([0, 0.5, 1], [0.2, 0.6], "normal")
    corners = [[0, 0], [0, 0.2], [0.5, 0.2], [0.5, 0.6], [1, 0.6], [1, 0]]
    assert drawn(chart, "area") == pytest.approx(np.array(corners), abs=2e-3)


def test_a_narrow_stretch_takes_a_name_that_has_room():
    chart = Chart(Axis("x", 0, 1, ()), Axis("y", 0, 1, ()), "")
    chart.span(0, 0.5, ("step 1", "1"))
    chart.span(0.5, 0.53, ("step 2", "2"))
    chart.span(0.53, 0.54, ("step 3", "3"))
    texts = [element.text for element in ElementTree.fromstring(chart.markup()).iter("text")]
    assert texts == ["x", "y", "step 1", "2"]


def test_texts_are_escaped():
    label = '<script>"&'
    chart = Chart(Axis(label, 0, 1, ()), UNIT, label)
    assert "<script" not in chart.markup()
    svg = ElementTree.fromstring(chart.markup())
    assert svg.get("aria-label") == label
    assert label in [element.text for element in svg.iter("text")]
