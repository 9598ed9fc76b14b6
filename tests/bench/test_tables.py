"""Markdown tables of measured results."""

import pytest

from bench import tables
from bench.ladder.cells import Cell
from bench.ladder.contenders import BASE
from bench.ladder.measure import FAILED, OK, Row, make_row


def test_missing_measurements_are_not_run_in_the_op_tables():
    row = {"op": "generator_loss", "direction": "forward_backward", "batch": 1, "stack": 1}
    times = {"iqr_us": 0.5, "launches": 2}
    rows = [
        row | times | {"contender": "pkd graph", "median_us": 5.0},
        row | times | {"contender": "eager graph", "median_us": 40.0},
        row | {"iqr_us": 0.5, "contender": "eager", "median_us": 300.0, "stack": 30},
    ]
    result = dict.fromkeys(("gpu", "torch", "triton", "cuda", "commit", "sanitizer"), "-")
    counts = {"passed": 7, "failed": 1, "unfinished": 0, "skipped": 0, "not_run": 2}
    tests = counts | {"failures": [{"test": "a.py::test_b", "error": "ValueError: c"}]}
    text = tables.gpu_section(result | {"tests": tests, "op_tests": None, "rows": rows})
    assert "GPU tests: 7 passed, 1 failed, 2 not run; " in text
    assert "benchmarks: not run." in text
    assert "\n- `a.py::test_b`: ValueError: c\n" in text
    assert "| eager graph / pkd graph | >= 8 | 8.00 |" in text
    assert "| eager / pkd | >= 8 | not run |" in text
    assert "| 1 | 30 | not run | not run | 300.0 ± 0.5 [–] |" in text
    assert "| 1 | 1 | 5.0 ± 0.5 [2] |" in text


def measured_row(cell: Cell, name: str, images_per_second: float, **values) -> Row:
    values |= {"images_per_second": images_per_second, "parameters": 10**6}
    return make_row(cell, name, status=OK, **values)


def test_targets_of_the_ladder():
    one, many = (Cell("KDGAN-2", "8-16-64", stack) for stack in (1, 30))
    mode = "torch.compile, reduce-overhead"
    compiled = Cell("KDGAN-2", "8-16-64", 1, (mode,))
    rows = [
        measured_row(one, BASE, 200.0),
        measured_row(one, "pkd, one graph", 8000.0, launches=48.0),
        measured_row(one, "plain graph", 4000.0),
        measured_row(compiled, "pkd, one graph", 7000.0),
        measured_row(compiled, mode, 1000.0),
        measured_row(many, BASE, 250.0),
        measured_row(many, "pkd, one graph", 50_000.0),
        make_row(one, "plain graph, teacher cached", status=FAILED, error="-"),
    ]
    text = tables.ladder_targets(rows, gb_per_s=4000.0)
    best = "the best mode of torch.compile (1 of 3 measured)"
    for line in (
        "| 8-16-64, launches per step | <= 48 | 48.0 | yes |",
        "| 8-16-64, speedup over the plain loop | >= 30 | 40.0 | yes |",
        f"| 8-16-64, speedup over {best} | >= 6 | 7.0 | yes |",
        "| 8-16-64, speedup over a plain CUDA graph | >= 3 | 2.0 | no |",
        "| 8-16-64, speedup over a plain CUDA graph, teacher cached | >= 3 | not run | – |",
        "| teacher, speedup over the plain loop | >= 6 | not run | – |",
        "| 8-16-64, M = 30, speedup over one plain loop | >= 300 | 200 | no |",
        # 4e12 bytes/s over 10 words of 4 bytes for a million parameters: 1e5 images/s
        "| upper bound of the row above: 10 words per parameter, speed of a copy | – | 400 | – |",
    ):
        assert line in text


@pytest.mark.parametrize("name", tables.SECTIONS)
def test_the_tables_in_the_documents_equal_the_saved_results(name):
    file, text = tables.SECTIONS[name]
    begin, end = tables.markers(name)
    assert f"{begin}\n{text()}\n{end}" in file.read_text(encoding="utf-8")
