"""Run folders: checkpoints, locks, damaged and stale files."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from run_helpers import file_contents
from safetensors.torch import save_file

from pkd.runs.folder import RunFolder
from pkd.runs.progress import Progress, parse_progress
from pkd.utils.errors import CheckpointError, OutputError, PkdError

CONFIG = {"dataset": "digits"}
WEIGHTS = {"a": torch.tensor([1.0, 2.0]), "b": torch.arange(6.0).view(2, 3).T}


@pytest.fixture
def run(tmp_path):
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    yield folder
    folder.release()


def file_names(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.name != ".lock")


def test_a_failed_write_keeps_the_earlier_checkpoint(run, monkeypatch):
    run.save_progress(WEIGHTS, Progress(step=3))
    before = file_names(run.path)
    write_bytes = Path.write_bytes

    def write_half(path, content):
        write_bytes(path, content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OutputError, match=r"cannot be written .*No space left.* --resume"):
        run.save_progress(WEIGHTS, Progress(step=4))
    assert file_names(run.path) == before
    assert RunFolder.open(run.path).progress.step == 3


def test_checkpoints_within_a_phase_replace_each_other(run):
    for step in (3, 4):
        run.metrics.append({"epoch": step})
        run.save_progress(WEIGHTS, Progress(step=step))
    assert file_names(run.checkpoints) == ["progress-000001.safetensors"]
    run.release()
    resumed = RunFolder.resume(run.path)
    assert resumed.progress == Progress(step=4, tensors="progress-000001.safetensors", metrics=2)
    assert resumed.metrics == [{"epoch": 3}, {"epoch": 4}]
    tensors = resumed.load_tensors(resumed.progress.tensors)
    assert all(torch.equal(tensors[name], WEIGHTS[name]) for name in WEIGHTS)
    resumed.release()


def test_only_the_checkpoint_of_a_finished_phase_is_kept(run):
    run.save_progress(WEIGHTS, Progress(step=3))
    run.save_phase("teacher", WEIGHTS, Progress(phase=1, auc={"teacher": [0.5]}))
    assert file_names(run.checkpoints) == ["teacher.safetensors"]
    assert RunFolder.open(run.path).progress.auc == {"teacher": [0.5]}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_not_saved(run, value):
    run.save_progress(WEIGHTS, Progress(step=3))
    before = file_contents(run.path)
    with pytest.raises(PkdError, match=r"values in b are not finite.* lower `lr`"):
        run.save_progress(WEIGHTS | {"b": torch.tensor([0.0, value])}, Progress(step=4))
    assert file_contents(run.path) == before


def test_values_that_are_not_finite_are_not_loaded(run):
    run.checkpoints.mkdir()
    save_file(WEIGHTS | {"b": torch.tensor([float("nan")])}, run.checkpoints / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"x\.safetensors has values in b .* not finite"):
        run.load_tensors("x.safetensors")
    assert list(run.load_tensors("x.safetensors", prefix="a")) == ["a"]


def test_resuming_removes_the_temporary_files_of_a_killed_process(run):
    run.save_progress(WEIGHTS, Progress(step=3))
    complete = file_names(run.path)
    for name in (".metrics.jsonl.0f.tmp", "checkpoints/.progress-000001.safetensors.0f.tmp"):
        (run.path / name).write_text("incomplete")
    (run.checkpoints / "progress-000001.safetensors").write_text("not named by progress.json")
    RunFolder.open(run.path)
    assert len(file_names(run.path)) == len(complete) + 3  # reading changes nothing
    run.release()
    RunFolder.resume(run.path).release()
    assert file_names(run.path) == complete


@pytest.mark.parametrize(
    "leftovers", [[], [".lock"], [".lock", ".config.yaml.tmp"], [".config.yaml.0f.tmp"]]
)
def test_a_run_killed_before_its_first_file_can_be_created_again(leftovers, tmp_path):
    for name in leftovers:
        (tmp_path / name).write_text("incomplete")
    run = RunFolder.create(tmp_path, CONFIG)
    assert run.config() == CONFIG
    run.release()
    RunFolder.resume(tmp_path)
    assert file_names(tmp_path) == ["config.yaml"]
    run.release()


def test_a_folder_is_locked_for_training_but_not_for_reading(run):
    with pytest.raises(PkdError, match=f"another process is training in {run.path}: wait"):
        RunFolder.resume(run.path)
    assert RunFolder.open(run.path).config() == CONFIG
    run.release()
    RunFolder.resume(run.path).release()


@pytest.mark.parametrize(
    "change",
    [
        *({name: value} for name in ("phase", "epoch", "step") for value in (-1, 1.5, "1", None)),
        *({"tensors": name} for name in ("teacher.safetensors", "../progress-000001.safetensors")),
        *({"auc": auc} for auc in ([], None, {"teacher": 1}, {"teacher": ["x"]})),
        {"seconds": {"teacher": "long"}},
        {"pace": 1},
    ],
)
def test_damaged_progress_is_refused(change, run):
    content = json.dumps(asdict(Progress()) | change)
    with pytest.raises((AttributeError, TypeError, ValueError)):
        parse_progress(content)
    (run.path / "progress.json").write_text(content)
    with pytest.raises(PkdError, match=r"progress\.json is damaged .*restore it from a copy"):
        RunFolder.open(run.path)


def test_a_finished_run_without_progress_is_refused(run):
    assert RunFolder.open(run.path).progress == Progress()
    run.write_results({}, curves=b"")
    with pytest.raises(PkdError, match=r"progress\.json is damaged .*restore it from a copy"):
        RunFolder.open(run.path)


def test_truncated_metrics_are_refused(run):
    run.metrics += [{"epoch": 1}, {"epoch": 2}]
    run.save_progress(WEIGHTS, Progress(step=3))
    (run.path / "metrics.jsonl").write_text('{"epoch": 1}\n')
    with pytest.raises(PkdError, match=r"metrics\.jsonl is truncated, it has 1 of 2 lines"):
        RunFolder.open(run.path)


def test_metrics_after_the_checkpoint_are_dropped(run):
    run.metrics.append({"epoch": 1})
    run.save_progress(WEIGHTS, Progress(step=3))
    (run.path / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n')
    assert RunFolder.open(run.path).metrics == [{"epoch": 1}]
