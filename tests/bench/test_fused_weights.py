"""The comparison of weights of the fused score."""

from statistics import mean

import pytest
from run_helpers import TINY

from bench import fused_weights
from pkd.cli.main import main
from pkd.runs.run import Run
from pkd.runs.run_parts import load_parts

ALONE = ("--structure", "student-only", "--held-out", "0.3")


def test_weights_of_the_run_give_its_auc(tmp_path):
    folder = tmp_path / "run"
    argv = ["train", *TINY, *ALONE, "--evaluate-on", "development", "--out", str(folder)]
    assert main([*argv, "--fused-weights", "0.5,0.25"]) == 0
    rows = fused_weights.measure(folder)
    run = Run.open(folder)
    auc = load_parts(run, run.phases[-1]).auc(run.score_rule, run.dataset.test_labels, run.members)
    (row,) = (row for row in rows if row["weights_of_score"] == [0.5, 0.25])
    assert row["auc"] == pytest.approx(mean(auc))
    assert len({row["auc"] for row in rows}) > 1
    assert f"| 0.5 | 0.25 | {row['auc']:.4f} | {row['auc']:.4f} |" in fused_weights.weights_table(
        rows
    )


def test_runs_evaluated_on_the_test_split_are_refused(tmp_path):
    assert main(["train", *TINY, *ALONE, "--out", str(tmp_path / "run")]) == 0
    with pytest.raises(SystemExit, match="evaluated on the test split"):
        fused_weights.measure(tmp_path / "run")
