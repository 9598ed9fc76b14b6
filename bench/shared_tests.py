"""A pytest plugin: several processes share the tests, and every result is kept as it comes.

    for i in 1 2 3 4; do python -m pytest -p bench.shared_tests --share DIR tests & done; wait

The first process to make a test's file in DIR, empty at first, runs it; the others skip it: so none
is idle while another has much to do. The file is given the result, which survives whatever comes
later. A test that breaks its process down, or hangs, has begun and has no result.
"""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

NAMED = 40  # failures, at most, that are told by name
LENGTH = 300  # of an error, at most
COLLECTED = "collected"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--share", type=Path, metavar="DIR", help="run the tests that no other process has begun"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.option.share:
        config.pluginmanager.register(Share(config.option.share))


class Share:
    """What one process does; `folder` is that of all."""

    def __init__(self, folder: Path):
        self.folder, self.broken_files = folder, 0
        self.begun: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def file(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.jsonl"

    def begin(self, name: str) -> bool:
        """Whether this process is the first."""
        try:
            with self.file(name).open("x", encoding="utf-8") as file:
                file.write(json.dumps({"test": name}) + "\n")
        except FileExistsError:
            return False
        self.begun.add(name)
        return True

    def end(self, name: str, outcome: str, error: str) -> None:
        """Of several outcomes of a test, as of its body and its teardown, the last one counts."""
        with self.file(name).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"outcome": outcome, "error": error[:LENGTH]}) + "\n")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be imported is a failure."""
        if report.failed:
            self.broken_files += 1
            if self.begin(report.nodeid):
                *_, last = report.longreprtext.splitlines() or [""]
                self.end(report.nodeid, "failed", last.removeprefix("E").strip())

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        (self.folder / COLLECTED).write_text(str(len(session.items) + self.broken_files))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if not self.begin(item.nodeid):
            pytest.skip("another process has begun it")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item):
        """What its kernels do to the GPU is a test's own failure, not the next one's."""
        result = yield
        if item.nodeid in self.begun and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo):
        report = yield
        if item.nodeid in self.begun and (report.when == "call" or not report.passed):
            lines = call.excinfo.exconly().splitlines() if call.excinfo else []
            self.end(item.nodeid, report.outcome, lines[0] if lines else "")
            if report.failed and gpu_is_broken():
                item.session.shouldstop = "the GPU is of no more use to this process"
        return report


def gpu_is_broken() -> bool:
    """Whether an error such as an illegal access has ended all that this process can do there."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def results(folder: Path) -> dict[str, Any]:
    """What became of the tests, when the processes have ended.

    Returns:
        passed, failed, skipped, unfinished (begun, without a result), not_run: numbers of tests;
        failures: test and error of the first `NAMED` that failed or are unfinished.
    """
    found = []
    for file in folder.glob("*.jsonl"):
        test, *outcomes = (json.loads(line) for line in file.read_text("utf-8").splitlines())
        outcome = outcomes[-1] if outcomes else {"outcome": "unfinished", "error": "no result"}
        found.append(test | outcome)
    names = ("passed", "failed", "skipped", "unfinished")
    counts = dict.fromkeys(names, 0) | Counter(one["outcome"] for one in found)
    file = folder / COLLECTED
    collected = int(file.read_text()) if file.exists() else 0
    bad = [one for one in found if one["outcome"] in ("failed", "unfinished")]
    failures = [{"test": one["test"], "error": one["error"]} for one in bad]
    failures.sort(key=lambda one: one["test"])
    return counts | {"not_run": max(0, collected - len(found)), "failures": failures[:NAMED]}


def in_words(found: dict[str, Any]) -> str:
    """As "8 passed, 1 failed, 2 not run"."""
    names = ("passed", "failed", "unfinished", "skipped", "not_run")
    told = [f"{found[name]} {name.replace('_', ' ')}" for name in names if found[name]]
    return ", ".join(told) or "no tests"
