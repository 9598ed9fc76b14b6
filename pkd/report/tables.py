"""TODO."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from pkd.models.paper import paper_class, paper_mean, table4
from pkd.report.charts import STEPS
from pkd.runs.run import Run
from pkd.scoring.metrics import Verdicts
from pkd.training.config import OWN_DATA, Phase, TrainConfig
from pkd.training.structures import KDGAN

TITLES = {
    "digits": "Digits",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
}

METHODS = {"progressive-23": "P-KDGAN-II-(2)(3)", "progressive-24": "P-KDGAN-II-(2)(4)"}


class Figure(NamedTuple):
    """A number, its spread over seeds, and the paper's."""

    value: str
    spread: str = ""
    paper: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of figures under columns, which stand in named groups.

    Attributes:
        groups: (title, number of columns).
        rows, footer: (name, figures).
    """

    groups: list[tuple[str, int]]
    columns: list[str]
    rows: list[tuple[str, list[Figure]]]
    footer: list[tuple[str, list[Figure]]] = field(default_factory=list)


class Measure(NamedTuple):
    """A column: an attribute of the verdicts of a phase, under a title in a group of columns."""

    group: str
    title: str
    attribute: str
    phase: str
    form: str = ".4f"


class Group(NamedTuple):
    """The members of a run that share their normal class, one a seed."""

    number: int
    name: str
    members: list[int]


def title(run: Run) -> str:
    """The data set's name; of the user's own, that of its folder or file."""
    config = run.config
    return Path(config.data_dir).stem if config.dataset in OWN_DATA else TITLES[config.dataset]


def figure(
    verdicts: Sequence[Verdicts], groups: Sequence[Group], name: str, form: str = ".4f"
) -> Figure:
    """Mean of an attribute of Verdicts over classes; over seeds too, with standard deviation."""
    by_seed = [
        mean(getattr(verdicts[k], name) for k in members)
        for members in zip(*(group.members for group in groups), strict=True)
    ]
    spread = f"± {stdev(by_seed):{form}}" if len(by_seed) > 1 else ""
    return Figure(f"{mean(by_seed):{form}}", spread)


def quality(
    phases: Sequence[Phase],
    results: dict[str, Any],
    verdicts: dict[str, list[Verdicts]],
    groups: Sequence[Group],
) -> Table:
    """Figures by class, with the paper's where they are comparable."""
    last = phases[-1].name
    measures = [Measure("AUC", STEPS[phase.name], "auc", phase.name) for phase in phases]
    measures += [
        Measure(title, network, attribute, phase)
        for title, attribute in (
            ("average precision", "average_precision"),
            ("F1 at threshold", "f1"),
        )
        for network, phase in (("teacher", "teacher"), ("student", last))
    ]
    measures += [
        Measure("student at threshold", title, attribute, last, ".1%")
        for title, attribute in (("false alarms", "false_alarms"), ("novel found", "found"))
    ]

    def row(of: Sequence[Group], paper: Callable[[str], float | None]) -> list[Figure]:
        cells = [figure(verdicts[m.phase], of, m.attribute, m.form) for m in measures]
        printed = [paper(m.phase) if m.attribute == "auc" else None for m in measures]
        return [
            cell._replace(paper=f"paper {value:.4f}" if value else "")
            for cell, value in zip(cells, printed, strict=True)
        ]

    rows = [(own.name, row([own], partial(paper_class, results, own.number))) for own in groups]
    mean_row = ("mean", row(groups, partial(paper_mean, results)))
    heads = groupby(measure.group for measure in measures)
    return Table(
        [(title, len([*same])) for title, same in heads],
        [measure.title for measure in measures],
        rows,
        [mean_row] if len(groups) > 1 else [],
    )


def tiles(
    run: Run,
    results: dict[str, Any],
    verdicts: dict[str, list[Verdicts]],
    groups: Sequence[Group],
) -> list[dict[str, Any]]:
    """How good, how big, how long: a few figures, each with what to compare it with."""
    last = run.phases[-1].name
    student = verdicts[last]
    compared = [f"teacher {figure(verdicts['teacher'], groups, 'auc').value}"]
    if paper := paper_mean(results, last):
        compared.append(f"paper {paper:.4f}")
    found, alarms = (
        figure(student, groups, name, ".0%").value for name in ("found", "false_alarms")
    )
    large, small = results["cost"]["teacher"], results["cost"]["student"]
    return [
        {
            "name": "AUC of the student",
            "figure": figure(student, groups, "auc"),
            "note": ", ".join(compared),
        },
        {
            "name": "F1 at the threshold",
            "figure": figure(student, groups, "f1"),
            "note": f"finds {found} of novel images, with {alarms} false alarms",
        },
        {
            "name": "Compression",
            "figure": Figure(times(large["flops"] / small["flops"])),
            "note": f"{short(small['flops'])} multiply-adds an image, the teacher "
            f"{short(large['flops'])}",
        },
        {
            "name": "Time to train",
            "figure": Figure(duration(sum(results["seconds"].values()))),
            "note": results["hardware"],
        },
    ]


def headline(verdicts: Sequence[Verdicts], group: Group) -> list[tuple[str, Figure]]:
    """The figures that stand beside a class's name."""
    named = {"AUC": "auc", "average precision": "average_precision", "F1": "f1"}
    return [(name, figure(verdicts, [group], of)) for name, of in named.items()]


def compression(config: TrainConfig, costs: dict[str, dict[str, int]]) -> Table:
    """Teacher and student of a run, and the paper's ratios where its networks are the same.

    Args:
        costs: network -> what pkd.cost.Cost holds.
    """
    parts = ("parameters", "flops")
    rows = [
        (
            f"{name} {getattr(config, f'{name}_widths')}",
            [Figure(f"{costs[name][part]:,}") for part in parts],
        )
        for name in ("teacher", "student")
    ]
    ratios = {"ratio": [costs["teacher"][part] / costs["student"][part] for part in parts]}
    paper = table4().get(config.dataset)
    if paper and costs == {name: vars(getattr(paper, name)) for name in ("teacher", "student")}:
        ratios["ratio, counted as the paper does"] = paper.paper_style
        ratios["ratio, printed in the paper"] = paper.printed
    footer = [(name, [Figure(f"{value:.2f}×") for value in pair]) for name, pair in ratios.items()]
    return Table([], ["parameters", "multiply-adds"], rows, footer)


def phase_row(phase: Phase, results: dict[str, Any]) -> dict[str, Any]:
    """What a phase did, in words."""
    trained = " and ".join(phase.structure.trained)
    structures = {structure: f"KDGAN-{number}" for number, structure in KDGAN.items()}
    return {
        "name": STEPS[phase.name],
        "structure": structures.get(phase.structure, "GANomaly"),
        "trained": trained,
        "epochs": f"{phase.epochs:,}",
        "time": duration(results["seconds"][phase.name]),
    }


def times(ratio: float) -> str:
    """A ratio in words, e.g. 0.03×, 24.45×, 712×."""
    return f"{ratio:.0f}×" if ratio >= 100 else f"{ratio:.2f}×"


def short(count: int) -> str:
    """A count in three digits, e.g. 78.6k, 5.12M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)


def duration(seconds: float) -> str:
    """Time in words, e.g. 42 s, 13 min, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
