"""Plots of a run on matplotlib axes: training curves, ROC curves and histograms of scores.

`training_curves_png` draws a PNG; pkd.report.svg renders the same plots for an HTML page.
"""

import io
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from sklearn.metrics import roc_curve

from pkd.scoring.metrics import MemberMetrics

# The only colours of all plots. On an HTML page each is replaced by the CSS variable of its name.
COLOURS = {
    "page": "#fcfcfb",
    "soft": "#5c626b",  # text and axes
    "rule": "#dcdcd7",  # grid lines
    "student": "#1b1d20",
    "teacher": "#8a8f98",
    "normal": "#1f6fc5",
    "novel": "#c8500a",
    # of the methods of a sweep
    "method1": "#0b6fb8",
    "method2": "#c24a00",
    "method3": "#00805c",
    "method4": "#b0488f",
    "method5": "#8a6a00",
    "method6": "#6b4fc0",
}
STYLE: dict[str, Any] = {  # of matplotlib; must be active while a plot is drawn
    **dict.fromkeys(("axes.spines.left", "axes.spines.right", "axes.spines.top"), False),
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color"), COLOURS["soft"]),
    **dict.fromkeys(("xtick.color", "ytick.color"), COLOURS["soft"]),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), COLOURS["page"]),
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "font.size": 11,
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.7,
    "lines.dashed_pattern": (3, 3),
    "lines.solid_capstyle": "butt",
    "ytick.major.pad": 6,
    "ytick.major.size": 0,
}
LETTER_WIDTH = 6.2  # mean of the font, in points
WIDTHS = {"teacher": 1.7, "student": 2.2}  # of lines, in points

BINS = 40  # of a histogram
OUTLIERS = 0.001  # fraction of the scores at either end that may lie beyond the axis
MAX_LOG_TICKS = 6
BAND_POINTS = 200  # of each edge of a band at most

PHASE_TITLES = {"teacher": "teacher", "step1": "step 1", "step2": "step 2"}
PHASE_INITIALS = {"teacher": "T", "step1": "1", "step2": "2"}


class PhaseRecords(NamedTuple):
    """The records of one phase in metrics.jsonl.

    Attributes:
        name: of the phase.
        begin: number of epochs of all phases before this one.
        records: one for each epoch.
    """

    name: str
    begin: int
    records: list[dict[str, Any]]

    @property
    def epochs(self) -> np.ndarray:
        """Numbers of the epochs, counted from the beginning of the run."""
        return self.begin + np.array([record["epoch"] for record in self.records])


def split_phases(metrics: list[dict[str, Any]]) -> list[PhaseRecords]:
    """Split the records of metrics.jsonl by phase."""
    phases, begin = [], 0
    for name, group in groupby(metrics, key=lambda record: record["phase"]):
        records = list(group)
        phases.append(PhaseRecords(name, begin, records))
        begin += len(records)
    return phases


def training_curves_png(metrics: list[dict[str, Any]], title: str) -> bytes:
    """Draw AUC and losses over epochs, as in the paper's Figure 2; return a PNG file.

    Args:
        metrics: records of metrics.jsonl.
        title: of the picture.
    """
    png = io.BytesIO()
    phases, images = split_phases(metrics), metrics[0]["test_images"]
    with style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(10, 4.5), layout="constrained")
        figure.suptitle(f"{title}: AUC on {images} test images (end of a phase: on all) and losses")
        for axes, draw in zip(figure.subplots(1, 2), (draw_auc, draw_losses), strict=True):
            draw(axes, phases)
            handles, labels = axes.get_legend_handles_labels()
            unique = dict(zip(labels, handles, strict=True))  # phases repeat them
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "ncols": 2}
            axes.legend(unique.values(), unique.keys(), fontsize="small", frameon=False, **below)
        figure.savefig(png, format="png", dpi=100)
    return png.getvalue()


