"""Print results of runs and of the paper as Markdown tables.

    python -m bench.paper RUN_DIR [RUN_DIR ...]

The results of runs are read from their results.json; the paper's are from its Tables 2 to 4.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from bench.markdown import table
from pkd.models.paper import PAPER_CLASSES, paper_mean
from pkd.training.structures import PHASE_NAMES

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
        teacher, student = run["cost"]["teacher"], run["cost"]["student"]
        row = [
            run["dataset"],
            run["config"]["student_widths"],
            f"1/{teacher['flops'] / student['flops']:.0f}",
        ]
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


def report(runs: list[dict[str, Any]]) -> str:
    """Return all tables."""
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
    """Print the tables of the runs on the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.paper", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")
    print(report([read_results(folder) for folder in parser.parse_args().runs]))


if __name__ == "__main__":
    main()
