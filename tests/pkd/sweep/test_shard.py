"""The task that trains a shard, and its answers to failures."""

import json
import shutil
import threading

import pytest
import torch
import yaml
from filelock import FileLock
from sweep_helpers import read_json, weights

from pkd.runs.folder import RunFolder
from pkd.runs.run import Run
from pkd.sweep import shard as module
from pkd.sweep.plan import Plan
from pkd.sweep.shard import open_shard, train_shard

pytestmark = pytest.mark.usefixtures("fast_sweeps")
STUDENT = "digits_student-only_1-2-4_part1"


@pytest.fixture
def unfinished(small_sweep, tmp_path):
    """A copy of the small sweep without the shard of the student alone."""
    copy = shutil.copytree(small_sweep, tmp_path / "sweep")
    shutil.rmtree(copy / "shards" / STUDENT)
    return copy


def test_a_shard_is_trained_with_the_threads_of_the_plan(unfinished, small_sweep, monkeypatch):
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    assert train_shard(str(unfinished), STUDENT) == {"status": "finished", "error": None}
    assert threads == [read_json(unfinished / "plan.json")["threads"]]
    assert weights(unfinished / "shards") == weights(small_sweep / "shards")


def test_a_finished_shard_is_not_trained_again(unfinished, monkeypatch):
    assert train_shard(str(unfinished), STUDENT)["status"] == "finished"
    before = weights(unfinished)
    monkeypatch.setattr("pkd.runs.stack_loop.StackLoop.train", None)
    assert train_shard(str(unfinished), STUDENT)["status"] == "finished"
    assert weights(unfinished) == before


def test_a_worker_that_does_not_see_the_folder_is_an_error(tmp_path):
    result = train_shard(str(tmp_path), STUDENT)
    assert result["status"] == "failed"
    assert f"{tmp_path / 'plan.json'} does not exist on the worker" in result["error"]
    assert "`out` folder on a file system that all workers share" in result["error"]


def test_images_that_have_changed_since_the_plan_are_refused(unfinished):
    plan = read_json(unfinished / "plan.json")
    for cell in plan["cells"]:
        cell["data_sha256"] = "0" * 64
    del plan["sha256"]
    plan["format"] = 1  # which had no checksum
    (unfinished / "plan.json").write_text(json.dumps(plan))
    result = train_shard(str(unfinished), STUDENT)
    assert result["status"] == "failed"
    assert (
        "images of the data set digits have changed since the sweep was planned" in result["error"]
    )


def test_a_task_that_starts_after_the_stop_trains_nothing(unfinished):
    (unfinished / "stop").touch()
    assert train_shard(str(unfinished), STUDENT) == {"status": "interrupted", "error": None}
    assert not (unfinished / "shards" / STUDENT).exists()


def test_an_unexpected_error_is_a_failure_with_its_type(unfinished, monkeypatch):
    def fail(*_):
        raise KeyError("x")

    monkeypatch.setattr(module, "train", fail)
    assert train_shard(str(unfinished), STUDENT) == {"status": "failed", "error": "KeyError: 'x'"}
    monkeypatch.undo()
    assert train_shard(str(unfinished), STUDENT)["status"] == "finished"  # the lock is free


def test_a_shard_waits_for_the_lock_of_a_task_that_ends(unfinished):
    folder = unfinished / "shards" / STUDENT
    folder.mkdir()
    lock = FileLock(folder / ".lock", thread_local=False)
    lock.acquire()
    timer = threading.Timer(0.3, lock.release)
    timer.start()
    assert train_shard(str(unfinished), STUDENT)["status"] == "finished"
    timer.join()


def test_a_shard_whose_folder_stays_locked_fails(unfinished, monkeypatch):
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.1)
    folder = unfinished / "shards" / STUDENT
    folder.mkdir()
    with FileLock(folder / ".lock"):
        result = train_shard(str(unfinished), STUDENT)
    assert result["status"] == "failed"
    assert f"another process is training in {folder}" in result["error"]