def draw_auc(axes: Axes, phases: Sequence[PhaseRecords]) -> None:
    """Draw the mean AUC of the members over epochs, and the band from the worst to the best."""
    for phase in phases:
        network = phase.records[0]["network"]
        auc = np.array([record["auc"] for record in phase.records])  # [epochs, M]
        _band(axes, phase.epochs, auc.min(1), auc.max(1), network)
        _line(axes, phase.epochs, auc.mean(1), network)
    ticks = round_ticks(min(axes.dataLim.y0, 0.99), axes.dataLim.y1)  # never beyond 1
    axes.set(xlabel="epoch", ylabel="AUC", ylim=(ticks[0], ticks[-1]))
    set_ticks(axes.yaxis, ticks)
    _mark_phases(axes, phases)


def draw_losses(axes: Axes, phases: Sequence[PhaseRecords]) -> None:
    """Draw the losses of generators and discriminators over epochs, means over the members."""
    for phase in phases:
        for network in phase.records[0]["losses"]:
            for part in ("generator", "discriminator"):
                losses = [np.mean(record["losses"][network][part]) for record in phase.records]
                if min(losses) > 0:  # a discriminator that is not trained has a loss of 0
                    _line(axes, phase.epochs, losses, network, part)
    ticks = log_ticks(axes.dataLim.y0, axes.dataLim.y1)
    axes.set(xlabel="epoch", ylabel="loss", yscale="log", ylim=(ticks[0], ticks[-1]))
    set_ticks(axes.yaxis, ticks, log=True)
    _mark_phases(axes, phases)


def draw_roc(axes: Axes, metrics: Mapping[str, Sequence[MemberMetrics]]) -> None:
    """Draw the ROC curves of networks, and the points of the last network's thresholds.

    Args:
        axes: empty axes.
        metrics: "teacher", "student" or both -> metrics of members with the same normal class, one
            for each seed.
    """
    axes.plot((0, 1), (0, 1), color=COLOURS["rule"], linewidth=1)  # of random scores
    for network, members in metrics.items():
        for member in members:
            false_positive_rate, recall, _ = roc_curve(member.y_true, member.y_score)
            _line(axes, false_positive_rate, recall, network)
    network, members = list(metrics.items())[-1]
    for member in members:
        _dot(axes, member.false_positive_rate, member.recall, network)
    ticks = np.linspace(0, 1, 6)
    axes.set(xlabel="false positive rate", ylabel="recall", xlim=(0, 1), ylim=(0, 1))
    for axis in (axes.xaxis, axes.yaxis):
        set_ticks(axis, ticks)


def ratio_limits(metrics: Sequence[MemberMetrics]) -> tuple[float, float]:
    """Limits, round numbers, of the score axis that the histograms of several members share."""
    low, high = np.quantile([m.score_ratios for m in metrics], [OUTLIERS, 1 - OUTLIERS])
    ticks = log_ticks(min(low, 0.5), max(high, 2.0))
    return float(ticks[0]), float(ticks[-1])


def draw_histogram(
    axes: Axes, metrics: Sequence[MemberMetrics], limits: tuple[float, float]
) -> None:
    """Draw histograms of the scores of normal and of novel images, and the threshold.

    Args:
        axes: empty axes.
        metrics: of members with the same normal class; their scores are counted together.
        limits: lowest and highest ratio of score to threshold on the axis, around 1. Scores beyond
            are counted in the first or last bin.
    """
    ratios = np.concatenate([member.score_ratios for member in metrics])
    novel = np.concatenate([member.y_true for member in metrics])
    edges = _bin_edges(*limits)
    # np.histogram counts a number at an edge in the bin above, but a score at the threshold is not
    # predicted novel: replace each score by the next smaller number.
    ratios = np.clip(np.nextafter(ratios, 0), *limits)
    axes.set(xlabel="score ÷ threshold", ylabel="% of images", xscale="log", xlim=limits)
    set_ticks(axes.xaxis, log_ticks(*limits), log=True)
    for kind, chosen, opacity in (("normal", ~novel, 0.38), ("novel", novel, 0.1)):
        percent = 100 * np.histogram(ratios[chosen], edges)[0] / chosen.sum()
        colour = COLOURS[kind]
        axes.stairs(percent, edges, fill=True, fc=(colour, opacity), ec=colour, linewidth=1.5)
    ticks = round_ticks(0, axes.dataLim.y1)
    axes.set_ylim(ticks[0], ticks[-1])
    set_ticks(axes.yaxis, ticks)
    _vertical_line(axes, 1.0)
    _text_above(axes, 1.0, "threshold")


