"""The plugin for GPU tests, with pytest-xdist and pytest-timeout: no result is lost."""

import time

import pytest
import torch

from bench import pytest_gpu
from bench.gpu.pytests import pytest_facts
from bench.pytest_gpu import (
    OUTCOMES,
    ResultLog,
    Results,
    describe,
    read_events,
    result_log_option,
    results,
)

pytest_plugins = ["pytester"]

OUTCOME_TESTS = """
import pytest

@pytest.mark.parametrize("number", range(12))
def test_passes(number):
    pass

def test_fails():
    raise ValueError("first line\\nsecond line")

def test_teardown_fails(request):
    request.addfinalizer(lambda: 1 / 0)

def test_skips():
    pytest.skip("not here")

@pytest.mark.xfail
def test_xfails():
    assert 0
"""

CRASH_TESTS = """
import os, time

def test_crashes():
    os.kill(os.getpid(), 9)

def test_after_the_crash():
    pass

def test_hangs():
    time.sleep(600)
"""

COUNTS = {"passed": 13, "failed": 3, "unfinished": 2, "skipped": 2, "not_run": 0}

ERRORS = {
    "test_import.py": "ModuleNotFoundError: No module named 'none_such'",
    "test_outcomes.py::test_fails": "ValueError: first line",
    "test_outcomes.py::test_teardown_fails": "ZeroDivisionError: division by zero",
}


@pytest.fixture
def folder(tmp_path):
    """Tests with all outcomes except crashes, and a file that cannot be imported."""
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_outcomes.py").write_text(OUTCOME_TESTS)
    (tests / "test_import.py").write_text("import none_such\n")
    return tests


@pytest.fixture
def folder_with_crashes(folder):
    (folder / "test_processes.py").write_text(CRASH_TESTS)
    return folder


def test_the_log_of_a_session(folder, tmp_path, pytester):
    options = ["-p", "bench.pytest_gpu", "--continue-on-collection-errors", "-n", "0"]
    pytester.inline_run(*options, result_log_option(tmp_path / "log"), str(folder))
    counts = results(tmp_path / "log")
    assert {key: counts[key] for key in OUTCOMES} == COUNTS | {"passed": 12, "unfinished": 0}
    assert errors_by_test(counts) == ERRORS
    assert read_events(tmp_path / "log")[-1] == {"finished": True}


def test_a_process_ends_after_the_test_that_broke_its_gpu(tmp_path, pytester, monkeypatch):
    def fail():
        raise RuntimeError("illegal memory access")

    exits = []
    monkeypatch.setattr(pytest_gpu.os, "_exit", exits.append)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    test = pytester.makepyfile("def test_illegal(): pass")
    options = ["-p", "bench.pytest_gpu", "-n", "0", result_log_option(tmp_path / "log")]
    pytester.inline_run(*options, str(test))
    assert exits == [1]
    (failure,) = results(tmp_path / "log")["failures"]
    assert failure["error"] == "RuntimeError: illegal memory access"


def last_counts(arguments: list[str], seconds: float, workers: int = 1) -> Results:
    *_, counts = pytest_facts(arguments, time.time() + seconds, workers)
    return counts


def test_some_tests_run_first(tmp_path, pytester):
    names = ("graph", "conv", "other")
    pytester.makepyfile("".join(f"def test_{name}(): pass\n" for name in ("other", *names[::-1])))
    options = ["-p", "bench.pytest_gpu", "-n", "0", "--tests-first=graph", "--tests-first=conv"]
    pytester.inline_run(*options, result_log_option(tmp_path / "log"))
    started = [event["started"] for event in read_events(tmp_path / "log") if "started" in event]
    assert [test.rpartition("_")[2] for test in started] == list(names)


def errors_by_test(counts: Results) -> dict[str, str]:
    return {one["test"].rpartition("/")[2]: one["error"] for one in counts["failures"]}


@pytest.mark.slow
def test_workers_that_crash_or_hang_are_replaced(folder_with_crashes):
    arguments = [str(folder_with_crashes), "-n", "2"]
    arguments += ["--timeout", "3", "--timeout-method", "thread"]
    counts = last_counts(arguments, seconds=60, workers=2)
    assert {key: counts[key] for key in OUTCOMES} == COUNTS
    errors = errors_by_test(counts)
    for name in ("test_crashes", "test_hangs"):
        assert "crashed while running" in errors.pop(f"test_processes.py::{name}")
    assert errors == ERRORS
    assert counts["processes"] == 2
    assert counts["seconds"] < 60
    assert describe(counts) == "13 passed, 3 failed, 2 unfinished, 2 skipped"


@pytest.mark.slow
def test_results_survive_a_crash_and_the_time_limit_without_workers(folder_with_crashes):
    """A JUnit report would be lost: pytest writes it at the end of the session."""
    counts = last_counts([str(folder_with_crashes), "-n", "0"], seconds=15)
    assert {key: counts[key] for key in OUTCOMES} == COUNTS
    unfinished = dict.fromkeys(
        ["test_processes.py::test_crashes", "test_processes.py::test_hangs"], "no result"
    )
    assert errors_by_test(counts) == ERRORS | unfinished
    assert counts["processes"] == 1
    assert counts["seconds"] >= 15


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_process_with_a_broken_gpu_is_replaced(workers, tmp_path):
    """pytest-xdist alone would fail all its later tests. The error belongs to one test."""
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
    counts = last_counts([str(tmp_path), "-n", str(workers)], seconds=60)
    assert describe(counts) == "2 passed, 2 failed"
    assert counts["failures"][1]["error"] == "RuntimeError: illegal memory access"


@pytest.mark.slow
def test_a_command_that_can_run_no_test_is_not_repeated(tmp_path):
    counts = last_counts([str(tmp_path / "none_such"), "-n", "0"], seconds=60)
    assert describe(counts) == "no tests"
    assert counts["seconds"] < 50


def test_the_first_failure_of_a_test_counts(tmp_path):
    """Also if a crash follows it, or if the body passed before."""
    log = ResultLog(tmp_path / "log")
    log.write(collected=["body", "teardown", "crash", "hang", "late"])
    for test, outcome, error in (
        ("body", "failed", "ValueError: a"),
        ("body", "unfinished", "worker 'gw0' crashed while running 'body'"),
        ("teardown", "passed", ""),
        ("teardown", "failed", "ValueError: b"),
        ("crash", "unfinished", "worker 'gw1' crashed while running 'crash'"),
    ):
        log.write(started=test)
        log.write(test=test, outcome=outcome, error=error)
    log.write(started="hang")
    assert results(log.path) == {
        "passed": 0,
        "failed": 2,
        "unfinished": 2,
        "skipped": 0,
        "not_run": 1,
        "failures": [
            {"test": "body", "error": "ValueError: a"},
            {"test": "crash", "error": "worker 'gw1' crashed while running 'crash'"},
            {"test": "hang", "error": "no result"},
            {"test": "teardown", "error": "ValueError: b"},
        ],
    }
    assert describe(results(log.path)) == "2 failed, 2 unfinished, 1 not run"


def test_an_incomplete_line_of_a_killed_process_is_ignored(tmp_path):
    log = tmp_path / "log"
    assert read_events(log) == []
    log.write_text('{"started": "a"}\n{"test": "a", "outc')
    assert read_events(log) == [{"started": "a"}]
