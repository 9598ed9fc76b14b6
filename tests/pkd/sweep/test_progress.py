"""Progress files of the shards, and their display."""

import io
import json
import time

import pytest
from rich.console import Console
from sweep_helpers import read_json

from pkd.runs.progress import Progress
from pkd.sweep import progress as module
from pkd.sweep.plan import Plan
from pkd.sweep.progress import ProgressDisplay, ProgressFile, StopFile
from pkd.training.callbacks import TrainingInterrupted
from pkd.training.structures import KDGAN, TEACHER, Phase

TEACHER_PHASE = Phase("teacher", TEACHER, 1, 1, 0.1, None)
STEP1 = Phase("step1", KDGAN[1], 1, 1, 0.1, None)


class Folder:
    progress = Progress()


def steps_done(directory):
    return read_json(directory / "progress" / "a.json")["steps_done"]


def test_steps_are_counted_over_phases_and_stacks(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.0)
    callback = ProgressFile(tmp_path, "a", {"teacher": [10, 20], "step1": [5, 7]}, Folder())
    callback.on_phase_start(TEACHER_PHASE, 10, 0)
    callback.on_train_steps_end(4, {"teacher G": 0.5})
    record = read_json(tmp_path / "progress" / "a.json")
    assert record.pop("time") == pytest.approx(time.time(), abs=60)
    losses = {"teacher G": 0.5}
    assert record == {"steps_done": 4, "steps": 42, "phase": "teacher", "losses": losses}
    callback.on_phase_start(TEACHER_PHASE, 20, 0)
    callback.on_train_steps_end(3, {})
    assert steps_done(tmp_path) == 13
    callback.on_phase_start(STEP1, 5, 0)
    assert steps_done(tmp_path) == 30
    callback.on_phase_start(STEP1, 7, 0)
    callback.on_train_steps_end(1, {})
    assert steps_done(tmp_path) == 36
    callback.finish()
    assert steps_done(tmp_path) == 42


def test_a_continued_run_starts_with_the_steps_of_its_checkpoint(tmp_path):
    folder = Folder()
    folder.progress = Progress(phase=1, stack=1)
    callback = ProgressFile(tmp_path, "a", {"teacher": [10], "step1": [5, 7]}, folder)
    callback.on_phase_start(STEP1, 7, 2)
    assert steps_done(tmp_path) == 17


def test_the_file_is_rewritten_about_once_a_second(tmp_path):
    callback = ProgressFile(tmp_path, "a", {"step1": [10]}, Folder())
    callback.on_phase_start(STEP1, 10, 0)
    for step in range(1, 5):
        callback.on_train_steps_end(step, {})
    assert steps_done(tmp_path) == 1


def test_a_full_disk_does_not_stop_training_here(tmp_path):
    (tmp_path / "progress").write_text("no folder")
    callback = ProgressFile(tmp_path, "a", {"step1": [10]}, Folder())
    callback.on_phase_start(STEP1, 10, 0)


def test_the_stop_file_interrupts_training(tmp_path, monkeypatch):
    callback = StopFile(tmp_path / "stop")
    callback.on_batch_end()
    (tmp_path / "stop").touch()
    callback.on_batch_end()  # the file is looked for once a second
    monkeypatch.setattr(module, "SECONDS", 0.0)
    callback = StopFile(tmp_path / "stop")
    with pytest.raises(TrainingInterrupted):
        callback.on_batch_end()


def write_progress(directory, name, **values):
    record = {"steps_done": 5, "steps": 10, "phase": "step1", "losses": {}, "time": 0.0} | values
    (directory / "progress").mkdir(exist_ok=True)
    (directory / "progress" / f"{name}.json").write_text(json.dumps(record))


@pytest.mark.parametrize("terminal", [False, True])
def test_steps_shards_and_losses_are_shown(terminal, small_sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.01)
    monkeypatch.setattr(module, "LINE_SECONDS", 0.01)
    plan, stream = Plan.read(small_sweep), io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120, highlight=False)
    write_progress(tmp_path, "digits_2_1-2-4_part1", steps_done=7)  # of an earlier process
    with ProgressDisplay(tmp_path, plan, console, lambda text: f"<{text}>") as display:
        display.running |= {"digits_2_1-2-4_part1", "digits_progressive-23_1-2-4_part1"}
        display.finished.add("teacher_digits_part1")
        display.message("a message")
        write_progress(tmp_path, "digits_2_1-2-4_part1", losses={"student G": 0.5})
        deadline = time.monotonic() + 30
        while "student G 0.5" not in stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.02)
    output = stream.getvalue()
    assert "15/50" in output
    assert "digits_2_1-2-4_part1 step1 5/10 student G 0.5" in output
    assert "ETA" in output
    assert "<a message>" in output
    assert "7/10" not in output


def test_many_shards_are_abbreviated_on_a_terminal(small_sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHOWN_SHARDS", 1)
    plan, stream = Plan.read(small_sweep), io.StringIO()
    display = ProgressDisplay(tmp_path, plan, Console(file=stream, force_terminal=True, width=120))
    record = {"steps_done": 1, "steps": 2, "phase": "step1", "losses": {}}
    with display:
        display._show_bar({shard.name: record for shard in plan.shards})
    assert "and 3 more" in stream.getvalue()
