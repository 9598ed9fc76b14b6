"""The command for a GPU machine: time limits, and results that are saved as they are measured."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from bench import gpu
from bench.pytest_gpu import ResultLog, describe


def test_a_command_at_its_time_limit_is_killed_with_its_children(tmp_path, capfd):
    late = tmp_path / "late"
    command = ["sh", "-c", f"echo started; (sleep 1; touch {late}) & wait"]
    code, text = gpu.run(command, timeout=0.5)
    assert (code, text) == (gpu.STOPPED, "started\n")
    assert "started" in capfd.readouterr().out
    time.sleep(0.8)
    assert not late.exists()


def test_a_commands_output_and_exit_code():
    assert gpu.run(["sh", "-c", "echo a; echo b >&2; exit 3"], timeout=10) == (3, "a\nb\n")


def test_a_command_does_not_inherit_the_variables_of_pytest(monkeypatch):
    """pytest-benchmark would take the process for a worker of xdist and measure nothing."""
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    monkeypatch.setenv("OTHER", "kept")
    assert gpu.run(["sh", "-c", "echo $PYTEST_XDIST_WORKER$OTHER"], timeout=10) == (0, "kept\n")


def test_the_summary_of_compute_sanitizer():
    nine = "=" * 9
    start = f"{nine} COMPUTE-SANITIZER\n..\n"
    counts = {"passed": 2, "failed": 0, "unfinished": 1, "skipped": 0, "not_run": 3}
    tests = "2 passed, 1 unfinished, 3 not run"
    stopped = f"stopped after {gpu.SANITIZER_S} s: {tests}; no error"
    assert gpu.sanitizer_summary(gpu.STOPPED, start, counts) == (0, stopped)
    fine = f"{start}{'=' * 30} 3 passed {'=' * 30}\n{nine} ERROR SUMMARY: 0 errors\n"
    assert gpu.sanitizer_summary(0, fine, counts) == (0, f"{tests}; no error")
    invalid = "Invalid __global__ read of size 4 bytes"
    bad = f"{start}{nine} {invalid}\n{nine}     at _kernel+0x90\n{nine} ERROR SUMMARY: 1 error\n"
    assert gpu.sanitizer_summary(9, bad, counts) == (1, f"{tests}; {invalid}")
    assert gpu.sanitizer_summary(4, start, counts) == (1, f"{tests}; exit code 4")
    assert gpu.sanitizer_summary(1, start, counts | {"failed": 1})[0] == 1


def test_times_and_launches_of_a_call_are_joined():
    labels = {"op": "a", "direction": "forward", "batch": 1, "stack": 1, "contender": "pkd"}
    other = labels | {"stack": 30}
    rows = [labels | {"median_us": 2.0}, other | {"median_us": 3.0}, labels | {"launches": 1}]
    expected = [labels | {"median_us": 2.0, "launches": 1}, other | {"median_us": 3.0}]
    assert gpu.joined(rows) == expected


@pytest.mark.slow
def test_rows_are_written_as_they_are_measured(tmp_path, monkeypatch):
    few = ["-k", "(test_op and novelty and eager and not graph) or launches"]
    monkeypatch.setattr(gpu, "PYTEST", [*gpu.PYTEST, *few])
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")  # as if this test ran in a worker of xdist
    counts, rows = gpu.op_rows(tmp_path, seconds=100)
    assert describe(counts) == "11 passed"
    assert len(rows) == 10
    for row in rows:
        assert row["op"] == "novelty_score"
        assert row["contender"] == "eager"
        assert row["launches"] >= 2
        assert row["median_us"] > 0
        assert row["iqr_us"] >= 0


def test_results_are_saved_before_the_next_command_starts(tmp_path, monkeypatch):
    """The time limits of all commands fit into the total; here the last command is interrupted."""
    limits = []

    def run(command, timeout, **environment):
        limits.append(timeout)
        if "--ladder" in command:
            raise KeyboardInterrupt
        (option,) = (argument for argument in command if argument.startswith("--result-log="))
        log = ResultLog(Path(option.removeprefix("--result-log=")))
        log.write(started="tests/test_a.py::test_a")
        log.write(test="tests/test_a.py::test_a", outcome="failed", error="AssertionError: a")
        log.write(finished=True)
        return 1, ""

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(gpu.shutil, "which", lambda tool: tool)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**30, 2**40))
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--out", str(tmp_path / "new")])
    with pytest.raises(KeyboardInterrupt):
        gpu.main()
    result = json.loads((tmp_path / "new" / "gpu-nvidia-h200.json").read_text())
    failures = [{"test": "tests/test_a.py::test_a", "error": "AssertionError: a"}]
    assert result["tests"]["failures"] == result["op_tests"]["failures"] == failures
    assert (result["tests"]["processes"], result["tests"]["failed"]) == (1, 1)
    assert (result["rows"], result["sanitizer"]) == ([], "1 failed; exit code 1")
    tests, ops, sanitizer, ladder = limits
    eight_minutes, least_for_ladder = 8 * 60, 200
    assert gpu.TOTAL_S - 40 < ladder <= gpu.TOTAL_S < eight_minutes
    assert tests + ops + sanitizer < gpu.TOTAL_S - least_for_ladder
