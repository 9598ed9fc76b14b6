"""Every figure in README and docs comes from a committed result file."""

import json
import re
from pathlib import Path

from bench import deploy
from bench.paper import by_class, read_results, summary
from bench.step import table
from pkd.models.paper import table4

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = ROOT / "docs"
DOCUMENTS = [ROOT / "README.md", *DOCS.rglob("*.md")]
RESULTS = ROOT / "bench" / "results"
PATH = re.compile(r"`((?:bench|docs|examples|kernels|pkd|tests)/[\w./-]+)`")


def test_tables_of_single_runs_equal_the_output_of_bench_paper():
    runs = [read_results(folder) for folder in sorted((RESULTS / "runs").iterdir())]
    details = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
    assert summary(runs) in details
    assert all(by_class(run) in details for run in runs)


def test_step_table_equals_the_output_of_bench_step():
    rows = json.loads((RESULTS / "step-cpu.json").read_text(encoding="utf-8"))["rows"]
    assert table(rows) in README


def test_deployment_table_equals_the_output_of_bench_deploy():
    rows = json.loads((RESULTS / "deploy-cpu.json").read_text(encoding="utf-8"))["rows"]
    assert deploy.table(rows) in (DOCS / "guide" / "deploy.md").read_text(encoding="utf-8")


def test_compression_table_equals_the_output_of_pkd_cost():
    text = (DOCS / "science" / "structures.md").read_text(encoding="utf-8")
    rows = table4().values()
    expected = [
        ("student's parameters", [f"{row.student.parameters:,}" for row in rows]),
        ("student's FLOPs", [f"{row.student.flops:,}" for row in rows]),
        ("teacher's parameters", [f"{row.teacher.parameters:,}" for row in rows]),
        ("teacher's FLOPs", [f"{row.teacher.flops:,}" for row in rows]),
    ]
    for k, quantity in enumerate(("parameters", "FLOPs")):
        ratios = {
            "printed in the paper": [row.printed[k] for row in rows],
            "counted as the paper seems to": [row.paper_style[k] for row in rows],
            "teacher over student": [
                getattr(row.teacher, quantity.lower()) / getattr(row.student, quantity.lower())
                for row in rows
            ],
        }
        for label, values in ratios.items():
            expected.append((f"ratio of {quantity}, {label}", [f"{v:.2f}" for v in values]))
    for label, cells in expected:
        assert f"| {label} | {' | '.join(cells)} |" in text


def test_readme_has_at_most_150_lines():
    assert len(README.splitlines()) <= 150


def test_links_between_documents_lead_to_files():
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_paths_in_documents_exist():
    for document in DOCUMENTS:
        for path in PATH.findall(document.read_text(encoding="utf-8")):
            assert (ROOT / path).exists(), f"{document.name}: {path}"
