"""Write the report of a finished run: one HTML file without references to other files.

This module builds the content; report.html has the layout and the style.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from statistics import mean
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from pkd.report.formats import METHOD_TITLES, format_ratio
from pkd.report.reconstructions import example_images
from pkd.report.svg import render_svg
from pkd.report.tables import (
    ClassMembers,
    class_metrics,
    dataset_title,
    evaluated_phases,
    metrics_table,
    phase_row,
    size_table,
    summary_tiles,
)
from pkd.runs.plots import (
    draw_auc,
    draw_histogram,
    draw_losses,
    draw_roc,
    ratio_limits,
    split_phases,
)
from pkd.runs.results import load_results, member_metrics
from pkd.runs.run import Run
from pkd.scoring.metrics import MemberMetrics
from pkd.utils.duration import format_duration
from pkd.utils.files import atomic_write, read_bytes
from pkd.utils.text import visible

GENERATOR = '<meta name="generator" content="pkd report">'  # identifies reports of this program

CLASS_CHART, TRAINING_CHART = (300, 336), (420, 260)  # width and height in points


def write_report(run: Run, output: Path | None = None, overwrite: bool = False) -> Path:
    """Write the report of a finished run.

    Args:
        run: a finished run; its networks are replaced by those of finished phases.
        output: file to write; default: report.html in the run folder, which replaces an earlier
            report there.
        overwrite: whether any existing file may be replaced.

    Returns:
        The file.

    Raises:
        CheckpointError: the run is not finished, or its files are damaged.
        DataError: the images of the run have changed since it was trained.
        OutputError: the file cannot be written, or exists.
    """
    if output is None:
        output = run.folder.path / "report.html"
        overwrite = overwrite or is_report(output)
    with atomic_write(output, overwrite) as file:  # refuses an existing file before the work
        results = load_results(run)
        page = render("report.html", page_context(run, results, member_metrics(run, results)))
        file.write_text(page, encoding="utf-8")
    return output


def is_report(path: Path) -> bool:
    """Whether a file is a report of this program."""
    try:
        return GENERATOR.encode() in read_bytes(path)
    except OSError:
        return False


def render(template: str, context: dict[str, Any]) -> str:
    """Render a template of this package.

    Of values in `context` that are not Markup, markup is escaped and control characters are shown.
    """
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # text from outside, such as names of classes; Markup is made here
        finalize=lambda value: visible(value) if type(value) is str else value,
        loader=FunctionLoader(_read_template),
    )
    environment.globals |= {
        "generator": Markup(GENERATOR),
        "format_ratio": format_ratio,
    }
    return environment.get_template(template).render(context)


def _read_template(name: str) -> str:
    return resources.files("pkd.report").joinpath(name).read_text(encoding="utf-8")


def page_context(
    run: Run, results: dict[str, Any], metrics: dict[str, list[MemberMetrics]]
) -> dict[str, Any]:
    """Build the variables of the template.

    Args:
        run: a finished run.
        results: its `load_results`.
        metrics: its `member_metrics`.
    """
    by_network = {name: metrics[phase] for name, phase in evaluated_phases(run.phases).items()}
    last = run.phases[-1]
    classes = group_by_class(run)
    return {
        "title": dataset_title(run),
        "method": METHOD_TITLES[results["config"]["structure"]],
        "networks": list(by_network),
        "network": last.network,
        "seeds": len({member.seed for member in run.members}),
        "contamination": run.config.contamination,
        "results": results,
        "classes": class_sections(run, by_network, classes),
        "tiles": summary_tiles(results, by_network, classes, last),
        "metrics": metrics_table(run.phases, results, metrics, classes),
        "novel_fraction": mean(member.y_true.mean() for member in metrics[last.name]),
        "test_images": len(run.test_images),
        "training_charts": training_charts(run.folder.metrics),
        "members": len(run.members),
        "sizes": size_table(results),
        "phases": [phase_row(phase, results) for phase in run.phases],
        "training_time": format_duration(sum(results["seconds"].values())),
        "settings": {key.replace("_", "-"): value for key, value in results["config"].items()},
    }


def group_by_class(run: Run) -> list[ClassMembers]:
    """Group the members of a run by their normal class."""
    positions: dict[int, dict[int, int]] = {}
    for k, member in enumerate(run.members):
        positions.setdefault(member.normal_class, {})[member.seed] = k
    return [
        ClassMembers(number, run.dataset.classes[number], members)
        for number, members in positions.items()
    ]


def class_sections(
    run: Run,
    metrics: Mapping[str, Sequence[MemberMetrics]],
    classes: Sequence[ClassMembers],
) -> list[dict[str, Any]]:
    """Build metrics, charts and example images of each class.

    Args:
        run: a finished run.
        metrics: network -> metrics of all members.
        classes: of the run.
    """
    network = run.phases[-1].network
    scorer = metrics[network]
    first_members = [group.members[min(group.members)] for group in classes]
    examples = example_images(run, scorer, first_members)
    limits = ratio_limits(scorer)
    sections = []
    for group, class_examples in zip(classes, examples, strict=True):
        of_class = {
            name: [values[k] for k in group.members.values()] for name, values in metrics.items()
        }
        histogram = partial(draw_histogram, metrics=of_class[network], limits=limits)
        roc = partial(draw_roc, metrics=of_class)
        sections.append(
            {
                "name": group.name,
                "metrics": class_metrics(scorer, group),
                "histogram": render_svg(
                    histogram, *CLASS_CHART, f"Histogram of scores, normal class {group.name}"
                ),
                "roc": render_svg(roc, *CLASS_CHART, f"ROC curves, normal class {group.name}"),
                "examples": class_examples,
            }
        )
    return sections


def training_charts(metrics: list[dict[str, Any]]) -> list[Markup]:
    """Render AUC and losses over epochs from the records of metrics.jsonl."""
    phases = split_phases(metrics)
    return [
        render_svg(partial(draw_auc, phases=phases), *TRAINING_CHART, "AUC over epochs"),
        render_svg(partial(draw_losses, phases=phases), *TRAINING_CHART, "Losses over epochs"),
    ]
