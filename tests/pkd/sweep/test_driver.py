"""Order of the shards, failures of workers and the end of a sweep."""

import io
import shutil

import pytest
from rich.console import Console
from sweep_helpers import read_json

from pkd.sweep.driver import Driver, sweep_command
from pkd.sweep.engines import Handle, WorkerError
from pkd.sweep.plan import Plan
from pkd.sweep.progress import ProgressDisplay
from pkd.sweep.shard import train_shard
from pkd.utils.errors import OutputError

TEACHER, STUDENT, ONE, TWO = (
    "teacher_digits_part1",
    "digits_student-only_1-2-4_part1",
    "digits_2_1-2-4_part1",
    "digits_progressive-23_1-2-4_part1",
)


class Engine:
    """Ends each task with a given result, a shard by name, and records the order."""

    workers, threads = 2, 1

    def __init__(self, source, results=None):
        self.source, self.results = source, results or {}
        self.events, self.names = [], {}

    def submit(self, task, directory, name):
        assert task is train_shard
        handle = Handle()
        self.names[handle] = directory, name
        self.events.append(f"submit {name}")
        return handle

    def wait(self, handles):
        handle = handles[-1]  # a later task may end first
        directory, name = self.names[handle]
        self.events.append(f"end {name}")
        results = self.results.get(name)
        result = results.pop(0) if results else "finished"
        if result == "killed":
            raise WorkerError(handle, "the process died 3 times")
        if result == "finished":
            target = f"{directory}/shards/{name}"
            shutil.copytree(self.source / "shards" / name, target, dirs_exist_ok=True)
        return handle, {"status": result, "error": None if result == "finished" else "an error"}

    def close(self):
        pass


@pytest.fixture
def sweep(small_sweep, tmp_path):
    """A function of results by shard: runs the plan of the small sweep in a new folder."""
    shutil.copy(small_sweep / "plan.json", tmp_path)
    (tmp_path / "shards").mkdir()

    def run(results=None):
        engine, plan = Engine(small_sweep, results), Plan.read(tmp_path)
        display = ProgressDisplay(tmp_path, plan, Console(file=io.StringIO()))
        return Driver(tmp_path, plan, engine, display, sweep_command(tmp_path)).run(), engine.events

    return run


def test_a_shard_starts_as_soon_as_its_teachers_are_finished(sweep, tmp_path, small_sweep):
    outcome, events = sweep()
    assert (outcome.failed, outcome.interrupted) == ({}, False)
    assert events[:2] == [f"submit {TEACHER}", f"submit {STUDENT}"]
    end = events.index(f"end {TEACHER}")
    assert set(events[end + 1 : end + 3]) == {f"submit {ONE}", f"submit {TWO}"}
    assert read_json(tmp_path / "sweep.json") == read_json(small_sweep / "sweep.json")
    assert sweep()[1] == []


def test_a_worker_that_dies_fails_its_shard_alone(sweep, tmp_path):
    outcome, _ = sweep({ONE: ["killed"]})
    assert outcome.failed == {ONE: "the process died 3 times"}
    content = read_json(tmp_path / "sweep.json")
    command = f"pkd sweep --resume {tmp_path}"
    (failed,) = content["failed"]
    assert failed == {
        "shard": ONE,
        "cell": "digits_2_1-2-4",
        "error": "the process died 3 times",
        "command": command,
    }
    assert len(content["rows"]) == 4
    assert sweep()[1] == [f"submit {ONE}", f"end {ONE}"]


def test_failed_teachers_fail_the_shards_that_need_them(sweep, tmp_path):
    outcome, events = sweep({TEACHER: ["failed"]})
    reason = f"its teachers are missing: the shard {TEACHER} failed"
    assert outcome.failed == {TEACHER: "an error", ONE: reason, TWO: reason}
    assert f"submit {ONE}" not in events
    assert {row["structure"] for row in read_json(tmp_path / "sweep.json")["rows"]} == {
        "student-only"
    }


def test_an_interrupted_shard_ends_the_sweep_after_the_running_ones(sweep, tmp_path):
    outcome, events = sweep({STUDENT: ["interrupted"], TEACHER: ["interrupted"]})
    assert outcome.interrupted
    assert {event for event in events if event.startswith("submit")} == {
        f"submit {TEACHER}",
        f"submit {STUDENT}",
    }
    assert len([event for event in events if event.startswith("end")]) == 2
    outcome, _ = sweep()
    assert not outcome.interrupted
    assert len(read_json(tmp_path / "sweep.json")["rows"]) == 6


def test_the_stack_is_halved_until_it_fits(sweep, tmp_path):
    outcome, events = sweep({ONE: ["out_of_memory"]})
    assert outcome.failed == {}
    assert events.count(f"submit {ONE}") == 2
    stacks = {shard.name: shard.stack for shard in Plan.read(tmp_path).shards}
    assert stacks == {TEACHER: 2, STUDENT: 2, ONE: 1, TWO: 2}


def test_a_single_model_that_does_not_fit_fails(sweep):
    outcome, events = sweep({ONE: ["out_of_memory"] * 2})
    assert events.count(f"submit {ONE}") == 2
    assert "an error; choose a smaller `batch_size`" in outcome.failed[ONE]


def test_a_stale_stop_file_is_removed(sweep, tmp_path):
    (tmp_path / "stop").touch()
    assert sweep()[0].failed == {}
    assert not (tmp_path / "stop").exists()


def test_results_that_cannot_be_written_are_an_error_after_all_shards(sweep, tmp_path):
    (tmp_path / "sweep.json").mkdir()
    with pytest.raises(OutputError, match=r"sweep\.json is a folder"):
        sweep()
    (tmp_path / "sweep.json").rmdir()
    _, events = sweep()
    assert events == []
    assert len(read_json(tmp_path / "sweep.json")["rows"]) == 6


def test_damaged_results_of_a_shard_are_a_failure(sweep, tmp_path):
    sweep()
    (tmp_path / "shards" / ONE / "results.json").write_text("{")
    outcome, _ = sweep({ONE: ["failed"]})
    assert list(outcome.failed) == [ONE]
    assert len(read_json(tmp_path / "sweep.json")["rows"]) == 4
