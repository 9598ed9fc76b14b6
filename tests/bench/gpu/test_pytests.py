"""Stages that run pytest."""

import time

import pytest

from bench.gpu import pytests
from bench.gpu.runner import STOPPED
from bench.pytest_gpu import describe


def test_the_summary_of_compute_sanitizer():
    nine = "=" * 9
    start = f"{nine} COMPUTE-SANITIZER\n..\n"
    counts = {"passed": 2, "failed": 0, "unfinished": 1, "skipped": 0, "not_run": 3}
    tests = "2 passed, 1 unfinished, 3 not run"
    stopped = f"stopped at the time limit: {tests}; no error"
    assert pytests.sanitizer_summary(STOPPED, start, counts) == (False, stopped)
    fine = f"{start}{'=' * 30} 3 passed {'=' * 30}\n{nine} ERROR SUMMARY: 0 errors\n"
    assert pytests.sanitizer_summary(0, fine, counts) == (False, f"{tests}; no error")
    invalid = "Invalid __global__ read of size 4 bytes"
    bad = f"{start}{nine} {invalid}\n{nine}     at _kernel+0x90\n{nine} ERROR SUMMARY: 1 error\n"
    assert pytests.sanitizer_summary(9, bad, counts) == (True, f"{tests}; {invalid}")
    assert pytests.sanitizer_summary(4, start, counts) == (True, f"{tests}; exit code 4")
    assert pytests.sanitizer_summary(1, start, counts | {"failed": 1})[0]


def test_without_compute_sanitizer_the_stage_is_done(monkeypatch):
    monkeypatch.setattr(pytests.shutil, "which", lambda tool: None)
    (task,) = pytests.sanitizer(rehearse=False).run.values()
    assert list(task(0.0)) == [{"sanitizer": "not installed"}]


def test_tests_use_all_cores_for_which_gpu_memory_suffices(monkeypatch):
    monkeypatch.setattr(pytests.os, "sched_getaffinity", lambda pid: range(20), raising=False)
    assert pytests.worker_count("140000 MiB") == 16
    assert pytests.worker_count("22000 MiB") == 5
    assert pytests.worker_count("100 MiB") == 1
    assert pytests.worker_count("") == 16


def test_only_files_with_gpu_tests_are_collected():
    paths = pytests.gpu_test_paths()
    assert {"tests/kernels", "tests/pkd/test_detector.py"} < set(paths)
    assert not any(path.startswith(("tests/kernels/", "tests/bench/gpu")) for path in paths)
    assert not any("export" in path for path in paths)


@pytest.mark.parametrize(("passed", "not_run"), [(0, 0), (3, 1)])
def test_tests_that_were_not_run_are_an_error(passed, not_run):
    facts = pytests._complete([{"passed": 0, "not_run": 9}, {"passed": passed, "not_run": not_run}])
    assert next(facts)["not_run"] == 9
    assert next(facts)["passed"] == passed
    with pytest.raises(RuntimeError, match=f"{passed} tests passed, {not_run} were not run"):
        next(facts)


@pytest.mark.slow
def test_rows_are_written_as_they_are_measured(monkeypatch):
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")  # as if this test ran in a worker of xdist
    facts = list(pytests._op_benchmarks(pytests.REHEARSED_OPS, time.time() + 100))
    counts = [fact for fact in facts if "passed" in fact]
    assert describe(counts[-1]) == "11 passed"
    rows = [fact["row"] for fact in facts if "row" in fact]
    assert len(rows) == 20
    assert all(row["op"] == "novelty_score" and row["contender"] == "eager" for row in rows)
    for row in rows[:10]:
        assert row["median_us"] > 0
        assert row["iqr_us"] >= 0
    assert all(row["launches"] >= 2 for row in rows[10:])
