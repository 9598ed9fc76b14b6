"""Tables and numbers of a run's report, formatted as text."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from pkd.models.paper import paper_class, paper_mean, table4
from pkd.models.stack import Member
from pkd.report.formats import (
    DATASET_TITLES,
    Cell,
    Table,
    format_count,
    format_ratio,
)
from pkd.runs.plots import PHASE_TITLES
from pkd.runs.run import Run
from pkd.scoring.metrics import MemberMetrics, average
from pkd.training.config import OWN_DATA
from pkd.training.structures import KDGAN, STUDENT, Phase
from pkd.utils.duration import format_duration

# Metrics of every class: title, attribute of MemberMetrics.
METRICS = {"AUC": "auc", "average precision": "average_precision", "F1": "f1"}


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
        members: seed -> position in the stack.
    """

    number: int
    name: str
    members: dict[int, int]


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
    mean, std = average(
        {
            Member(group.number, seed): getattr(metrics[position], metric)
            for group in classes
            for seed, position in group.members.items()
        }
    )
    return Cell(f"{mean:{form}}", "" if std is None else f"± {std:{form}}")


def evaluated_phases(phases: Sequence[Phase]) -> dict[str, str]:
    """Network -> the last phase that evaluates it."""
    return {phase.network: phase.name for phase in phases}


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
    columns = [MetricColumn("AUC", PHASE_TITLES[phase.name], "auc", phase.name) for phase in phases]
    columns += [
        MetricColumn(group, network, metric, phase)
        for group, metric in (
            ("average precision", "average_precision"),
            ("F1 at threshold", "f1"),
        )
        for network, phase in evaluated_phases(phases).items()
    ]
    last = phases[-1]
    columns += [
        MetricColumn(f"{last.network} at threshold", title, metric, last.name, ".1%")
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
    metrics: Mapping[str, Sequence[MemberMetrics]],
    classes: Sequence[ClassMembers],
    phase: Phase,
) -> list[dict[str, Any]]:
    """Build the tiles at the top of the page: quality, size and training time.

    Args:
        results: content of results.json.
        metrics: network -> metrics of all members after the last phase that evaluates it.
        classes: of the run.
        phase: the last one.

    Returns:
        For each tile its "name", its "cell", and a "note" to compare it with.
    """
    network = phase.network
    references = [
        f"{name} {metric_cell(values, classes, 'auc').value}"
        for name, values in metrics.items()
        if name != network
    ]
    if paper := paper_mean(results, phase.name):
        references.append(f"paper {paper:.4f}")
    recall, false_positive_rate = (
        metric_cell(metrics[network], classes, metric, ".0%").value
        for metric in ("recall", "false_positive_rate")
    )
    teachers_taken = "teacher" in metrics and "teacher" not in results["seconds"]
    return [
        {
            "name": f"AUC of the {network}",
            "cell": metric_cell(metrics[network], classes, "auc"),
            "note": ", ".join(references),
        },
        {
            "name": "F1 at the threshold",
            "cell": metric_cell(metrics[network], classes, "f1"),
            "note": f"recall {recall}, false positive rate {false_positive_rate}",
        },
        size_tile(results["cost"]),
        {
            "name": "Training time",
            "cell": Cell(format_duration(sum(results["seconds"].values()))),
            "note": results["hardware"] + "; teachers of other runs" * teachers_taken,
        },
    ]


def size_tile(costs: dict[str, dict[str, int]]) -> dict[str, Any]:
    """Build the tile of the compression; of a single network, of its cost."""
    if len(costs) == 1:
        (cost,) = costs.values()
        return {
            "name": "Multiply-adds per image",
            "cell": Cell(format_count(cost["flops"])),
            "note": f"{format_count(cost['parameters'])} parameters",
        }
    teacher, student = (costs[network]["flops"] for network in ("teacher", "student"))
    return {
        "name": "Compression",
        "cell": Cell(format_ratio(teacher / student)),
        "note": f"{format_count(student)} multiply-adds per image, teacher {format_count(teacher)}",
    }


def class_metrics(
    metrics: Sequence[MemberMetrics], members: ClassMembers
) -> list[tuple[str, Cell]]:
    """Format the metrics beside the name of a class."""
    return [(title, metric_cell(metrics, [members], metric)) for title, metric in METRICS.items()]


def size_table(results: dict[str, Any]) -> Table:
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
        if network in costs
    ]
    ratios = {}
    if len(costs) == 2:
        ratios["ratio"] = tuple(costs["teacher"][size] / costs["student"][size] for size in sizes)
    paper = table4().get(results["dataset"])
    if paper and costs == {"teacher": vars(paper.teacher), "student": vars(paper.student)}:
        ratios["ratio, counted as in the paper"] = paper.paper_style
        ratios["ratio, printed in the paper"] = paper.printed
    footer = [(name, [Cell(f"{value:.2f}×") for value in pair]) for name, pair in ratios.items()]
    return Table([], ["parameters", "multiply-adds"], rows, footer)


def phase_row(phase: Phase, results: dict[str, Any]) -> dict[str, str]:
    """Format the row of a phase in the table of phases."""
    structures = {structure: f"KDGAN-{number}" for number, structure in KDGAN.items()}
    structures[STUDENT] = "student alone"
    seconds = results["seconds"].get(phase.name)
    return {
        "name": PHASE_TITLES[phase.name],
        "structure": structures.get(phase.structure, "GANomaly"),
        "trained": " and ".join(phase.structure.trained),
        "epochs": f"{phase.epochs:,}",
        "time": "other runs" if seconds is None else format_duration(seconds),
    }
