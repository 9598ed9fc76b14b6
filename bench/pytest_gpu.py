"""A pytest plugin for tests that can break a GPU or outlast their time.

    python -m pytest -p bench.pytest_gpu --result-log=FILE -n 8 --timeout 60 tests -m gpu

pytest-xdist distributes the tests and replaces workers that crash; pytest-timeout ends tests that
hang. The plugin adds what they lack:

- A kernel's error is raised in the test that launched it, not in the next test that synchronises.
- After an illegal memory access every CUDA call of the process fails. The plugin ends such a
  process, so that xdist replaces it and the following tests do not fail for this reason.
- Tests can be put first, for a session that may not reach the last ones.
- Results are written to a log at once. JUnit reports are written at the end of the session and are
  lost if the session is killed.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

MAX_FAILURES = 40  # failures listed by name
MAX_ERROR_LENGTH = 300

OUTCOMES = ("passed", "failed", "unfinished", "skipped", "not_run")

Results = dict[str, Any]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --result-log and --tests-first."""
    parser.addoption(
        "--result-log",
        type=Path,
        metavar="FILE",
        help="append results as JSON lines; without -n, leave out tests that the log has started",
    )
    parser.addoption(
        "--tests-first",
        action="append",
        default=[],
        metavar="TEXT",
        help="run tests whose id contains this text first; may be repeated, in order",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the tests by the first text of --tests-first that their ids contain."""
    texts = config.getoption("--tests-first")
    items.sort(
        key=lambda item: next((k for k, t in enumerate(texts) if t in item.nodeid), len(texts))
    )


def pytest_configure(config: pytest.Config) -> None:
    """Log results in the main process; workers of xdist report to it."""
    path = config.getoption("--result-log", None)
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(ResultLog(path))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Wait for the GPU, so that a test raises the errors of its own kernels."""
    result = yield
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """End the process after a test that broke the GPU. Its reports have been sent."""
    result = yield
    if gpu_is_broken():
        os._exit(1)
    return result


def gpu_is_broken() -> bool:
    """Whether an earlier error, such as an illegal memory access, makes all CUDA calls fail."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


class ResultLog:
    """Append events of a session to a file of JSON lines."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, **event: Any) -> None:
        """Append one event."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Continue a session without workers that broke off: leave out the tests it started."""
        started = set(started_tests(self.path))
        items[:] = [item for item in items if item.nodeid not in started]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Log the selected tests of a session without workers."""
        self.write(collected=[item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        """Log the selected tests of a worker."""
        self.write(collected=list(ids))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Log a file that cannot be imported."""
        if report.failed:
            self.write(test=report.nodeid, outcome="failed", error=_error(report))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Log the start of a test, to recognise tests without a result."""
        self.write(started=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Log the result of a test, or the failure of its setup or teardown."""
        if (
            report.when == "???"
        ):  # a report by xdist: the worker crashed, or pytest-timeout ended it
            self.write(test=report.nodeid, outcome="unfinished", error=_error(report))
        elif report.when == "call" or not report.passed:
            self.write(test=report.nodeid, outcome=report.outcome, error=_error(report))

    def pytest_sessionfinish(self) -> None:
        """Log that the session was not cut off."""
        self.write(finished=True)


def _error(report: pytest.CollectReport | pytest.TestReport) -> str:
    """The message of an exception in one line; empty if there is none."""
    if not report.failed:
        return ""
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = crash.message.splitlines()[:1] if crash else report.longreprtext.splitlines()[-1:]
    return "".join(lines).removeprefix("E  ").strip()[:MAX_ERROR_LENGTH]


def result_log_option(path: Path) -> str:
    """Return the option for pytest.

    In one argument: as a second argument, pytest would take an existing file for a test path when
    it determines its root directory, and a restarted session would name the tests differently.
    """
    return f"--result-log={path}"


def read_events(path: Path) -> list[dict[str, Any]]:
    """Read a log; an incomplete last line, of a process that was killed, is left out."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def started_tests(path: Path) -> list[str]:
    """Tests that have started, whether or not they have a result."""
    return [event["started"] for event in read_events(path) if "started" in event]


def results(path: Path) -> Results:
    """Summarise a log; several sessions may have written it.

    Returns:
        passed, failed, skipped, unfinished (started, but without a result), not_run: numbers of
        tests; failures: test and error of the first `MAX_FAILURES` failed or unfinished tests.
    """
    collected: set[str] = set()
    outcomes: dict[str, dict[str, str]] = {}
    for event in read_events(path):
        collected.update(event.get("collected", ()))
        if "started" in event:
            unfinished = {"outcome": "unfinished", "error": "no result"}
            outcomes.setdefault(event["started"], unfinished)
        elif "test" in event:
            known = outcomes.get(event["test"], {"outcome": "unfinished"})
            # A failed teardown follows a passed test; the crash of a worker that the plugin ended
            # follows the failure that broke its GPU.
            if known["outcome"] != "failed":
                outcomes[event["test"]] = event
    counts = dict.fromkeys(OUTCOMES, 0)
    for event in outcomes.values():
        counts[event["outcome"]] += 1
    counts["not_run"] = len(collected - outcomes.keys())
    failures = [
        {"test": test, "error": event["error"]}
        for test, event in sorted(outcomes.items())
        if event["outcome"] in ("failed", "unfinished")
    ]
    return counts | {"failures": failures[:MAX_FAILURES]}


def describe(counts: Results) -> str:
    """Describe results in words, such as "8 passed, 1 failed, 2 not run"."""
    parts = [f"{counts[name]} {name.replace('_', ' ')}" for name in OUTCOMES if counts[name]]
    return ", ".join(parts) or "no tests"
