"""The benchmarks' own parts that decide what a table says."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from bench import gpu, shared_tests
from bench import tables as report
from bench.profiling import measured


def test_a_command_out_of_time_is_ended_with_its_children(tmp_path, capfd):
    late = tmp_path / "late"
    code, text = gpu.run(["sh", "-c", f"echo begun; (sleep 1.5; touch {late}) & wait"], timeout=0.5)
    assert (code, text) == (gpu.STOPPED, "begun\n")
    assert "begun" in capfd.readouterr().out
    time.sleep(1.5)
    assert not late.exists()


def test_a_commands_output_and_exit_code():
    assert gpu.run(["sh", "-c", "echo a; echo b >&2; exit 3"], timeout=10) == (3, "a\nb\n")


OUTCOMES = """
import os, sys, time
import pytest

@pytest.fixture(scope="module")
def dear():
    yield time.sleep(0.2)

@pytest.mark.parametrize("number", range(12))
def test_right(dear, number):
    time.sleep(0.05)

def test_wrong():
    raise ValueError("not this\\nbut that")

def test_untidy(request):
    request.addfinalizer(lambda: 1 / 0)

def test_not_here():
    pytest.skip("not here")

@pytest.mark.xfail
def test_not_yet():
    assert 0

def test_crash():
    os.kill(os.getpid(), 9)

def test_hang():
    time.sleep(600)
