"""Write the report of a sweep: one HTML file without references to other files."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pkd.report.formats import DATASET_TITLES, Cell
from pkd.report.page import is_report, render
from pkd.report.svg import render_svg
from pkd.report.sweep_tables import (
    class_table,
    comparison_title,
    compression_table,
    method_table,
    method_title,
    score_table,
)
from pkd.runs.plots import COLOURS, round_ticks, set_ticks
from pkd.sweep.read import MergedSweeps, read_sweeps
from pkd.sweep.summary import RESAMPLES, Comparison, summarize
from pkd.utils.duration import format_duration
from pkd.utils.files import atomic_write

# Whether all AUCs are those of the test split -> the images that they are computed on.
IMAGES = {True: "the whole test split", False: "development images, a part of the training split"}

CURVE_CHART = (420, 260)  # width and height in points

# Structure -> name of its colour.
LINE_COLOURS = {"student-only": "student"} | {
    structure: f"method{k}"
    for k, structure in enumerate(("1", "2", "3", "4", "progressive-23", "progressive-24"), 1)
}
# Dashes of the methods with the same structure and other settings, in points.
DASHES = ((), (7, 3), (2, 2), (7, 2, 2, 2), (12, 3))


class Line(NamedTuple):
    """A method in a chart.

    Attributes:
        title: of the method.
        colour: a key of COLOURS.
        dashes: lengths of dashes and gaps in points; empty for a solid line.
        phases: AUC over the epochs of each step of the student.
    """

    title: str
    colour: str
    dashes: tuple[int, ...]
    phases: list[np.ndarray]


def write_sweep_report(path: Path, output: Path | None = None, overwrite: bool = False) -> Path:
    """Write the report of a sweep.

    Args:
        path: folder of a sweep with results, or its sweep.json.
        output: file to write; default: report.html in the folder, which replaces an earlier report
            there.
        overwrite: whether any existing file may be replaced.

    Returns:
        The file.

    Raises:
        CheckpointError: the sweep has no results yet, or sweep.json is damaged.
        OutputError: the file cannot be written, or exists.
    """
    if output is None:
        output = (path if path.is_dir() else path.parent) / "report.html"
        overwrite = overwrite or is_report(output)
    with atomic_write(output, overwrite) as file:
        results = read_sweeps([path])
        file.write_text(render("sweep.html", page_context(results)), encoding="utf-8")
    return output


def page_context(results: MergedSweeps) -> dict[str, Any]:
    """Build the variables of the template."""
    comparisons = summarize(results)
    datasets = dict.fromkeys(method.dataset for method in results.methods)
    members = {member for method in results.methods for member in method.rows}
    return {
        "title": ", ".join(DATASET_TITLES.get(name, name) for name in datasets) or "Sweep",
        "classes": len({member.normal_class for member in members}),
        "seeds": len({member.seed for member in members}),
        "images": IMAGES[results.on_test_split],
        "resamples": f"{RESAMPLES:,}",
        "tiles": summary_tiles(results, comparisons),
        "methods": method_table(comparisons) if comparisons else None,
        "sections": [
            {
                "title": comparison_title(comparison),
                "table": class_table(comparison),
                "scores": score_table(comparison),
                "chart": curve_chart(comparison),
                "lines": method_lines(comparison),
                "teacher": bool(teacher_level(comparison)),
            }
            for comparison in comparisons
        ],
        "compression": compression_table(comparisons) if comparisons else None,
        "failed": results.failed,
        "settings": {name.replace("_", "-"): value for name, value in results.settings.items()},
    }


def summary_tiles(results: MergedSweeps, comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Build the tiles at the top of the page: what was trained, on what, and for how long."""
    students = sum(len(result.method.auc) for c in comparisons for result in c.results)
    teachers = _teacher_seconds(results.rows)
    seconds = sum(row.get("seconds_student") or 0 for row in results.rows) + sum(teachers.values())
    hardware = sorted({row["hardware"] for row in results.rows if row.get("hardware")})
    cells = {row["cell"] for row in results.rows}
    titles = {method_title(r.method, c) for c in comparisons for r in c.results}
    return [
        {"name": "Methods", "cell": Cell(f"{len(titles)}"), "note": f"{len(cells)} cells"},
        {
            "name": "Trained students",
            "cell": Cell(f"{students:,}"),
            "note": f"{len(teachers):,} shared teachers",
        },
        {
            "name": "Training time",
            "cell": Cell(format_duration(seconds)),
            "note": ", ".join(hardware),
        },
        {
            "name": "Failed shards",
            "cell": Cell(f"{len(results.failed)}"),
            "note": "see below" if results.failed else "all finished",
        },
    ]


