"""No figure stands in README that a committed result file does not hold."""

import json
from pathlib import Path

from bench import deploy
from bench.paper import by_class, read_results, summary
from bench.step import table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "bench" / "results"


def test_results_tables_are_what_the_run_folders_give():
    runs = [read_results(folder) for folder in sorted((RESULTS / "runs").iterdir())]
    assert summary(runs) in README
    details = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
    assert all(by_class(run) in details for run in runs)


def test_step_table_is_what_the_benchmark_wrote():
    rows = json.loads((RESULTS / "step-cpu.json").read_text(encoding="utf-8"))["rows"]
    assert table(rows) in README


def test_deployment_table_is_what_the_benchmark_wrote():
    rows = json.loads((RESULTS / "deploy-cpu.json").read_text(encoding="utf-8"))["rows"]
    assert deploy.table(rows) in README
