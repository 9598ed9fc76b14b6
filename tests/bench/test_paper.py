"""Markdown tables of sweeps and of runs beside the paper's results."""

import json
import sys

import pytest
from sweep_file_helpers import cell_rows, write_sweep

from bench import paper
from pkd.report.formats import Cell, Table


def test_tables_as_markdown():
    row, mean = ("a", [Cell("1", "± 2", "paper 3")]), ("mean", [Cell("")])
    assert paper.markdown(Table([("g", 1)], ["c"], [row], [mean]), "name") == "\n".join(
        ["| name | g: c |", "| --- | --- |", "| a | 1 ± 2 (paper 3) |", "| mean |  |"]
    )
    assert paper.markdown(Table([], ["c"], [row]), "name").startswith("| name | c |")


def run_command(monkeypatch, capsys, *folders):
    """Output of `python -m bench.paper`."""
    monkeypatch.setattr(sys, "argv", ["bench.paper", *map(str, folders)])
    paper.main()
    return capsys.readouterr().out


def test_tables_of_merged_sweeps(tmp_path, monkeypatch, capsys):
    first = write_sweep(tmp_path / "a", cell_rows("student-only"))
    second = write_sweep(tmp_path / "b", cell_rows("2"))
    output = run_command(monkeypatch, capsys, first, second)
    assert "| student alone | 0.8" in output
    assert "(paper 0.9120) |  | " in output
    assert "\n\nFashion-MNIST, 1-2-4, by class:\n\n| class | teacher | student alone |" in output
    assert "| 102.92× 5.12M ÷ 49.7k (paper 105.45×) |" in output
    output = run_command(monkeypatch, capsys, second)
    assert "| student alone | student-only not run |" in output


def test_damaged_sweeps_are_refused(tmp_path, monkeypatch, capsys):
    (write_sweep(tmp_path) / "sweep.json").write_text("{}")
    with pytest.raises(SystemExit, match="is damaged"):
        run_command(monkeypatch, capsys, tmp_path)


@pytest.mark.parametrize(
    ("structure", "phase", "network"),
    [("student-only", "step1", "student"), ("teacher-only", "teacher", "teacher")],
)
def test_runs_with_one_network(tmp_path, monkeypatch, capsys, structure, phase, network):
    results = {
        "dataset": "digits",
        "config": {"structure": structure, "student_widths": "1-2-4", "teacher_widths": "2-4-8"},
        "members": [
            {"normal_class": 3, "class_name": "3", "seed": 0, "auc": {phase: 0.75}},
        ],
        "mean_auc": {phase: 0.75},
        "cost": {network: {"parameters": 10, "flops": 20}},
        "seconds": {phase: 120.0},
        "hardware": "a CPU",
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    output = run_command(monkeypatch, capsys, tmp_path)
    assert "| digits | 1-2-4 | – |" in output
    assert "| 2 | a CPU |" in output
    assert "0.7500" in output
