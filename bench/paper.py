"""Results of run folders beside the paper's, as Markdown tables.

    python -m bench.paper RUN_DIR [RUN_DIR ...]

Every figure of ours is read from results.json of a run; the paper's are from its Tables 2 to 4.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from pkd.cost import PAPER_STUDENTS
from pkd.structures import PHASE_NAMES

# Mean AUC of ten classes: the teacher (Table 4), and the students of each structure (Table 3).
PAPER_MEANS = {
    "teacher": {"cifar10": 0.7376, "mnist": 0.9780, "fashion_mnist": 0.9311},
    "1": {"cifar10": 0.7159, "mnist": 0.9670, "fashion_mnist": 0.9248},
    "2": {"cifar10": 0.7243, "mnist": 0.9675, "fashion_mnist": 0.9241},
    "3": {"cifar10": 0.7094, "mnist": 0.9718, "fashion_mnist": 0.9290},
    "4": {"cifar10": 0.7258, "mnist": 0.9687, "fashion_mnist": 0.9242},
    "progressive-23": {"cifar10": 0.7305, "mnist": 0.9725, "fashion_mnist": 0.9293},
    "progressive-24": {"cifar10": 0.7252, "mnist": 0.9667, "fashion_mnist": 0.9257},
}
# Teacher's AUC by class, Table 2; the paper has none for Fashion-MNIST.
PAPER_CLASSES = {
    "cifar10": (0.825, 0.744, 0.703, 0.605, 0.765, 0.652, 0.797, 0.723, 0.827, 0.735),
    "mnist": (0.996, 0.999, 0.969, 0.969, 0.970, 0.951, 0.992, 0.982, 0.965, 0.987),
}
NONE = "–"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def auc(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def paper_mean(run: dict[str, Any], phase: str) -> float | None:
    """The paper's mean AUC; for a student only if ours has the widths of the paper's."""
    dataset, structure = run["dataset"], run["config"]["structure"]
    if dataset not in PAPER_STUDENTS or phase not in run["mean_auc"]:
        return None
    if phase == "teacher":
        return PAPER_MEANS["teacher"][dataset]
    if run["config"]["student_widths"] != "-".join(map(str, PAPER_STUDENTS[dataset][1])):
        return None
    first_step = phase == "step1" and structure.startswith("progressive")
    return PAPER_MEANS["2" if first_step else structure][dataset]


def our_mean(run: dict[str, Any], phase: str) -> str:
    """Mean over classes, and its spread over seeds where there are several."""
    spread = f" ± {run['std_auc'][phase]:.4f}" if phase in run.get("std_auc", {}) else ""
    return auc(run["mean_auc"].get(phase)) + spread


def summary(runs: list[dict[str, Any]]) -> str:
    """One row a run: means over its classes, ours and the paper's, and what it took."""
    header = ["data set", "student", "FLOPs"]
    header += [f"{phase}{who}" for phase in PHASE_NAMES for who in ("", " (paper)")]
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
            row += [our_mean(run, phase), auc(paper_mean(run, phase))]
        rows.append([*row, f"{sum(run['seconds'].values()) / 60:.0f}", run["hardware"]])
    return markdown(header, rows)


def by_class(run: dict[str, Any]) -> str:
    """One row a member of a run."""
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
    return markdown(header, rows)


def report(runs: list[dict[str, Any]]) -> str:
    """All tables."""
    parts = [summary(runs)]
    for run in runs:
        parts.append(f"{run['dataset']}, student {run['config']['student_widths']}, by class:")
        parts.append(by_class(run))
    return "\n\n".join(parts)


def read_results(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{folder} holds no results of a finished run: {error}") from error


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.paper", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")
    print(report([read_results(folder) for folder in parser.parse_args().runs]))


if __name__ == "__main__":
    main()
