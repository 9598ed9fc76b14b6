"""Tables and numbers of a report, formatted as text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from pkd.models.paper import paper_class, paper_mean, table4
from pkd.runs.plots import PHASE_TITLES
from pkd.runs.run import Run
from pkd.scoring.metrics import MemberMetrics
from pkd.training.config import OWN_DATA
from pkd.training.structures import KDGAN, Phase

DATASET_TITLES = {
    "digits": "Digits",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
}

# Metrics of every class: title, attribute of MemberMetrics.
METRICS = {"AUC": "auc", "average precision": "average_precision", "F1": "f1"}


class Cell(NamedTuple):
    """A number, its standard deviation over seeds, and the number that the paper reports."""

    value: str
    spread: str = ""
    paper: str = ""


@dataclass(frozen=True)
class Table:
    """A table with named rows.

    Attributes:
        groups: headings above the columns: (title, number of columns).
        columns: titles of the columns.
        rows: (name, cells).
        footer: (name, cells) of the rows below, e.g. of means.
    """

    groups: list[tuple[str, int]]
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    footer: list[tuple[str, list[Cell]]] = field(default_factory=list)


class MetricColumn(NamedTuple):
    """A column of the table of metrics.

    Attributes:
        group: heading above the title.
        title: of the column.
        metric: attribute of MemberMetrics.
        phase: whose metrics are shown.
        form: format specification of a number.
    """

    group: str
    title: str
    metric: str
    phase: str
    form: str = ".4f"


class ClassMembers(NamedTuple):
    """The members of a run that have the same normal class.

    Attributes:
        number: of the class.
        name: of the class.
        members: positions in the stack, one for each seed.
    """

    number: int
    name: str
    members: list[int]


def dataset_title(run: Run) -> str:
    """Name of the data set; for images of the user, the name of their folder or file."""
    name, data_dir = run.config.dataset, run.config.data_dir
    return Path(data_dir or "").stem if name in OWN_DATA else DATASET_TITLES[name]


def metric_cell(
    metrics: Sequence[MemberMetrics],
    classes: Sequence[ClassMembers],
    metric: str,
    form: str = ".4f",
) -> Cell:
    """Format the mean of a metric over classes and seeds, and its standard deviation over seeds.

    Args:
        metrics: of all members.
        classes: the classes whose members count.
        metric: attribute of MemberMetrics.
        form: format specification of a number.
    """
    by_seed = [
        mean(getattr(metrics[k], metric) for k in members)
        for members in zip(*(group.members for group in classes), strict=True)
    ]
    spread = f"± {stdev(by_seed):{form}}" if len(by_seed) > 1 else ""
    return Cell(f"{mean(by_seed):{form}}", spread)


def metrics_table(
    phases: Sequence[Phase],
    results: dict[str, Any],
    metrics: dict[str, list[MemberMetrics]],
    classes: Sequence[ClassMembers],
) -> Table:
    """Build the table of metrics by class, with the AUC that the paper reports if comparable.

    Args:
        phases: of the run.
        results: content of results.json.
        metrics: phase -> metrics of all members.
        classes: rows of the table.
    """
    last = phases[-1].name
    columns = [MetricColumn("AUC", PHASE_TITLES[phase.name], "auc", phase.name) for phase in phases]
    columns += [
        MetricColumn(group, network, metric, phase)
        for group, metric in (
            ("average precision", "average_precision"),
            ("F1 at threshold", "f1"),
        )
        for network, phase in (("teacher", "teacher"), ("student", last))
    ]
    columns += [
        MetricColumn("student at threshold", title, metric, last, ".1%")
        for title, metric in (("false positive rate", "false_positive_rate"), ("recall", "recall"))
    ]

    def cells(rows: Sequence[ClassMembers], paper_auc: Callable[[str], float | None]) -> list[Cell]:
        numbers = [metric_cell(metrics[c.phase], rows, c.metric, c.form) for c in columns]
        papers = [paper_auc(c.phase) if c.metric == "auc" else None for c in columns]
        return [
            cell._replace(paper=f"paper {paper:.4f}" if paper else "")
            for cell, paper in zip(numbers, papers, strict=True)
        ]

    rows = [
        (group.name, cells([group], partial(paper_class, results, group.number)))
        for group in classes
    ]
    mean_row = ("mean", cells(classes, partial(paper_mean, results)))
    groups = groupby(column.group for column in columns)
    return Table(
        [(title, len([*same])) for title, same in groups],
        [column.title for column in columns],
        rows,
        [mean_row] if len(classes) > 1 else [],
    )


def summary_tiles(
    results: dict[str, Any],
    teacher: Sequence[MemberMetrics],
    student: Sequence[MemberMetrics],
    classes: Sequence[ClassMembers],
    phase: str,
) -> list[dict[str, Any]]:
    """Build the tiles at the top of the page: quality, size and training time.

    Args:
        results: content of results.json.
        teacher: metrics of all members after the first phase.
        student: metrics of all members after the last phase.
        classes: of the run.
        phase: name of the last phase.

    Returns:
        For each tile its "name", its "cell", and a "note" to compare it with.
    """
    references = [f"teacher {metric_cell(teacher, classes, 'auc').value}"]
    if paper := paper_mean(results, phase):
        references.append(f"paper {paper:.4f}")
    recall, false_positive_rate = (
        metric_cell(student, classes, metric, ".0%").value
        for metric in ("recall", "false_positive_rate")
    )
    costs = [results["cost"][network]["flops"] for network in ("teacher", "student")]
    return [
        {
            "name": "AUC of the student",
            "cell": metric_cell(student, classes, "auc"),
            "note": ", ".join(references),
        },
        {
            "name": "F1 at the threshold",
            "cell": metric_cell(student, classes, "f1"),
            "note": f"recall {recall}, false positive rate {false_positive_rate}",
        },
        {
            "name": "Compression",
            "cell": Cell(format_ratio(costs[0] / costs[1])),
            "note": "{1} multiply-adds per image, teacher {0}".format(*map(format_count, costs)),
        },
        {
            "name": "Training time",
            "cell": Cell(format_duration(sum(results["seconds"].values()))),
            "note": results["hardware"],
        },
    ]


def class_metrics(
    metrics: Sequence[MemberMetrics], members: ClassMembers
) -> list[tuple[str, Cell]]:
    """Format the metrics beside the name of a class."""
    return [(title, metric_cell(metrics, [members], metric)) for title, metric in METRICS.items()]


def compression_table(results: dict[str, Any]) -> Table:
    """Build the table of network sizes, with the ratios of the paper if the networks are the same.

    Args:
        results: content of results.json.
    """
    sizes, costs = ("parameters", "flops"), results["cost"]
    rows = [
        (
            f"{network} {results['config'][f'{network}_widths']}",
            [Cell(f"{costs[network][size]:,}") for size in sizes],
        )
        for network in ("teacher", "student")
    ]
    ratios = {"ratio": tuple(costs["teacher"][size] / costs["student"][size] for size in sizes)}
    paper = table4().get(results["dataset"])
    if paper and costs == {"teacher": vars(paper.teacher), "student": vars(paper.student)}:
        ratios["ratio, counted as in the paper"] = paper.paper_style
        ratios["ratio, printed in the paper"] = paper.printed
    footer = [(name, [Cell(f"{value:.2f}×") for value in pair]) for name, pair in ratios.items()]
    return Table([], ["parameters", "multiply-adds"], rows, footer)


def phase_row(phase: Phase, results: dict[str, Any]) -> dict[str, str]:
    """Format the row of a phase in the table of phases."""
    structures = {structure: f"KDGAN-{number}" for number, structure in KDGAN.items()}
    return {
        "name": PHASE_TITLES[phase.name],
        "structure": structures.get(phase.structure, "GANomaly"),
        "trained": " and ".join(phase.structure.trained),
        "epochs": f"{phase.epochs:,}",
        "time": format_duration(results["seconds"][phase.name]),
    }


def format_ratio(ratio: float) -> str:
    """Format a ratio, e.g. 0.03×, 24.45×, 712×."""
    return f"{ratio:.0f}×" if ratio >= 100 else f"{ratio:.2f}×"


def format_count(count: float) -> str:
    """Format a count with three digits, e.g. 78.6k, 5.12M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)


def format_duration(seconds: float) -> str:
    """Format a time, e.g. 42 s, 13 min, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
