"""Stages: a failure costs the stage alone, all facts are kept, and a second call continues."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter

import orphans
import pytest

from bench.gpu import runner
from bench.gpu.facts import Facts
from bench.gpu.plan import STAGES, TOTAL_S, Stage
from bench.gpu.runner import ROOT, begin_call, run, run_stage, run_stages

FAKES = "tests.bench.gpu.fake_stages"


def stage(name: str, seconds: float = 30) -> Stage:
    return Stage(name, seconds, f"{FAKES}:{name}")


@pytest.fixture
def facts(tmp_path):
    return Facts(tmp_path / "facts.jsonl", call=1)


def task_ends(facts: Facts, name: str) -> dict[str, str]:
    return {f["task"]: f["ended"] for f in facts.of(name) if "task" in f and "ended" in f}


def test_a_command_at_its_time_limit_is_killed_with_its_children(tmp_path, capfd):
    late = tmp_path / "late"
    command = ["sh", "-c", f"echo started; (sleep 1; touch {late}) & wait"]
    code, text = run(command, timeout=0.5)
    assert (code, text) == (runner.STOPPED, "started\n")
    assert "started" in capfd.readouterr().out
    time.sleep(0.8)
    assert not late.exists()


def test_a_commands_output_and_exit_code():
    assert run(["sh", "-c", "echo a; echo b >&2; exit 3"], timeout=10) == (3, "a\nb\n")


def test_a_command_does_not_inherit_the_variables_of_pytest(monkeypatch):
    """pytest-benchmark would take the process for a worker of xdist and measure nothing."""
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    monkeypatch.setenv("OTHER", "kept")
    assert run(["sh", "-c", "echo $PYTEST_XDIST_WORKER$OTHER"], timeout=10) == (0, "kept\n")


def test_all_tasks_of_a_stage_are_done_and_their_facts_are_in_order(facts):
    assert run_stages([stage("one"), stage("three")], facts) == {"one": "done", "three": "done"}
    assert task_ends(facts, "one") == {"first": "done", "last": "done"}
    values = [(f["task"], f["value"]) for f in facts.of("one") if "value" in f]
    assert values == [("first", 1), ("first", 2), ("last", 1), ("last", 2)]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("crash", "the process ended with exit code -11"),
        ("out_of_memory", "MemoryError: "),
        ("error", "ValueError: first line"),
    ],
)
def test_a_task_that_fails_costs_itself_alone(facts, name, error):
    assert run_stages([stage(name), stage("one")], facts) == {name: "failed", "one": "done"}
    assert task_ends(facts, name) == {"first": "done", "bad": "failed", "last": "done"}
    assert [f["error"] for f in facts.of(name) if "error" in f] == [error]
    assert [f["value"] for f in facts.of(name) if f.get("task") == "bad" and "value" in f] == [1]


@pytest.mark.parametrize(("rehearse", "end"), [(False, "done"), (True, "failed")])
def test_an_error_among_the_facts_of_a_task_fails_a_rehearsal_only(facts, rehearse, end):
    name = "error_as_fact"
    assert run_stages([stage(name)], facts, rehearse=rehearse) == {name: end}
    assert task_ends(facts, name) == {"first": "done", "bad": end, "last": "done"}
    assert [f["value"] for f in facts.of(name) if f.get("task") == "bad" and "value" in f] == [1, 2]
    errors = [f["error"] for f in facts.of(name) if "error" in f]
    assert errors == ["ValueError: one contender"] * (2 if rehearse else 1)


def test_a_task_that_hangs_costs_a_part_of_its_stage(facts):
    start = time.time()
    assert run_stage(stage("hang"), facts, start + 5) == "failed"
    assert time.time() - start < 5
    assert task_ends(facts, "hang") == {"bad": "stopped", "last": "done"}


def test_a_stage_that_crashes_costs_itself_alone(facts):
    ends = run_stages([stage("broken"), stage("one")], facts)
    assert ends == {"broken": "failed", "one": "done"}
    (end,) = facts.of("broken")
    assert (end["ended"], end["exit_code"]) == ("failed", -signal.SIGKILL)


def test_a_stage_at_its_time_limit_is_killed(facts):
    start = time.time()
    assert run_stage(stage("stuck"), facts, start + 0.6) == "stopped"
    assert time.time() - start < 2


def test_processes_that_survive_their_stage_are_killed(facts, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_FILE", str(tmp_path / "late"))
    assert run_stages([stage("child")], facts) == {"child": "done"}
    time.sleep(1.2)
    assert not (tmp_path / "late").exists()


CALL = f"""
import sys
from pathlib import Path
from bench.gpu.plan import Stage
from bench.gpu.runner import begin_call, run_stages
stages = [Stage(name, 60, f"{FAKES}:{{name}}") for name in ("one", "two", "three")]
facts = begin_call(Path(sys.argv[1]), {{"commit": "a"}})
print(run_stages(stages, facts))
"""


@pytest.mark.parametrize(
    "position",
    [
        "two/first",
        *(
            pytest.param(f"{name}/{task}", marks=pytest.mark.slow)
            for name in ("one", "two", "three")
            for task in ("first", "last")
            if (name, task) != ("two", "first")
        ),
    ],
)
def test_a_killed_call_keeps_its_facts_and_a_second_call_goes_on(facts, position):
    command = [sys.executable, "-c", CALL, str(facts.path)]
    name, _, task = position.partition("/")
    environment = os.environ | {"FAKE_HANG": position}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: any(f.get("task") == task and "value" in f for f in facts.of(name)))
    finally:
        process.kill()
        process.wait()
    before = facts.read()
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.endswith("{'one': 'done', 'two': 'done', 'three': 'done'}\n")
    after = facts.read()
    assert after[: len(before)] == before
    ends = Counter((f["stage"], f.get("task")) for f in after if f.get("ended") == "done")
    tasks = ("first", "last", None)
    assert ends == {(name, task): 1 for name in ("one", "two", "three") for task in tasks}
    wait_for(lambda: not orphans.marked(position, "FAKE_HANG"))


def wait_for(condition) -> None:
    end = time.time() + 30
    while not condition():
        assert time.time() < end
        time.sleep(0.05)


def test_calls_with_other_sources_do_not_mix(tmp_path):
    path = tmp_path / "facts.jsonl"
    assert begin_call(path, {"commit": "a"}).call == 1
    assert begin_call(path, {"commit": "a"}).call == 2
    with pytest.raises(ValueError, match="commit 'a', not 'b': choose another folder"):
        begin_call(path, {"commit": "b"})


def test_a_stage_may_use_the_time_that_earlier_stages_left_over(facts, monkeypatch):
    clock, limits = [1000.0], {}

    def run_stage(stage, facts, deadline, rehearse):
        limits[stage.name] = deadline - clock[0]
        clock[0] += {"fast": 1, "slow": 59, "late": 18.5}[stage.name]
        return "done"

    monkeypatch.setattr(runner.time, "time", lambda: clock[0])
    monkeypatch.setattr(runner, "run_stage", run_stage)
    stages = [Stage(name, s, "") for name, s in (("fast", 20), ("slow", 40), ("late", 90))]
    ends = run_stages([*stages, Stage("none", 9, "")], facts, total=79)
    assert limits == {"fast": 20, "slow": 59, "late": 19}
    assert ends == {"fast": "done", "slow": "done", "late": "done", "none": "not run"}


def test_the_stages_fill_the_time_of_a_call():
    ends, end = {}, 0.0
    for name, seconds, _ in STAGES:
        end += seconds
        ends[name] = end
    assert list(ends.items())[1:8] == [
        ("check", 40),
        ("headline", 85),
        ("replay", 110),
        ("compile", 240),
        ("sweep", 330),
        ("tests", 500),
        ("ops", TOTAL_S),
    ]
    assert TOTAL_S == 570
