"""`pkd report`: what a finished run learned, as one HTML file that needs nothing beside it.

Words and figures are gathered here, charts drawn in charts.py; layout and colours are report.html.
"""

import base64
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image
from pkd_kernels import to_unit
from sklearn.metrics import roc_curve
from torch import Tensor

from pkd.charts import Axis, Chart, count_axis, linear_axis, log_axis
from pkd.config import Phase
from pkd.cost import table4
from pkd.errors import UserError
from pkd.models import Generator
from pkd.paper import PAPER_CLASSES, paper_mean
from pkd.runs import replace_file
from pkd.schedule import OWN_DATA, Run
from pkd.structures import KDGAN
from pkd.verdicts import Verdicts, judge

GENERATOR = '<meta name="generator" content="pkd report">'  # tells our files from others
TITLES = {
    "digits": "Digits",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
}
METHODS = {"progressive-23": "P-KDGAN-II-(2)(3)", "progressive-24": "P-KDGAN-II-(2)(4)"}
STEPS = {"teacher": "teacher", "step1": "step 1", "step2": "step 2"}
BINS = 40
BEYOND = 0.001  # share of scores that the histograms' axis need not reach
SHOWN = 6  # most normal images of a class, and most novel ones; fewer where there is much to show:
PICTURE_BYTES = 1_500_000  # of all pictures before they are packed


class Figure(NamedTuple):
    """A number of a table, and its spread over seeds."""

    value: str
    spread: str = ""


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


class Group(NamedTuple):
    """The members of a run that share their normal class, one a seed."""

    number: int
    name: str
    members: list[int]


class Column(NamedTuple):
    """A test image above its reconstructions, and what the student says of it."""

    source: str  # a data: address of a PNG
    class_name: str
    novel: bool
    ratio: str  # score over threshold


def write_report(run: Run, output: Path, tick: Callable[[], None] = lambda: None) -> None:
    """Score the test split by the networks of a finished run and write the page.

    Args:
        run: finished; its networks are left as one of its phases left them.
        output: a new file, or an earlier report.
        tick: called once a batch of test images and phase; may raise to stop.

    Raises:
        UserError: the run is not finished or is damaged, or the file cannot be written.
    """
    check_output(output)
    results = finished_results(run)
    page = render(view(run, results, judge(run, results, tick)))
    try:
        replace_file(output, lambda path: path.write_text(page, encoding="utf-8"))
    except OSError as error:
        raise _unwritable(output, error) from error


def check_output(output: Path) -> None:
    """UserError if a report cannot be written there, or would replace what is no report."""
    if output.is_dir():
        raise UserError(
            f"--output {output} is a folder: name a file, e.g. {output / 'report.html'}"
        )
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}, make it first")
    if not os.access(output.parent, os.W_OK):
        raise UserError(f"--output {output}: no permission to write there, choose another folder")
    try:
        foreign = output.exists() and GENERATOR.encode() not in output.read_bytes()
    except OSError as error:
        raise _unwritable(output, error) from error
    if foreign:
        raise UserError(
            f"--output {output} exists and is no report of pkd: it is kept, choose another name"
        )


def _unwritable(output: Path, error: OSError) -> UserError:
    return UserError(
        f"--output {output} cannot be written ({error.strerror}): make room or get permission "
        "there, or choose another file"
    )


def finished_results(run: Run) -> dict[str, Any]:
    """What results.json of a run holds.

    Raises:
        UserError: there is none yet, it does not fit config.yaml, or it speaks of other images
            than `run` has.
    """
    path = run.folder.path
    results = run.folder.results()
    if results is None:
        raise UserError(
            f"{path} is not finished, it has no results.json: continue it with pkd train --resume"
        )
    phases = {phase.name for phase in run.phases}
    try:
        members = [
            (m["normal_class"], m["seed"], {*m["auc"]}, {*m["threshold"]})
            for m in results["members"]
        ]
        known = {name: results[name] for name in ("dataset", "config", "mean_auc", "cost")}
        known |= {name: results[name] for name in ("seconds", "hardware", "versions")}
        digest = results["data_sha256"]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path / 'results.json'} is damaged or of another version of pkd, it lacks {error}: "
            "restore it from a copy, or train again in a new folder"
        ) from error
    if members != [(m.normal_class, m.seed, phases, phases) for m in run.members]:
        raise UserError(
            f"{path / 'results.json'} does not fit config.yaml: restore both from a copy, or train "
            "again in a new folder"
        )
    if digest != run.dataset.digest:
        raise UserError(
            f"the images of --dataset {run.config.dataset} are not those that {path} was made "
            "with: restore them, or name the folder that has them with --data-dir"
        )
    return known | {"members": results["members"], "data_sha256": digest}


def render(context: dict[str, Any]) -> str:
    """The page; whatever in `context` is no Markup is escaped."""
    text = resources.files("pkd").joinpath("report.html").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(text).render(context)


