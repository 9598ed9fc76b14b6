"""The charts of a report."""

from collections.abc import Sequence
from itertools import groupby
from statistics import mean
from typing import Any

import numpy as np
from sklearn.metrics import roc_curve

from pkd.report.svg import Axis, Chart, count_axis, linear_axis, log_axis
from pkd.scoring.metrics import Verdicts

BINS = 40

BEYOND = 0.001  # share of scores that the histograms' axis need not reach

STEPS = {"teacher": "teacher", "step1": "step 1", "step2": "step 2"}  # phases for the reader

BRIEFLY = {"teacher": "T", "step1": "1", "step2": "2"}

SMALL, LARGE = (300, 336), (420, 260)  # width and height

Stretch = tuple[str, int, list[dict[str, Any]]]  # phase, epochs before it, its records


def ratio_axis(verdicts: Sequence[Verdicts]) -> Axis:
    """An axis of score over threshold that suits all members; the threshold is at 1."""
    low, high = np.quantile([own.ratios for own in verdicts], [BEYOND, 1 - BEYOND])
    return log_axis("score ÷ threshold", min(low, 0.5), max(high, 2.0))


def score_chart(verdicts: Sequence[Verdicts], axis: Axis) -> Chart:
    """Histogram of normal and novel scores, those of several seeds together."""
    ratios = np.concatenate([own.ratios for own in verdicts])
    novel = np.concatenate([own.novel for own in verdicts])
    below = round(BINS * float(axis.share([1.0])[0]))  # columns; the threshold is an edge
    edges = np.concatenate(
        [
            np.geomspace(axis.low, 1.0, below, endpoint=False),
            np.geomspace(1.0, axis.high, BINS - below + 1),
        ]
    )
    # a score on an edge counts below it, as the threshold is not novel yet
    placed = np.clip(np.nextafter(ratios, 0), axis.low, axis.high)
    shares = [
        100 * np.histogram(placed[chosen], edges)[0] / chosen.sum() for chosen in (~novel, novel)
    ]
    y = linear_axis("% of the images", 0, max(map(max, shares)))
    chart = Chart(axis, y, "Histogram of the student's scores", *SMALL)
    for kind, heights in zip(("normal", "novel"), shares, strict=True):
        chart.histogram(edges, heights, kind)
    chart.mark(1.0, "threshold")
    return chart


def roc_chart(
    teacher: Sequence[Verdicts], student: Sequence[Verdicts], members: Sequence[int]
) -> Chart:
    """ROC curves of teacher and student, a line a seed, with the student's threshold."""
    x = linear_axis("normal images called novel", 0, 1)
    chart = Chart(x, linear_axis("novel images found", 0, 1), "ROC curves", *SMALL)
    chart.line((0, 1), (0, 1), "chance")
    for verdicts, kind in ((teacher, "teacher"), (student, "student")):
        for k in members:
            false, true, _ = roc_curve(verdicts[k].novel, verdicts[k].scores)
            chart.line(false, true, kind)
    for k in members:
        chart.dot(student[k].false_alarms, student[k].found, "student")
    return chart


def training_charts(metrics: list[dict[str, Any]]) -> list[Chart]:
    """AUC and losses over epochs, phase after phase.

    Args:
        metrics: records of metrics.jsonl.
    """
    stretches, begin = [], 0
    for name, records in groupby(metrics, key=lambda record: record["phase"]):
        records = list(records)
        stretches.append((name, begin, records))
        begin += len(records)
    x = count_axis("epoch", begin)
    charts = [auc_curves(stretches, x), loss_curves(stretches, x)]
    for chart in charts:
        for name, start, records in stretches:
            chart.span(start, start + len(records), (STEPS[name], BRIEFLY[name]))
    return charts


def auc_curves(stretches: list[Stretch], x: Axis) -> Chart:
    """Mean AUC of the stack, and the band from its smallest to its largest."""
    every = np.array([record["auc"] for _, _, records in stretches for record in records])
    y = linear_axis("AUC", min(every.min(), 0.99), every.max())  # at most 1, were all of them 1
    chart = Chart(x, y, "AUC over epochs", *LARGE)
    for _, start, records in stretches:
        epochs = [start + record["epoch"] for record in records]
        auc = np.array([record["auc"] for record in records])  # [epochs, M]
        chart.band(epochs, auc.min(1), auc.max(1), records[0]["network"])
        chart.line(epochs, auc.mean(1), records[0]["network"])
    return chart


def loss_curves(stretches: list[Stretch], x: Axis) -> Chart:
    """Losses of generators and discriminators, means over the stack."""
    lines = []
    for _, start, records in stretches:
        epochs = [start + record["epoch"] for record in records]
        for network in records[0]["losses"]:
            for part in ("generator", "discriminator"):
                losses = [mean(record["losses"][network][part]) for record in records]
                if min(losses) > 0:  # a discriminator that is not trained has none
                    lines.append((epochs, losses, f"{network} {part}"))
    low, high = (of(of(losses) for _, losses, _ in lines) for of in (min, max))
    chart = Chart(x, log_axis("loss", low, high), "Losses over epochs", *LARGE)
    for line in lines:
        chart.line(*line)
    return chart
