"""A killed test run leaves no process behind."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import orphans
import pytest

TESTS = Path(__file__).parent

# A process in a new session that outlives its parent and has a child.
CHILD = "import subprocess, time; subprocess.Popen(['sleep', '600']); time.sleep(600)"
SPAWN = f"""
import os, subprocess, sys
subprocess.Popen([sys.executable, "-c", {CHILD!r}], start_new_session=True)
"""
SCRIPT = f"""
import time, orphans
orphans.watch()
{SPAWN}
print(os.environ[orphans.MARK], flush=True)
time.sleep(600)
"""
ENDLESS_TEST = f"""
import time
{SPAWN}
def test_first():
    time.sleep(600)
def test_second():
    time.sleep(600)
"""


def unmarked() -> dict[str, str]:
    """The environment of a new run, without the mark of this one."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PKD_TEST", "PYTEST_"))}
    path = os.pathsep.join([str(TESTS), *sys.path])
    return environment | {"PYTHONPATH": path}


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def test_all_descendants_end_with_a_killed_process():
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], env=unmarked(), stdout=subprocess.PIPE, text=True
    )
    mark = process.stdout.readline().strip()
    assert wait_for(lambda: len(orphans.marked(mark)) == 2, 20)  # CHILD and its `sleep`
    process.kill()
    assert wait_for(lambda: not orphans.marked(mark), 20)
    process.wait()
    process.stdout.close()


def test_a_run_inside_a_run_starts_no_watcher(monkeypatch):
    monkeypatch.setenv(orphans.MARK, "outer")
    assert orphans.watch() is None
    assert os.environ[orphans.MARK] == "outer"


@pytest.mark.slow
def test_workers_and_their_children_end_with_a_killed_pytest(tmp_path):
    (tmp_path / "test_endless.py").write_text(ENDLESS_TEST)
    command = [sys.executable, "-m", "pytest", "-n", "2", "-p", "conftest", str(tmp_path)]
    tag = uuid.uuid4().hex
    process = subprocess.Popen(
        command, env=unmarked() | {"TAG": tag}, cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    # pytest, its watcher, and for each of two workers: itself, CHILD and its `sleep`
    assert wait_for(lambda: len(orphans.marked(tag, "TAG")) == 8, 100)
    process.kill()
    process.wait()
    assert wait_for(lambda: not orphans.marked(tag, "TAG"), 20)
