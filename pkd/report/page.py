"""`pkd report`: what a finished run learned, as one HTML file that needs nothing beside it.

Words and figures are gathered here; layout and colours are report.html.
"""

import os
from importlib import resources
from pathlib import Path
from statistics import mean
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pkd.report.charts import ratio_axis, roc_chart, score_chart, training_charts
from pkd.report.reconstructions import pictures
from pkd.report.svg import Chart
from pkd.report.tables import (
    METHODS,
    Group,
    compression,
    duration,
    headline,
    phase_row,
    quality,
    tiles,
    times,
    title,
)
from pkd.runs.results import finished_results, judge
from pkd.runs.run import Run
from pkd.scoring.metrics import Verdicts
from pkd.utils.errors import PkdError
from pkd.utils.files import atomic_write

GENERATOR = '<meta name="generator" content="pkd report">'  # tells our files from others


def write_report(run: Run, output: Path) -> None:
    """Write the page of a finished run.

    Args:
        run: its networks are left as one of its phases left them.
        output: a new file, or an earlier report.

    Raises:
        PkdError: the run is not finished or is damaged, or the file cannot be written.
    """
    check_output(output)
    results = finished_results(run)
    page = render(view(run, results, judge(run, results)))
    try:
        with atomic_write(output) as temporary:
            temporary.write_text(page, encoding="utf-8")
    except OSError as error:
        raise _unwritable(output, error) from error


def check_output(output: Path) -> None:
    """PkdError if a report cannot be written there, or would replace what is no report."""
    if output.is_dir():
        raise PkdError(f"--output {output} is a folder: name a file, e.g. {output / 'report.html'}")
    if not output.parent.is_dir():
        raise PkdError(f"--output {output}: there is no folder {output.parent}, make it first")
    if not os.access(output.parent, os.W_OK):
        raise PkdError(f"--output {output}: no permission to write there, choose another folder")
    try:
        foreign = output.exists() and GENERATOR.encode() not in output.read_bytes()
    except OSError as error:
        raise _unwritable(output, error) from error
    if foreign:
        raise PkdError(
            f"--output {output} exists and is no report of pkd: it is kept, choose another name"
        )


def _unwritable(output: Path, error: OSError) -> PkdError:
    return PkdError(
        f"--output {output} cannot be written ({error.strerror}): make room or get permission "
        "there, or choose another file"
    )


def render(context: dict[str, Any]) -> str:
    """The page; whatever in `context` is no Markup is escaped."""
    text = resources.files("pkd.report").joinpath("report.html").read_text(encoding="utf-8")
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
    student = verdicts[last]
    axis = ratio_axis(student)
    shown = pictures(run, student, [group.members[0] for group in groups])
    return {
        "generator": Markup(GENERATOR),
        "times": times,
        "title": title(run),
        "method": METHODS.get(run.config.structure, f"KDGAN-{run.config.structure}"),
        "config": run.config,
        "results": results,
        "groups": groups,
        "tiles": tiles(run, results, verdicts, groups),
        "quality": quality(run.phases, results, verdicts, groups),
        "novel_share": mean(own.novel.mean() for own in student),
        "test_images": len(run.test_images),
        "details": [
            {
                "name": group.name,
                "figures": headline(student, group),
                "histogram": _svg(score_chart([student[k] for k in group.members], axis)),
                "roc": _svg(roc_chart(verdicts["teacher"], student, group.members)),
                "pictures": columns,
            }
            for group, columns in zip(groups, shown, strict=True)
        ],
        "curves": [_svg(chart) for chart in training_charts(run.folder.metrics)],
        "stack": len(run.members),
        "compression": compression(run.config, results["cost"]),
        "phases": [phase_row(phase, results) for phase in run.phases],
        "total": duration(sum(results["seconds"].values())),
        "settings": {name.replace("_", "-"): value for name, value in results["config"].items()},
    }


def _svg(chart: Chart) -> Markup:
    return Markup(chart.markup())