def test_damaged_teachers_fail_the_shard(unfinished, monkeypatch):
    name = "digits_2_1-2-4_part1"
    shutil.rmtree(unfinished / "shards" / name)
    checkpoints = unfinished / "shards" / "teacher_digits_part1" / "checkpoints"
    (checkpoints / "teacher.safetensors").write_bytes(b"")
    result = train_shard(str(unfinished), name)
    assert result["status"] == "failed"
    assert "teacher.safetensors is damaged" in result["error"]


def test_a_smaller_stack_restarts_the_current_phase_and_keeps_finished_ones(
    unfinished, monkeypatch, every_step_reported
):
    """The run stops in step 2, with an epoch in its metrics, and continues in stacks of one."""
    name = "digits_progressive-23_1-2-4_part1"
    shutil.rmtree(unfinished / "shards" / name)
    plan = Plan.read(unfinished)
    shard, path = plan.shard(name), unfinished / "shards" / name
    plan._trained[shard.cell].config.__dict__["step2_epochs"] = 2
    plan._trained[shard.cell].config.__dict__["checkpoint_every"] = 0.0
    plan.write(unfinished)
    report, steps = module.ProgressFile.on_train_steps_end, []

    def report_and_stop(callback, steps_done, losses):
        report(callback, steps_done, losses)
        steps.append((callback._phase, steps_done))
        if steps[-1] == ("step2", 13):
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module.ProgressFile, "on_train_steps_end", report_and_stop)
    assert train_shard(str(unfinished), name)["status"] == "out_of_memory"
    finished = (path / "checkpoints" / "step1.safetensors").read_bytes()
    assert read_json(path / "progress.json")["step"] == 2

    shard.stack = 1
    run = open_shard(plan.config(shard, unfinished), path)
    assert [stack.stop - stack.start for stack in run.stacks] == [1, 1]
    assert len(run.folder.metrics) == 2  # teacher and step 1, one epoch each
    assert set(run.folder.progress.seconds) == {"step1"}
    run.folder.release()

    plan.write(unfinished)
    steps.clear()
    monkeypatch.setattr(module.ProgressFile, "on_train_steps_end", report)
    assert train_shard(str(unfinished), name)["status"] == "finished"
    assert (path / "checkpoints" / "step1.safetensors").read_bytes() == finished
    assert yaml.safe_load((path / "config.yaml").read_text())["stack"] == 1
    lines = (path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert list(path.glob("checkpoints/progress-*")) == []
    Run.open(path, "cpu")


def test_a_smaller_stack_equals_pkd_train_with_that_stack(unfinished, tmp_path):
    """A shard that starts its first phase again is the run of its config.yaml."""
    plan = Plan.read(unfinished)
    shard, path = plan.shard(STUDENT), unfinished / "shards" / STUDENT
    run = open_shard(plan.config(shard, unfinished), path)
    run.folder.release()
    shard.stack = 1
    plan.write(unfinished)
    assert train_shard(str(unfinished), STUDENT)["status"] == "finished"
    whole = Run.create(plan.config(shard, unfinished), tmp_path / "run")
    module.train(whole, module.CallbackList([]))
    assert weights(tmp_path / "run") == weights(path)


def test_a_change_of_the_stack_that_was_interrupted_is_repeated(unfinished, monkeypatch):
    """The process ends between the writes of progress.json and config.yaml."""
    plan = Plan.read(unfinished)
    shard, path = plan.shard(STUDENT), unfinished / "shards" / STUDENT
    open_shard(plan.config(shard, unfinished), path).folder.release()
    shard.stack, write = 1, RunFolder._write

    def write_progress_only(folder, file, content):
        if file.name == "config.yaml":
            raise KeyboardInterrupt
        write(folder, file, content)

    monkeypatch.setattr(RunFolder, "_write", write_progress_only)
    with pytest.raises(KeyboardInterrupt):
        open_shard(plan.config(shard, unfinished), path)
    monkeypatch.setattr(RunFolder, "_write", write)
    run = open_shard(plan.config(shard, unfinished), path)
    assert run.config.stack == 1
    run.folder.release()
