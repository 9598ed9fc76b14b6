"""Charts as inline SVG. The page's style sheet colours them by class, so they follow its theme.

Style classes: `axis`, `grid`, `mark` and text; `line`, `band`, `area` and `dot`, each together with
the kind that the caller names.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np
from matplotlib.ticker import MaxNLocator

TOP, RIGHT, BOTTOM, LEFT = 22, 12, 40, 56  # margins around the plot, in units of the drawing

LETTER = 6.2  # width of a letter of the labels

DECIMALS = 1


@dataclass(frozen=True)
class Axis:
    """A range of values, where it is marked, and what it measures.

    Attributes:
        label: with the unit.
        ticks: marked values, ascending; all within [low, high].
    """

    label: str
    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def share(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        """Where values lie on the axis: 0 at its low end, 1 at its high end, none beyond."""
        scale = np.log10 if self.log else np.asarray
        values = np.clip(np.asarray(values, float), self.low, self.high)
        low, high = scale(self.low), scale(self.high)
        return (scale(values) - low) / (high - low)


def linear_axis(label: str, low: float, high: float) -> Axis:
    """An axis with round ends around [low, high], and with some room where that is one value."""
    if low == high:
        low, high = low - 0.05, high + 0.05
    ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high).round(12).tolist()
    return Axis(label, ticks[0], ticks[-1], tuple(ticks))


def count_axis(label: str, high: int) -> Axis:
    """An axis of whole numbers from 0 to exactly `high`."""
    ticks = MaxNLocator(6, integer=True).tick_values(0, high)
    return Axis(label, 0, high, tuple(tick for tick in ticks.tolist() if 0 <= tick <= high))


def log_axis(label: str, low: float, high: float) -> Axis:
    """A logarithmic axis around [low, high], low positive, with round ends."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    round_numbers = [digit * 10.0**k for k in exponents for digit in (1, 2, 5)]
    below = [tick for tick in round_numbers if tick <= low * (1 + 1e-9)]
    above = [tick for tick in round_numbers if tick >= high * (1 - 1e-9) and tick > below[-1]]
    low, high = below[-1], above[0]
    ticks = [tick for tick in round_numbers if low <= tick <= high]
    if len(ticks) > 6:
        every = math.ceil(len(exponents) / 7)
        ticks = [10.0**k for k in exponents[::every] if low <= 10.0**k <= high]
    return Axis(label, low, high, tuple(ticks), log=True)


class Chart:
    """A plot between two axes, drawn onto in the order of the calls.

    Args:
        x, y: its axes.
        alt: what the chart shows, for those who cannot see it.
        width, height: of the drawing.
    """

    def __init__(self, x: Axis, y: Axis, alt: str, width: int = 400, height: int = 240):
        self.x, self.y, self.width, self.height = x, y, width, height
        view = f"0 0 {width} {height}"
        attributes = {"class": "chart", "viewBox": view, "role": "img", "aria-label": alt}
        self.svg = ElementTree.Element("svg", attributes)
        self._axes()

    def line(self, x: Sequence[float], y: Sequence[float], kind: str) -> None:
        """A line through points; a dot where there is only one."""
        if len(x) == 1:
            self.dot(x[0], y[0], kind)
        else:
            self._path(self._points(x, y), f"line {kind}")

    def band(
        self, x: Sequence[float], low: Sequence[float], high: Sequence[float], kind: str
    ) -> None:
        """The area between two lines."""
        there, back = self._points(x, low), self._points(x, high)[::-1]
        self._path([*there, *back], f"band {kind}", closed=True)

    def histogram(self, edges: Sequence[float], heights: Sequence[float], kind: str) -> None:
        """Columns of `heights` (n,) between `edges` (n + 1,), as one outline."""
        x, y = np.repeat(edges, 2), np.concatenate([[0], np.repeat(heights, 2), [0]])
        self._path(self._points(x, y), f"area {kind}", closed=True)

    def dot(self, x: float, y: float, kind: str) -> None:
        ((px, py),) = self._points([x], [y])
        self._element("circle", cx=px, cy=py, r=3.5, **{"class": f"dot {kind}"})

    def mark(self, x: float, label: str) -> None:
        """A vertical line with its name above."""
        ((px, _),) = self._points([x], [self.y.low])
        bottom = self.height - BOTTOM
        self._element("line", x1=px, x2=px, y1=TOP - 4, y2=bottom, **{"class": "mark"})
        self._text(label, px, TOP - 9, "middle")

    def span(self, x0: float, x1: float, names: Sequence[str]) -> None:
        """A stretch of the x axis, ended by a line; above it the first name that has room."""
        ((p0, _), (p1, _)) = self._points([x0, x1], [self.y.low] * 2)
        bottom = self.height - BOTTOM
        if x1 < self.x.high:
            self._element("line", x1=p1, x2=p1, y1=TOP - 16, y2=bottom, **{"class": "mark"})
        fitting = [name for name in names if LETTER * len(name) < p1 - p0]
        if fitting:
            self._text(fitting[0], (p0 + p1) / 2, TOP - 9, "middle")

    def markup(self) -> str:
        """The chart as an element of a page; every text in it is escaped."""
        return ElementTree.tostring(self.svg, encoding="unicode")

    def _axes(self) -> None:
        bottom, right = self.height - BOTTOM, self.width - RIGHT
        for tick in self.y.ticks:
            ((_, y),) = self._points([self.x.low], [tick])
            self._element("line", x1=LEFT, x2=right, y1=y, y2=y, **{"class": "grid"})
            self._text(f"{tick:g}", LEFT - 6, y + 3.5, "end")
        for tick in self.x.ticks:
            ((x, _),) = self._points([tick], [self.y.low])
            self._element("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, **{"class": "axis"})
            self._text(f"{tick:g}", x, bottom + 16, "middle")
        self._element("line", x1=LEFT, x2=right, y1=bottom, y2=bottom, **{"class": "axis"})
        self._text(self.x.label, (LEFT + right) / 2, self.height - 6, "middle")
        middle = (TOP + bottom) / 2
        turn = {"transform": f"rotate(-90 10 {middle})"}
        self._text(self.y.label, 10, middle, "middle", **turn)

    def _points(self, x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
        """Values as places in the drawing."""
        px = LEFT + self.x.share(x) * (self.width - LEFT - RIGHT)
        py = self.height - BOTTOM - self.y.share(y) * (self.height - TOP - BOTTOM)
        return [*zip(px.round(DECIMALS).tolist(), py.round(DECIMALS).tolist(), strict=True)]

    def _path(self, points: Sequence[tuple[float, float]], kind: str, closed: bool = False) -> None:
        kept = [points[0]]
        for point in points[1:-1]:
            if math.dist(point, kept[-1]) >= 1 or closed:  # nobody sees less
                kept.append(point)
        steps = "L".join(f"{x:g} {y:g}" for x, y in [*kept, points[-1]])
        self._element("path", d=f"M{steps}{'Z' * closed}", **{"class": kind})

    def _text(self, text: str, x: float, y: float, anchor: str, **attributes: str) -> None:
        place = {"x": x, "y": y, "text-anchor": anchor}
        self._element("text", **place, **attributes).text = text

    def _element(self, tag: str, **attributes: object) -> ElementTree.Element:
        written = {
            name: f"{value:g}" if isinstance(value, int | float) else value
            for name, value in attributes.items()
        }
        return ElementTree.SubElement(self.svg, tag, written)