def _bin_edges(low: float, high: float) -> np.ndarray:
    """Edges of bins of about equal width on a log axis; 1, the threshold, is one of them."""
    below = round(BINS * np.log(low) / np.log(low / high))
    left = np.geomspace(low, 1.0, below, endpoint=False)
    return np.concatenate([left, np.geomspace(1.0, high, BINS - below + 1)])


def _line(
    axes: Axes,
    x: Sequence[float] | np.ndarray,
    y: Sequence[float] | np.ndarray,
    network: str,
    part: str = "",
) -> None:
    """Draw a curve, dotted for a discriminator; a single point as a dot."""
    dotted = part == "discriminator"
    if len(x) == 1:
        _dot(axes, x[0], y[0], network, hollow=dotted)
    axes.plot(
        x,
        y,
        color=COLOURS[network],
        label=f"{network} {part}".strip(),
        linestyle=(0, (1, 1.5)) if dotted else "-",
        linewidth=WIDTHS[network],
    )


def _dot(axes: Axes, x: float, y: float, network: str, hollow: bool = False) -> None:
    fill, edge = COLOURS[network], COLOURS["page"]
    if hollow:
        fill, edge = edge, fill
    axes.plot([x], [y], "o", ms=7, mfc=fill, mec=edge, mew=1.4, clip_on=False, zorder=3)


def _band(axes: Axes, x: np.ndarray, low: np.ndarray, high: np.ndarray, network: str) -> None:
    """Fill the area between two curves; of many points, each point stands for several epochs."""
    starts = np.arange(0, len(x), math.ceil(len(x) / BAND_POINTS))
    low, high = np.minimum.reduceat(low, starts), np.maximum.reduceat(high, starts)
    ends = np.append(starts[1:] - 1, len(x) - 1)
    axes.fill_between(x[ends], low, high, color=COLOURS[network], alpha=0.14, linewidth=0)


def _mark_phases(axes: Axes, phases: Sequence[PhaseRecords]) -> None:
    """Mark the end of each phase by a line, and write its name above if it fits."""
    epochs = sum(len(phase.records) for phase in phases)
    axes.set_xlim(0, epochs)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    points_per_epoch = axes.bbox.width / axes.figure.dpi * 72 / epochs
    for phase in phases:
        end = phase.begin + len(phase.records)
        if end < epochs:
            _vertical_line(axes, end)
        for text in (PHASE_TITLES[phase.name], PHASE_INITIALS[phase.name]):
            if LETTER_WIDTH * len(text) < points_per_epoch * len(phase.records):
                _text_above(axes, (phase.begin + end) / 2, text)
                break


def _vertical_line(axes: Axes, x: float) -> None:
    axes.axvline(x, color=COLOURS["soft"], linewidth=1, linestyle="--", zorder=1)


def _text_above(axes: Axes, x: float, text: str) -> None:
    """Write a text above the axes, centred at x."""
    axes.annotate(text, (x, 1), (0, 5), axes.get_xaxis_transform(), "offset points", ha="center")


def round_ticks(low: float, high: float) -> np.ndarray:
    """Equally spaced round numbers that enclose [low, high]."""
    if low == high:
        low, high = low - 0.05, high + 0.05
    return np.round(MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high), 12)


def log_ticks(low: float, high: float) -> np.ndarray:
    """Powers of ten and their multiples by 2 and 5 that enclose [low, high]; low > 0."""
    exponents = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    ticks = np.outer(10**exponents, (1, 2, 5)).ravel()
    first = np.searchsorted(ticks, low * (1 + 1e-9), side="right") - 1
    last = max(np.searchsorted(ticks, high * (1 - 1e-9)), first + 1)
    return ticks[first : last + 1]


def set_ticks(axis: Axis, ticks: np.ndarray, log: bool = False) -> None:
    """Label the ticks of an axis; of many ticks of a log axis, only powers of ten."""
    if log and len(ticks) > MAX_LOG_TICKS:
        exponents = np.log10(ticks)
        powers = ticks[np.isclose(exponents, exponents.round())]
        ticks = powers[:: math.ceil(len(powers) / MAX_LOG_TICKS)]
    axis.set_ticks(ticks)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")