def view(run: Run, results: dict[str, Any], verdicts: dict[str, list[Verdicts]]) -> dict[str, Any]:
    """All that the page shows, in words, figures and pictures."""
    last = run.phases[-1].name
    classes = dict.fromkeys(member.normal_class for member in run.members)
    groups = [
        Group(
            number,
            run.dataset.classes[number],
            [k for k, member in enumerate(run.members) if member.normal_class == number],
        )
        for number in classes
    ]
    axis = ratio_axis(verdicts[last])
    return {
        "generator": Markup(GENERATOR),
        "title": title(run),
        "method": METHODS.get(run.config.structure, f"KDGAN-{run.config.structure}"),
        "config": run.config,
        "results": results,
        "groups": groups,
        "tiles": tiles(run, results, verdicts, groups),
        "quality": quality(run, results, verdicts, groups),
        "novel_share": mean(own.novel.mean() for own in verdicts[last]),
        "test_images": len(run.test_images),
        "details": [
            {
                "name": group.name,
                "figures": headline(verdicts[last], group),
                "histogram": _svg(score_chart([verdicts[last][k] for k in group.members], axis)),
                "roc": _svg(roc_chart(verdicts, last, group.members)),
                "pictures": shown,
            }
            for group, shown in zip(groups, pictures(run, verdicts[last], groups), strict=True)
        ],
        "curves": [_svg(chart) for chart in training_charts(run.folder.metrics)],
        "stack": len(run.members),
        "compression": compression(run, results),
        "phases": [phase_row(phase, results) for phase in run.phases],
        "total": duration(sum(results["seconds"].values())),
        "settings": {name.replace("_", "-"): value for name, value in results["config"].items()},
    }


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
    run: Run,
    results: dict[str, Any],
    verdicts: dict[str, list[Verdicts]],
    groups: Sequence[Group],
) -> Table:
    """Figures by class, with the paper's where they are comparable."""
    last = run.phases[-1].name
    names = [phase.name for phase in run.phases]
    paper = PAPER_CLASSES.get(run.config.dataset)
    judged = [("auc", name, ".4f") for name in names]
    for attribute in ("average_precision", "f1"):
        judged += [(attribute, name, ".4f") for name in ("teacher", last)]
    judged += [("false_alarms", last, ".1%"), ("found", last, ".1%")]

    def row(of: Sequence[Group], printed: Sequence[str]) -> list[Figure]:
        cells = [figure(verdicts[phase], of, name, form) for name, phase, form in judged]
        return [cells[0], *map(Figure, printed), *cells[1:]]

    columns = [STEPS[name] for name in names]
    columns[1:1] = ["paper"] * (paper is not None)
    rows = [
        (group.name, row([group], [f"{paper[group.number]:.3f}"] if paper else []))
        for group in groups
    ]
    footer = []
    if len(groups) > 1:
        footer.append(("mean", row(groups, [""] * (paper is not None))))
        means = [paper_mean(results, name) for name in names]
        if any(means):
            cells = [Figure(f"{value:.4f}" if value else "") for value in means]
            cells[1:1] = [Figure("")] * (paper is not None)
            cells += [Figure("")] * (len(judged) - len(names))
            footer.append(("mean in the paper", cells))
    pair = ["teacher", "student"]
    heads = [("AUC", len(columns)), ("average precision", 2), ("F1 at threshold", 2)]
    return Table(
        [*heads, ("student at threshold", 2)],
        [*columns, *pair, *pair, "false alarms", "novel found"],
        rows,
        footer,
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


def ratio_axis(verdicts: Sequence[Verdicts]) -> Axis:
    """An axis of score over threshold that suits all members; the threshold is at 1."""
    low, high = np.quantile([own.ratios for own in verdicts], [BEYOND, 1 - BEYOND])
    return log_axis("score ÷ threshold", min(low, 0.5), max(high, 2.0))


def score_chart(verdicts: Sequence[Verdicts], axis: Axis) -> Chart:
    """Histogram of normal and novel scores, those of several seeds together."""
    ratios = np.concatenate([own.ratios for own in verdicts])
    novel = np.concatenate([own.novel for own in verdicts])
    edges = np.geomspace(axis.low, axis.high, BINS + 1)
    shares = [
        100 * np.histogram(np.clip(own, axis.low, axis.high), edges)[0] / len(own)
        for own in (ratios[~novel], ratios[novel])
    ]
    y = linear_axis("% of the images", 0, max(map(max, shares)))
    chart = Chart(axis, y, "Histogram of the student's scores", 300, 336)
    for kind, heights in zip(("normal", "novel"), shares, strict=True):
        chart.histogram(edges, heights, kind)
    chart.mark(1.0, "threshold")
    return chart


def roc_chart(verdicts: dict[str, list[Verdicts]], last: str, members: Sequence[int]) -> Chart:
    """ROC curves of teacher and student, a line a seed, with the student's threshold."""
    x = linear_axis("normal images called novel", 0, 1)
    chart = Chart(x, linear_axis("novel images found", 0, 1), "ROC curves", 300, 336)
    chart.line((0, 1), (0, 1), "chance")
    for phase, kind in (("teacher", "teacher"), (last, "student")):
        for own in (verdicts[phase][k] for k in members):
            false, true, _ = roc_curve(own.novel, own.scores)
            chart.line(false, true, kind)
    for own in (verdicts[last][k] for k in members):
        chart.dot(own.false_alarms, own.found, "student")
    return chart


def training_charts(metrics: list[dict[str, Any]]) -> list[Chart]:
    """AUC and losses over epochs, phase after phase."""
    stretches, begin = [], 0
    for name, records in groupby(metrics, key=lambda record: record["phase"]):
        records = list(records)
        stretches.append((name, begin, records))
        begin += len(records)
    x = count_axis("epoch", begin)
    charts = [auc_curves(stretches, x), loss_curves(stretches, x)]
    for chart in charts:
        for name, start, records in stretches:
            chart.span(start, start + len(records), (STEPS[name], STEPS[name][-1]))
    return charts


def auc_curves(stretches: list[tuple[str, int, list[dict[str, Any]]]], x: Axis) -> Chart:
    """Mean AUC of the stack, and the band from its smallest to its largest."""
    every = np.array([record["auc"] for _, _, records in stretches for record in records])
    y = linear_axis("AUC", min(every.min(), 0.99), every.max())  # at most 1, were all of them 1
    chart = Chart(x, y, "AUC over epochs", 420, 260)
    for _, start, records in stretches:
        epochs = [start + record["epoch"] for record in records]
        auc = np.array([record["auc"] for record in records])  # [epochs, M]
        chart.band(epochs, auc.min(1), auc.max(1), records[0]["network"])
        chart.line(epochs, auc.mean(1), records[0]["network"])
    return chart


def loss_curves(stretches: list[tuple[str, int, list[dict[str, Any]]]], x: Axis) -> Chart:
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
    chart = Chart(x, log_axis("loss", low, high), "Losses over epochs", 420, 260)
    for line in lines:
        chart.line(*line)
    return chart


def pictures(
    run: Run, verdicts: Sequence[Verdicts], groups: Sequence[Group]
) -> list[list[tuple[str, list[Column]]]]:
    """For each class its most normal and its most novel test images, by the first seed's student.

    The run's networks must be those of its last phase; they are left as the first phase left them.
    """
    members = [group.members[0] for group in groups]
    size = run.test_images[0].numel() * len(groups) * 3 * 2
    count = min(max(1, PICTURE_BYTES // size), SHOWN, len(run.test_images) // 2)
    orders = [verdicts[k].scores.argsort(kind="stable") for k in members]
    rows = np.stack([np.concatenate([own[:count], own[: -count - 1 : -1]]) for own in orders], 1)
    originals = run.test_images[torch.from_numpy(rows)]  # [2 * count, groups, C, H, W]
    student = reconstructions(run.networks["student"].generator, originals, members)
    run.load_phase(run.phases[0])
    teacher = reconstructions(run.networks["teacher"].generator, originals, members)
    stacked = torch.cat([originals, teacher, student], 3).cpu().numpy()
    labels, names = run.dataset.test_labels, run.dataset.classes
    found = []
    for place, k in enumerate(members):
        columns = [
            Column(
                png(stacked[i, place]),
                names[labels[row]],
                bool(verdicts[k].novel[row]),
                times(verdicts[k].ratios[row]),
            )
            for i, row in enumerate(rows[:, place])
        ]
        found.append([("most normal", columns[:count]), ("most novel", columns[count:])])
    return found


@torch.no_grad()
def reconstructions(generator: Generator, images: Tensor, members: Sequence[int]) -> Tensor:
    """What some members of a stack make of images of their own.

    Args:
        generator: of M members; left in evaluation mode.
        images: (P, len(members), C, H, W) uint8.
        members: places in the stack.

    Returns:
        uint8 of the shape of `images`.
    """
    generator.eval()
    shape = images.shape
    stack = generator.encoder[0].stack
    everyone = images.new_zeros(len(images), stack, *shape[2:])
    everyone[:, members] = images
    made = generator(to_unit(everyone.flatten(1, 2))).xh.view(everyone.shape)[:, members]
    return ((made + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def png(image: np.ndarray) -> str:
    """A data: address of an image (C, H, W) uint8."""
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0).squeeze()).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def compression(run: Run, results: dict[str, Any]) -> Table:
    """Teacher and student of this run, and the paper's ratios where its networks are the same."""
    cost, config = results["cost"], run.config
    rows = [
        (
            f"{name} {getattr(config, f'{name}_widths')}",
            [Figure(f"{cost[name][what]:,}") for what in ("parameters", "flops")],
        )
        for name in ("teacher", "student")
    ]
    ratios = [cost["teacher"][what] / cost["student"][what] for what in ("parameters", "flops")]
    footer = [("ratio", ratios)]
    paper = table4().get(config.dataset)
    if paper and cost == {name: vars(getattr(paper, name)) for name in ("teacher", "student")}:
        footer.append(("ratio, counted as the paper does", paper.paper_style))
        footer.append(("ratio, printed in the paper", paper.printed))
    return Table(
        [],
        ["parameters", "multiply-adds an image"],
        rows,
        [(name, [Figure(f"{value:.2f}×") for value in values]) for name, values in footer],
    )


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


def _svg(chart: Chart) -> Markup:
    return Markup(chart.markup())
