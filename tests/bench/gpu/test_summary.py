"""Results in the file of facts, and the comparison of two files."""

import json

import pytest

from bench import tables
from bench.compare import comparison
from bench.gpu.facts import Facts
from bench.gpu.summary import failures, load
from bench.ladder.cells import Cell
from bench.ladder.measure import FAILED, OK, make_row

CELL = Cell("KDGAN-2", "8-16-64", 1)
OP = {"op": "novelty_score", "direction": "forward", "batch": 1, "stack": 1, "contender": "pkd"}


def step(name: str, ms: float) -> dict:
    values = {"ms_per_step": [ms], "ms_per_step_median": ms, "images_per_second": 1e3 / ms}
    values |= {"ratio": 1.0, "launches": 43.0, "gpu_ms": None, "first_s": 1.0, "memory_mb": 1.0}
    return make_row(CELL, name, status=OK, **values)


@pytest.fixture
def facts(tmp_path):
    facts = Facts(tmp_path / "gpu-a.jsonl", call=1)
    facts.append("call", commit="abc", gpu="NVIDIA H200", rehearsal=False)
    facts.append("machine", packages={"torch": "2.11.0", "triton": "3.6.0"})
    facts.append("machine", copy_gb_per_s=4000.0)
    facts.append("headline", **step("plain loop", 2.0))
    facts.append("headline", **step("pkd, one graph", 0.1))
    facts.append("ladder", **step("pkd, one graph", 0.2))
    facts.append("replay", cell=CELL.title, replay_us=200.0)
    node = {"name": "conv_forward_kernel", "us": 3.0, "gap_us": 1.0, "grid": [8, 1, 1]}
    facts.append("replay", cell=CELL.title, nodes=[node] * 43)
    facts.append("ops", row=OP | {"median_us": 5.0, "iqr_us": 0.5})
    facts.append("ops", row=OP | {"launches": 1})
    return facts


def test_the_last_row_of_a_contender_counts(facts):
    rows = load(facts.path)["ladder"]["rows"]
    assert [(row["contender"], row["ms_per_step_median"]) for row in rows] == [
        ("plain loop", 2.0),
        ("pkd, one graph", 0.2),
    ]


def test_all_results_appear_in_the_tables(facts, monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    (tmp_path / "traffic.json").write_text('{"rows": []}')
    text = tables.steps_text()
    assert "### NVIDIA H200\n\ntorch 2.11.0, triton 3.6.0, CUDA None, commit abc." in text
    assert "| pkd, one graph | 0.200 |" in text
    assert "| KDGAN-2, 8-16-64, M = 1 | 200.0 | – | 129.0 | 43.0 | – |" in text
    text = tables.ops_text()
    assert "| 1 | 1 | 5.0 ± 0.5 [1] |" in text
    assert "GPU tests: not run; compute-sanitizer: not run; benchmarks: not run." in text


def test_failed_tests_and_rungs_are_failures_and_failed_peers_are_not(facts):
    assert failures(facts.read()) == []
    facts.append("headline", **make_row(CELL, "plain graph", status=FAILED, error="a"))
    facts.append("headline", **make_row(CELL, "pkd, eager", status=FAILED, error="b"))
    one = {"test": "test_a", "error": "c"}
    counts = {"passed": 1, "failed": 1, "unfinished": 0, "skipped": 0, "not_run": 0}
    facts.append("tests", **counts, failures=[one])
    facts.append("sanitizer", sanitizer="1 failed; no error", sanitizer_failed=True)
    assert failures(facts.read()) == [
        "test_a: c",
        "compute-sanitizer: 1 failed; no error",
        "KDGAN-2, 8-16-64, M = 1, pkd, eager: b",
    ]


def test_two_files_side_by_side(facts, tmp_path, monkeypatch, capsys):
    other = tmp_path / "ladder-b.json"
    rows = [step("pkd, one graph", 0.1), step("vmap(grad)", 3.0)]
    other.write_text(json.dumps({"environment": {}, "rows": rows}))
    header, body = comparison(facts.path, other)
    assert header == ["time", "gpu-a.jsonl", "ladder-b.json", "ratio"]
    assert ["KDGAN-2, 8-16-64, M = 1, pkd, one graph, ms", "0.200", "0.100", "0.50"] in body
    assert ["KDGAN-2, 8-16-64, M = 1, vmap(grad), ms", "–", "3.000", "–"] in body
    assert ["novelty_score, forward, N = 1, M = 1, pkd, µs", "5.000", "–", "–"] in body
    arguments = ["bench.tables", "--compare", str(facts.path), str(facts.path)]
    monkeypatch.setattr("sys.argv", arguments)
    tables.main()
    assert (
        "| KDGAN-2, 8-16-64, M = 1, nodes, µs | 129.000 | 129.000 | 1.00 |"
        in capsys.readouterr().out
    )
