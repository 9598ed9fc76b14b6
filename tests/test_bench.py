"""The benchmarks' own parts that decide what a table says."""

import json
import sys
import time

import pytest
import torch

from bench import gpu, report
from bench.counting import measured


def test_a_command_out_of_time_is_ended_with_its_children(tmp_path, capfd):
    late = tmp_path / "late"
    code, line = gpu.run(["sh", "-c", f"echo begun; (sleep 1.5; touch {late}) & wait"], timeout=0.5)
    assert (code, line) == (gpu.STOPPED, "stopped after 0 s")
    assert "begun" in capfd.readouterr().out
    time.sleep(1.5)
    assert not late.exists()


def test_a_commands_last_line_and_exit_code():
    assert gpu.run(["sh", "-c", "echo a; echo '== b =='; exit 3"], timeout=10) == (3, "b")


def test_rows_are_written_as_they_are_measured(tmp_path):
    file = tmp_path / "rows"
    command = [sys.executable, "-m", "pytest", "-q", "bench/test_ops.py"]
    few = ["-k", "test_op and novelty and eager and not graph"]
    assert gpu.run([*command, *few], timeout=100, PKD_BENCH_ROWS=str(file))[0] == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 10
    for row in rows:
        assert row["op"] == "novelty_score" and row["contender"] == "eager"
        assert row["launches"] >= 2 and row["median_us"] > 0 <= row["iqr_us"]


def test_results_are_kept_whatever_comes_after_them(tmp_path, monkeypatch):
    """And stages together end within their time; here the last one is broken off."""
    limits = []

    def run(command, timeout, **environment):
        limits.append(timeout)
        if "--ladder" in command:
            raise KeyboardInterrupt
        return 1, "1 failed"

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(gpu.shutil, "which", lambda tool: tool)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--out", str(tmp_path / "new")])
    with pytest.raises(KeyboardInterrupt):
        gpu.main()
    result = json.loads((tmp_path / "new" / "gpu-nvidia-h200.json").read_text())
    assert (result["tests"], result["rows"], result["sanitizer"]) == ("1 failed", [], "1 failed")
    tests, ops, sanitizer, ladder = limits
    assert ladder > 400 and tests + ops + sanitizer < gpu.TOTAL_S - 120 < 480 - 120


def test_what_was_not_measured_is_not_run_in_the_tables():
    row = {"op": "generator_loss", "direction": "forward_backward", "batch": 1, "stack": 1}
    times = {"iqr_us": 0.5, "launches": 2}
    rows = [
        row | times | {"contender": "pkd graph", "median_us": 5.0},
        row | times | {"contender": "eager graph", "median_us": 40.0},
        row | times | {"contender": "eager", "median_us": 300.0, "stack": 30},
    ]
    around = dict.fromkeys(("gpu", "torch", "triton", "cuda", "commit", "tests", "sanitizer"), "-")
    text = report.gpu_section(around | {"rows": rows})
    assert "| eager graph / pkd graph | >= 8 | 8.00 |" in text
    assert "| eager / pkd | >= 8 | not run |" in text
    assert "| 1 | 30 | not run | not run | 300.0 ± 0.5 [2] |" in text


def test_reading_a_number_is_no_launch_and_an_output_is_written_once():
    a = torch.ones(4)
    with measured() as traffic:
        torch.mean(a, 0, out=torch.empty(())).item()
    assert traffic.launches == ["aten.mean"]
    assert traffic.aten_bytes == 4 * 5