def _teacher_seconds(rows: Sequence[dict[str, Any]]) -> dict[Any, float]:
    """Teacher -> seconds of its training; rows that share a teacher count once."""
    return {
        row.get("teacher_sha256") or (row["dataset"], row["normal_class"], row["seed"]): row.get(
            "seconds_teacher"
        )
        or 0.0
        for row in rows
        if row["auc_teacher"] is not None
    }


def method_lines(comparison: Comparison) -> list[Line]:
    """Lines of the methods that have curves of the student."""
    lines: list[Line] = []
    for result in comparison.results:
        method = result.method
        steps = [method.curves[name].auc for name in ("step1", "step2") if name in method.curves]
        colour = LINE_COLOURS[method.structure]
        same = sum(line.colour == colour for line in lines)
        if steps:
            dashes = DASHES[same % len(DASHES)]
            lines.append(Line(method_title(method, comparison), colour, dashes, steps))
    return lines


def teacher_level(comparison: Comparison) -> float | None:
    """Mean AUC of the teachers after their training, if the comparison has any."""
    auc = comparison.teacher_auc
    return sum(auc.values()) / len(auc) if auc else None


def curve_chart(comparison: Comparison) -> str:
    """Render the AUC of all methods over the student's epochs, as in Figure 2."""
    lines, teacher = method_lines(comparison), teacher_level(comparison)
    if not lines:
        return ""
    label = f"AUC over the student's epochs, {comparison_title(comparison)}"
    return render_svg(partial(draw_methods, lines=lines, teacher=teacher), *CURVE_CHART, label)


def draw_methods(axes: Axes, lines: Sequence[Line], teacher: float | None) -> None:
    """Draw the mean AUC of methods over epochs, with a dot at the end of each step.

    Args:
        axes: empty axes.
        lines: of the methods.
        teacher: mean AUC of the teachers, a horizontal line.
    """
    values = [] if teacher is None else [teacher]
    epochs = 1
    for line in reversed(lines):  # KDGAN-2 covers the equal first step of P-KDGAN-II
        auc = np.concatenate(line.phases)
        colour = COLOURS[line.colour]
        width = 2.4 if line.colour == "student" else 1.7
        style = (0, line.dashes) if line.dashes else "-"
        axes.plot(range(1, len(auc) + 1), auc, color=colour, linewidth=width, linestyle=style)
        end = 0
        for phase in line.phases:
            end += len(phase)
            axes.plot([end], [auc[end - 1]], "o", ms=5, mfc=colour, mec=COLOURS["page"], mew=1.2)
        values += [auc.min(), auc.max()]
        epochs = max(epochs, len(auc))
    if teacher is not None:
        axes.axhline(teacher, color=COLOURS["teacher"], linewidth=1.7, linestyle=(0, (3, 3)))
    ticks = round_ticks(min(*values, 0.99), max(values))
    axes.set(xlabel="epoch of the student", ylabel="AUC", ylim=(ticks[0], ticks[-1]))
    axes.set_xlim(0, epochs + 0.02 * epochs)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    set_ticks(axes.yaxis, ticks)
