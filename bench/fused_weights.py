"""Compare weights of the fused score on the trained students of sweeps.

    python -m bench.fused_weights SWEEP_DIR [SWEEP_DIR ...] --json FILE

The sweeps must have been evaluated on development images, so that the choice of the weights does
not depend on the test split.
"""

import argparse
import json
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from bench.markdown import table
from pkd.runs.run import Run
from pkd.runs.run_parts import load_parts
from pkd.scoring.score import ScoreRule
from pkd.sweep.read import is_sweep
from pkd.training.settings import to_plain

ENERGY, RECONSTRUCTION = (0.0, 0.25, 0.5, 1.0), (0.0, 0.1, 0.25, 0.5, 1.0)
SETTINGS = ("dataset", "structure", "student_widths", "step1_epochs", "weights")


def measure(folder: Path) -> list[dict[str, Any]]:
    """Mean AUC of the student of a finished run for every pair of weights.

    Args:
        folder: run folder.

    Returns:
        A row for each pair: settings of the run, "weights_of_score" and "auc".
    """
    run = Run.open(folder)
    if run.config.evaluate_on != "development":
        raise SystemExit(f"{folder} was evaluated on the test split: give development sweeps")
    parts = load_parts(run, run.phases[-1])
    settings = {name: to_plain(run.config)[name] for name in SETTINGS}
    rows = []
    for weights in product(ENERGY, RECONSTRUCTION):
        auc = parts.auc(ScoreRule("fused", weights), run.dataset.test_labels, run.members)
        rows.append(settings | {"weights_of_score": list(weights), "auc": mean(auc)})
    return rows


def weights_table(rows: list[dict[str, Any]]) -> str:
    """Format the mean over students of each data set, and the mean of these, by weights."""
    datasets = sorted({row["dataset"] for row in rows})
    body = []
    for weights in product(ENERGY, RECONSTRUCTION):
        means = [
            mean(
                row["auc"]
                for row in rows
                if row["dataset"] == name and row["weights_of_score"] == list(weights)
            )
            for name in datasets
        ]
        body.append([*(f"{x:g}" for x in weights), *(f"{x:.4f}" for x in (*means, mean(means)))])
    return table(["v", "w", *datasets, "mean"], body)


def main() -> None:
    """Measure, write the rows and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.fused_weights", description=__doc__)
    parser.add_argument("sweeps", nargs="+", type=Path, metavar="SWEEP_DIR")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    rows = []
    for sweep in args.sweeps:
        if not is_sweep(sweep):
            raise SystemExit(f"{sweep} is no folder of a sweep")
        for folder in sorted((sweep / "shards").iterdir()):
            if not folder.name.startswith("teacher_"):
                rows += measure(folder)
    lines = ",\n".join(map(json.dumps, rows))
    args.json.write_text(f'{{"rows": [\n{lines}\n]}}\n')
    print(weights_table(rows))


if __name__ == "__main__":
    main()
