"""Print results of sweeps or runs beside the paper's as Markdown tables.

    python -m bench.paper SWEEP_DIR [SWEEP_DIR ...]
    python -m bench.paper RUN_DIR [RUN_DIR ...]

The tables of sweeps are those of `pkd report`. The results of runs are read from their
results.json; the paper's are from its Tables 2 to 4.
"""

import argparse
import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from bench.markdown import table
from pkd.models.paper import PAPER_CLASSES, paper_mean
from pkd.report.formats import Cell, Table
from pkd.report.sweep_tables import (
    class_table,
    comparison_title,
    compression_table,
    method_table,
    score_table,
)
from pkd.sweep.read import is_sweep, read_sweeps
from pkd.sweep.summary import Comparison, summarize
from pkd.training.structures import PHASE_NAMES
from pkd.utils.errors import CheckpointError

MISSING = "–"


def auc(value: float | None) -> str:
    """Format an AUC."""
    return MISSING if value is None else f"{value:.4f}"


def mean_auc(run: dict[str, Any], phase: str) -> str:
    """Format the mean over classes, with its standard deviation over seeds if there are several."""
    spread = f" ± {run['std_auc'][phase]:.4f}" if phase in run.get("std_auc", {}) else ""
    return auc(run["mean_auc"].get(phase)) + spread


def summary(runs: list[dict[str, Any]]) -> str:
    """Return one row for each run: mean AUCs of the run and of the paper, time and hardware."""
    header = ["data set", "student", "FLOPs"]
    header += [f"{phase}{source}" for phase in PHASE_NAMES for source in ("", " (paper)")]
    header += ["minutes", "hardware"]
    rows = []
    for run in runs:
        flops = [size["flops"] for _, size in sorted(run["cost"].items())]  # student, teacher
        ratio = f"1/{flops[1] / flops[0]:.0f}" if len(flops) == 2 else MISSING
        row = [run["dataset"], run["config"]["student_widths"], ratio]
        for phase in PHASE_NAMES:
            row += [mean_auc(run, phase), auc(paper_mean(run, phase))]
        rows.append([*row, f"{sum(run['seconds'].values()) / 60:.0f}", run["hardware"]])
    return table(header, rows)


def by_class(run: dict[str, Any]) -> str:
    """Return one row for each member of a run."""
    paper = PAPER_CLASSES.get(run["dataset"])
    header = ["class", "seed", *PHASE_NAMES, *(["teacher (paper)"] if paper else [])]
    rows = [
        [
            member["class_name"],
            str(member["seed"]),
            *(auc(member["auc"].get(phase)) for phase in PHASE_NAMES),
            *([f"{paper[member['normal_class']]:.3f}"] if paper else []),
        ]
        for member in run["members"]
    ]
    return table(header, rows)


def markdown(table_of_report: Table, first: str) -> str:
    """Return a table of a report as Markdown.

    Args:
        table_of_report: the table.
        first: title of the column with the names of the rows.
    """
    groups = [title for title, span in table_of_report.groups for _ in range(span)]
    titles = zip_longest(groups, table_of_report.columns, fillvalue="")
    header = [first, *(f"{group}: {title}" if group else title for group, title in titles)]
    rows = [*table_of_report.rows, *table_of_report.footer]
    return table(header, [[name, *map(cell_text, cells)] for name, cells in rows])


def cell_text(cell: Cell) -> str:
    """Return a cell as text in one line."""
    paper = f"({cell.paper})" if cell.paper else ""
    return " ".join(filter(None, (cell.value, cell.spread, paper)))


def method_tables(comparisons: Sequence[Comparison]) -> list[str]:
    """Return Table 3, one for each data set."""
    by_dataset: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        by_dataset.setdefault(comparison.dataset, []).append(comparison)
    return [markdown(method_table(group), "method") for group in by_dataset.values()]


def detail_tables(comparisons: Sequence[Comparison]) -> list[str]:
    """Return Table 4, and for each data set and student the AUC by score and Table 2, by class."""
    parts = [markdown(compression_table(comparisons), "data set, student")]
    for comparison in comparisons:
        title = comparison_title(comparison)
        parts += [*score_texts(comparison), f"{title}, by class:"]
        parts.append(markdown(class_table(comparison), "class"))
    return parts


def score_texts(comparison: Comparison) -> list[str]:
    """Return the AUC by score after its title; nothing for sweeps of early versions."""
    scores = score_table(comparison)
    if all(cell == Cell(MISSING) for _, cells in scores.rows for cell in cells):
        return []
    return [f"{comparison_title(comparison)}, by score:", markdown(scores, "network")]


def sweep_report(paths: Sequence[Path]) -> str:
    """Return the tables of sweeps, rows merged; CheckpointError as `read_sweeps`."""
    comparisons = summarize(read_sweeps(paths))
    return "\n\n".join([*method_tables(comparisons), *detail_tables(comparisons)])


def report(runs: list[dict[str, Any]]) -> str:
    """Return all tables of runs."""
    parts = [summary(runs)]
    for run in runs:
        parts.append(f"{run['dataset']}, student {run['config']['student_widths']}, by class:")
        parts.append(by_class(run))
    return "\n\n".join(parts)


def read_results(folder: Path) -> dict[str, Any]:
    """Read results.json of a finished run."""
    try:
        return json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{folder} contains no results of a finished run: {error}") from error


def main() -> None:
    """Print the tables of the sweeps or runs on the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.paper", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    folders = parser.parse_args().folders
    try:
        if any(map(is_sweep, folders)):
            print(sweep_report(folders))
        else:
            print(report([read_results(folder) for folder in folders]))
    except CheckpointError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
