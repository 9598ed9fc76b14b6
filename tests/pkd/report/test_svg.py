"""Inline SVG: positions of what is drawn, colours by CSS, nothing that a page could not embed."""

import re
from functools import partial
from importlib import resources
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest

from pkd.report.svg import BOTTOM, LEFT, RIGHT, TOP, render_svg
from pkd.runs.plots import COLOURS, draw_auc, draw_histogram, draw_losses, draw_roc, split_phases
from pkd.scoring.metrics import MemberMetrics

WIDTH, HEIGHT = 400, 240


def draw_example(axes):
    """A line, an area, two dots, labels and ticks."""
    axes.plot((0.1, 0.5, 0.9), (0.2, 0.8, 0.4), color=COLOURS["student"])
    axes.fill_between((0.1, 0.9), 0.1, 0.2, color=COLOURS["novel"], alpha=0.3)
    axes.plot((0.3, 0.6), (0.3, 0.6), "o", color=COLOURS["teacher"])
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="epoch", ylabel="AUC")


def render(draw=draw_example, label="example"):
    return ElementTree.fromstring(render_svg(draw, WIDTH, HEIGHT, label))


def paths(svg, name):
    """Points (n, 2) of each path of a colour, as fractions of the axes from the lower left."""
    points = []
    for path in svg.iterfind("path"):
        if f"var(--{name})" in path.get("style"):
            shift = re.findall(r"-?[\d.]+", path.get("transform", "translate(0 0)"))
            numbers = np.array(re.findall(r"-?[\d.]+", path.get("d")), float).reshape(-1, 2)
            points.append(numbers + np.array(shift, float))
    size = np.array([WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM])
    return [(np.abs(part - [0, HEIGHT]) - [LEFT, BOTTOM]) / size for part in points]


def test_paths_run_through_their_points():
    svg = render()
    (line,) = paths(svg, "student")
    assert line == pytest.approx(np.array([[0.1, 0.2], [0.5, 0.8], [0.9, 0.4]]), abs=1e-3)
    (area,) = paths(svg, "novel")
    assert [*area.min(0), *area.max(0)] == pytest.approx([0.1, 0.1, 0.9, 0.2], abs=1e-3)
    dots = paths(svg, "teacher")
    centres = [(dot.min(0) + dot.max(0)) / 2 for dot in dots]
    assert np.array(centres) == pytest.approx(np.array([[0.3, 0.3], [0.6, 0.6]]), abs=2e-3)


def test_texts_are_texts_in_the_font_of_the_page():
    svg = render()
    texts = {element.text: element for element in svg.iterfind("text")}
    assert {"epoch", "AUC", "0.2", "1.0"} <= texts.keys()
    assert texts["AUC"].get("transform").startswith("rotate(-90")
    assert texts["epoch"].get("transform") is None
    assert texts["epoch"].get("text-anchor") == "middle"
    assert all(element.get("style") is None for element in texts.values())


def test_a_chart_has_no_ids_links_or_styles():
    """Only flat paths and texts, so that a page can hold any number of charts."""
    text = render_svg(draw_example, WIDTH, HEIGHT, "example")
    assert not re.search(r"\bid=|href|url\(|http|<\?|<!|font|clip|xmlns", text)
    svg = ElementTree.fromstring(text)
    assert {element.tag for element in svg.iter()} == {"svg", "path", "text"}
    assert svg.attrib == {
        "class": "chart",
        "viewBox": f"0 0 {WIDTH} {HEIGHT}",
        "stroke-linejoin": "round",
        "role": "img",
        "aria-label": "example",
    }


def test_the_background_is_transparent():
    assert not paths(render(), "page")


def member():
    rng = np.random.default_rng(0)
    y_true = np.repeat([False, True], [400, 600])
    return MemberMetrics(y_true, rng.exponential(np.where(y_true, 2.0, 0.5)), 1.0, 0.8)


PLOTS = {
    "example": draw_example,
    "roc": partial(draw_roc, metrics={"teacher": [member()], "student": [member()]}),
    "histogram": partial(draw_histogram, metrics=[member()], limits=(0.1, 10)),
}


@pytest.mark.parametrize("draw", PLOTS.values(), ids=PLOTS)
def test_all_colours_are_css_variables(draw):
    text = render_svg(draw, WIDTH, HEIGHT, "plot")
    assert not re.search(r"#[0-9a-f]{3}|rgb|black", text)
    assert set(re.findall(r"var\(--(\w+)\)", text)) <= COLOURS.keys()


def test_a_colour_without_css_variable_is_an_error():
    with pytest.raises(KeyError, match="#123456"):
        render(lambda axes: axes.plot((0, 1), (0, 1), color="#123456"))


def test_the_page_defines_all_colours_in_both_themes():
    page = resources.files("pkd.report").joinpath("base.html").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    for theme in (light, dark):
        assert set(re.findall(r"--(\w+): #[0-9a-f]{6}", theme)) >= COLOURS.keys()


@pytest.mark.parametrize("draw", PLOTS.values(), ids=PLOTS)
def test_charts_do_not_depend_on_the_settings_of_matplotlib(draw):
    before = render_svg(draw, WIDTH, HEIGHT, "plot")
    settings = {"lines.linewidth": 9.0, "font.size": 30.0, "axes.edgecolor": "#123456"}
    with mpl.rc_context(settings):
        assert render_svg(draw, WIDTH, HEIGHT, "plot") == before
        assert {key: mpl.rcParams[key] for key in settings} == settings


def test_long_lines_are_thinned_and_keep_their_shape():
    x = np.linspace(0, 1, 20_000)

    def draw(axes):
        axes.plot(x, x**2, color=COLOURS["student"])
        axes.set(xlim=(0, 1), ylim=(0, 1))

    (points,) = paths(render(draw), "student")
    assert len(points) < 1000
    assert points[0] == pytest.approx([0, 0], abs=1e-3)
    assert points[-1] == pytest.approx([1, 1], abs=1e-3)
    assert abs(points[:, 1] - points[:, 0] ** 2).max() < 3e-3


@pytest.mark.parametrize("draw", [draw_auc, draw_losses])
def test_charts_of_long_trainings_are_small(draw):
    rng = np.random.default_rng(0)
    metrics = [
        {
            "phase": phase,
            "network": "student",
            "epoch": k,
            "auc": rng.random(30).tolist(),
            "losses": {"student": {"generator": [rng.random()], "discriminator": [rng.random()]}},
        }
        for phase in ("teacher", "step1", "step2")
        for k in range(1, 501)
    ]
    text = render_svg(partial(draw, phases=split_phases(metrics)), 420, 260, "training")
    assert len(text) < 40_000


def test_texts_are_escaped():
    label = '<script>"&'
    text = render_svg(lambda axes: axes.set(xlabel=label), WIDTH, HEIGHT, label)
    assert "<script" not in text
    svg = ElementTree.fromstring(text)
    assert svg.get("aria-label") == label
    assert label in [element.text for element in svg.iterfind("text")]