"""


def test_processes_share_tests_and_every_result_survives(tmp_path):
    """What crashes, hangs or cannot be imported costs no more than itself."""
    (tmp_path / "test_outcomes.py").write_text(OUTCOMES)
    (tmp_path / "test_another.py").write_text("import none_such\n")
    (tmp_path / "test_after.py").write_text("def test_after(): pass\n")
    found = gpu.shared(tmp_path / "share", [str(tmp_path)], processes=2, seconds=20)
    assert {
        key: found[key] for key in ("passed", "failed", "skipped", "unfinished", "not_run")
    } == {
        "passed": 13,
        "failed": 3,
        "skipped": 2,
        "unfinished": 2,
        "not_run": 0,
    }
    errors = {one["test"].rpartition("/")[2]: one["error"] for one in found["failures"]}
    assert errors == {
        "test_another.py": "ModuleNotFoundError: No module named 'none_such'",
        "test_outcomes.py::test_crash": "no result",
        "test_outcomes.py::test_hang": "no result",
        "test_outcomes.py::test_untidy": "ZeroDivisionError: division by zero",
        "test_outcomes.py::test_wrong": "ValueError: not this",
    }
    assert found["seconds"] >= 20 and found["processes"] == 2
    words = "13 passed, 3 failed, 2 unfinished, 2 skipped"
    assert shared_tests.in_words(found) == words


def test_a_process_whose_gpu_is_broken_is_replaced(tmp_path):
    """Its error is that of the test whose kernels made it."""
    (tmp_path / "conftest.py").write_text(
        "import torch, pytest\n"
        "def broken(): raise RuntimeError('illegal memory access')\n"
        "torch.cuda.is_initialized = lambda: True\n"
        "torch.cuda.synchronize = lambda: None\n"
    )
    (tmp_path / "test_gpu.py").write_text(
        "import torch, conftest\n"
        "def test_illegal():\n"
        "    torch.cuda.synchronize = conftest.broken\n"
        "def test_next(): torch.cuda.synchronize()\n"
        "def test_fails(): assert 0\n"
        "def test_last(): torch.cuda.synchronize()\n"
    )
    found = gpu.shared(tmp_path / "share", [str(tmp_path)], processes=1, seconds=60)
    assert shared_tests.in_words(found) == "2 passed, 2 failed"
    assert found["failures"][1]["error"] == "RuntimeError: illegal memory access"


def test_a_command_that_can_run_no_test_is_not_repeated(tmp_path):
    found = gpu.shared(tmp_path / "share", [str(tmp_path / "none_such")], 1, seconds=60)
    assert shared_tests.in_words(found) == "no tests" and found["seconds"] < 50


def test_what_the_sanitizer_said():
    nine = "=" * 9
    begun = f"{nine} COMPUTE-SANITIZER\n..\n"
    counts = {"passed": 2, "failed": 0, "unfinished": 1, "skipped": 0, "not_run": 3}
    told = "2 passed, 1 unfinished, 3 not run"
    stopped = f"stopped after {gpu.SANITIZER_S} s: {told}; no error"
    assert gpu.sanitizer_says(gpu.STOPPED, begun, counts) == (0, stopped)
    fine = f"{begun}{'=' * 30} 3 passed {'=' * 30}\n{nine} ERROR SUMMARY: 0 errors\n"
    assert gpu.sanitizer_says(0, fine, counts) == (0, f"{told}; no error")
    invalid = "Invalid __global__ read of size 4 bytes"
    bad = f"{begun}{nine} {invalid}\n{nine}     at _kernel+0x90\n{nine} ERROR SUMMARY: 1 error\n"
    assert gpu.sanitizer_says(9, bad, counts) == (1, f"{told}; {invalid}")
    assert gpu.sanitizer_says(4, begun, counts) == (1, f"{told}; exit code 4")
    assert gpu.sanitizer_says(1, begun, counts | {"failed": 1})[0] == 1


def test_rows_are_written_as_they_are_measured(tmp_path, monkeypatch):
    few = ["-k", "(test_op and novelty and eager and not graph) or launches"]
    monkeypatch.setattr(gpu, "PYTEST", [*gpu.PYTEST, *few])
    found, rows = gpu.op_rows(tmp_path, seconds=100)
    assert shared_tests.in_words(found) == "11 passed"
    assert len(rows) == 10
    for row in rows:
        assert row["op"] == "novelty_score" and row["contender"] == "eager"
        assert row["launches"] >= 2 and row["median_us"] > 0 <= row["iqr_us"]


def test_results_are_kept_whatever_comes_after_them(tmp_path, monkeypatch, capsys):
    """And stages together end within their time; here the last one is broken off."""
    limits = []

    def run(command, timeout, **environment):
        limits.append(timeout)
        if "--ladder" in command:
            raise KeyboardInterrupt
        share = shared_tests.Share(Path(command[command.index("--share") + 1]))
        share.begin("tests/test_a.py::test_a")
        share.end("tests/test_a.py::test_a", "failed", "AssertionError: a")
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
    eight_minutes, margin = 8 * 60, 200  # for the ladder, at least
    assert gpu.TOTAL_S - 40 < ladder <= gpu.TOTAL_S < eight_minutes
    assert tests + ops + sanitizer < gpu.TOTAL_S - margin


def test_what_was_not_measured_is_not_run_in_the_tables():
    row = {"op": "generator_loss", "direction": "forward_backward", "batch": 1, "stack": 1}
    times = {"iqr_us": 0.5, "launches": 2}
    rows = [
        row | times | {"contender": "pkd graph", "median_us": 5.0},
        row | times | {"contender": "eager graph", "median_us": 40.0},
        row | {"iqr_us": 0.5, "contender": "eager", "median_us": 300.0, "stack": 30},
    ]
    around = dict.fromkeys(("gpu", "torch", "triton", "cuda", "commit", "sanitizer"), "-")
    counts = {"passed": 7, "failed": 1, "unfinished": 0, "skipped": 0, "not_run": 2}
    tests = counts | {"failures": [{"test": "a.py::test_b", "error": "ValueError: c"}]}
    around |= {"tests": tests, "op_tests": None}
    text = report.gpu_section(around | {"rows": rows})
    assert "GPU tests: 7 passed, 1 failed, 2 not run; " in text and "benchmarks: not run." in text
    assert "\n- `a.py::test_b`: ValueError: c\n" in text
    assert "| eager graph / pkd graph | >= 8 | 8.00 |" in text
    assert "| eager / pkd | >= 8 | not run |" in text
    assert "| 1 | 30 | not run | not run | 300.0 ± 0.5 [–] |" in text
    assert "| 1 | 1 | 5.0 ± 0.5 [2] |" in text


def test_reading_a_number_is_no_launch_and_an_output_is_written_once():
    a = torch.ones(4)
    with measured() as traffic:
        torch.mean(a, 0, out=torch.empty(())).item()
    assert traffic.launches == ["aten.mean"]
    assert traffic.aten_bytes == 4 * 5
