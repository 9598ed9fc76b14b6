"""Run folders: checkpoints, locks, damaged and stale files."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from run_helpers import file_contents
from safetensors.torch import save_file

from pkd.runs.folder import RunFolder
from pkd.runs.progress import Progress, parse_progress
from pkd.runs.schema import is_number
from pkd.utils.checksums import dump_checked, file_sha256
from pkd.utils.errors import CheckpointError, OutputError, PkdError

CONFIG = {"dataset": "digits"}
WEIGHTS = {"a": torch.tensor([1.0, 2.0]), "b": torch.arange(6.0).view(2, 3).T}


def record(epoch):
    """A line of metrics.jsonl."""
    losses = {"teacher": {"generator": [1.5], "con": [0.5]}}
    return {
        **{"phase": "teacher", "epoch": epoch, "network": "teacher", "auc": [0.75]},
        **{"test_images": 4, "losses": losses},
    }


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
        run.metrics.append(record(step))
        run.save_progress(WEIGHTS, Progress(step=step))
    assert file_names(run.checkpoints) == ["progress-000001.safetensors"]
    run.release()
    resumed = RunFolder.resume(run.path)
    name = "progress-000001.safetensors"
    assert resumed.progress == Progress(
        step=4,
        tensors=name,
        metrics=2,
        checkpoint_sha256={name: file_sha256(run.checkpoints / name)},
        metrics_checked=True,
    )
    assert resumed.metrics == [record(3), record(4)]
    tensors = resumed.load_tensors(name)
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
    values = asdict(Progress()) | change
    del values["checkpoint_sha256"]  # as in versions before there were checksums
    content = json.dumps(values)
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
    run.metrics += [record(1), record(2)]
    run.save_progress(WEIGHTS, Progress(step=3))
    (run.path / "metrics.jsonl").write_text(dump_checked(record(1), indent=None))
    with pytest.raises(PkdError, match=r"metrics\.jsonl is damaged .* truncated: it has 1 of 2"):
        RunFolder.open(run.path)


def test_metrics_after_the_checkpoint_are_dropped(run):
    run.metrics.append(record(1))
    run.save_progress(WEIGHTS, Progress(step=3))
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(dump_checked(record(2), indent=None))
    assert RunFolder.open(run.path).metrics == [record(1)]


def flip(path, position, bit=0):
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


@pytest.fixture
def saved(run):
    """A run with a finished phase and a checkpoint within the next one."""
    run.metrics.append(record(1))
    run.save_phase("teacher", WEIGHTS, Progress(phase=1, auc={"teacher": [0.75]}))
    run.save_progress(WEIGHTS, replace(run.progress, step=3))
    return run


def test_every_bit_of_a_checkpoint_is_protected(saved):
    for name in ("teacher.safetensors", "progress-000000.safetensors"):
        path = saved.checkpoints / name
        for position in range(path.stat().st_size):
            flip(path, position, position % 8)
            with pytest.raises(CheckpointError, match=rf"{name} is damaged, .*SHA-256.* restore"):
                RunFolder.open(saved.path).load_tensors(name, "a")
            flip(path, position, position % 8)
        assert RunFolder.open(saved.path).load_tensors(name, "a")["a"].tolist() == [1, 2]


@pytest.mark.parametrize("name", ["progress.json", "metrics.jsonl"])
def test_no_flipped_bit_of_a_json_file_changes_what_is_read(name, saved):
    expected = RunFolder.open(saved.path)
    refused, path = 0, saved.path / name
    for position in range(path.stat().st_size):
        for bit in (0, 3, 5):
            flip(path, position, bit)
            try:
                actual = RunFolder.open(saved.path)
                assert (actual.progress, actual.metrics) == (expected.progress, expected.metrics)
            except CheckpointError as error:
                assert f"{name} is damaged" in str(error)  # noqa: PT017 (others are accepted)
                refused += 1
            flip(path, position, bit)
    assert refused > 2 * path.stat().st_size


def test_checkpoints_without_checksums_open_with_one_notice(saved, caplog):
    values = json.loads((saved.path / "progress.json").read_text())
    for key in ("sha256", "checkpoint_sha256", "metrics_checked"):
        del values[key]
    (saved.path / "progress.json").write_text(json.dumps(values))
    for _ in range(2):
        folder = RunFolder.open(saved.path)
        for name in ("teacher.safetensors", "progress-000000.safetensors"):
            assert folder.load_tensors(name, "a")["a"].tolist() == [1, 2]
    assert [record.message for record in caplog.records] == [
        f"{saved.path} was written before checkpoints had checksums: damage to them is not detected"
    ]


def test_a_run_killed_before_progress_json_opens_at_the_earlier_position(saved, monkeypatch):
    """A later stack has added its models to a line of metrics.jsonl that was already there."""
    before, progress = RunFolder.open(saved.path), replace(saved.progress, step=4)
    saved.metrics[0]["auc"].append(0.25)
    saved.metrics[0]["losses"] = {"teacher": {"generator": [1.5, 2.5], "con": [0.5, 0.5]}}
    monkeypatch.setattr(Progress, "to_json", lambda _: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception):
        saved.save_progress(WEIGHTS, progress)
    folder = RunFolder.open(saved.path)
    assert folder.progress == before.progress
    assert folder.metrics[0]["auc"] == [0.75, 0.25]
    assert folder.load_tensors(folder.progress.tensors)


@pytest.mark.parametrize("value", [10**400, -(10**400), float("nan"), float("inf"), True, "1"])
def test_numbers_that_no_float_holds_are_refused(value):
    assert is_number(1)
    assert is_number(-1.5)
    assert not is_number(value)
