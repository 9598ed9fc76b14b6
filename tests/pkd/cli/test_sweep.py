"""`pkd sweep`: settings, shards, failures, interruptions and their continuation."""

import errno
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from run_helpers import PHASES, file_contents, table_rows
from sweep_helpers import STRUCTURES, TINY_SWEEP, read_json, rows_without_times, weights

from pkd.cli.main import main
from pkd.cli.sweep import _settings
from pkd.runs.stack_loop import StackLoop
from pkd.sweep import progress
from pkd.sweep.progress import ProgressFile
from pkd.utils.errors import PkdError

pytestmark = pytest.mark.usefixtures("fast_sweeps")
SHARDS = (
    "teacher_digits_part1",
    "digits_student-only_1-2-4_part1",
    "digits_2_1-2-4_part1",
    "digits_progressive-23_1-2-4_part1",
)


def sweep(*flags: object) -> int:
    return main(["sweep", *TINY_SWEEP, *map(str, flags)])


@pytest.fixture
def refused_sweep(refused, tmp_path):
    """Check that flags are refused with a message that has all words, and write nothing."""

    def check(flags, *words):
        refused(["sweep", *TINY_SWEEP, *flags], *words, unchanged=tmp_path)

    return check


@pytest.fixture
def config_file(tmp_path):
    """A function that writes sweep.yaml."""

    def write(**values):
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    return write


# -- Shards ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_equals_pkd_train_on_its_settings(name, small_sweep, tmp_path):
    shard = small_sweep / "shards" / name
    assert (
        main(["train", "--config", str(shard / "config.yaml"), "--out", str(tmp_path / "r")]) == 0
    )
    assert weights(tmp_path / "r") == weights(shard)
    members = [read_json(f / "results.json")["members"] for f in (tmp_path / "r", shard)]
    assert members[0] == members[1]


def test_the_cells_share_one_teacher_of_each_member(small_sweep):
    assert {path.name for path in (small_sweep / "shards").iterdir()} == set(SHARDS)
    rows = [r for r in read_json(small_sweep / "sweep.json")["rows"] if r["auc_teacher"]]
    assert {row["structure"] for row in rows} == {"2", "progressive-23"}
    trained = read_json(small_sweep / "shards" / SHARDS[0] / "results.json")["members"]
    for member in trained:
        same = [r for r in rows if r["normal_class"] == member["normal_class"]]
        assert {row["teacher_sha256"] for row in same} == {member["teacher_sha256"]}
        assert {row["auc_teacher"] for row in same} == {member["auc"]["teacher"]}


def test_a_student_alone_trains_no_teacher(small_sweep, tmp_path):
    assert sweep("--structure", "student-only", "--out", tmp_path / "s") == 0
    (shard,) = (tmp_path / "s" / "shards").iterdir()
    assert [file.name for file in (shard / "checkpoints").iterdir()] == ["step1.safetensors"]
    rows = [r for r in rows_without_times(small_sweep) if r["structure"] == "student-only"]
    assert rows_without_times(tmp_path / "s") == rows


def test_cells_without_common_teacher_settings_have_teachers_of_their_own(tmp_path, config_file):
    config = config_file(structure=1, axes={"teacher_lr": [0.001, 0.002]}, teacher_epochs=2)
    assert sweep("--config", config, "--out", tmp_path / "s") == 0
    plan = read_json(tmp_path / "s" / "plan.json")
    assert [group["config"]["teacher_lr"] for group in plan["teachers"]] == [0.001, 0.002]
    assert [group["config"]["teacher_epochs"] for group in plan["teachers"]] == [1, 1]
    rows = read_json(tmp_path / "s" / "sweep.json")["rows"]
    assert [row["teacher_lr"] for row in rows] == [0.001, 0.001, 0.002, 0.002]
    assert len({row["teacher_sha256"] for row in rows}) == 4


def test_teachers_of_finished_runs_are_used_in_place_of_shared_ones(small_sweep, tmp_path):
    teacher = small_sweep / "shards" / SHARDS[0]
    flags = ("--structure", "student-only,2", "--teacher", teacher)
    assert sweep(*flags, "--out", tmp_path / "s") == 0
    assert len(list((tmp_path / "s" / "shards").iterdir())) == 2
    rows = [r for r in rows_without_times(small_sweep) if r["structure"] != "progressive-23"]
    assert rows_without_times(tmp_path / "s") == rows


def test_the_teachers_are_a_cell_of_the_structure_teacher_only(tmp_path):
    assert sweep("--structure", "teacher-only,1", "--out", tmp_path / "s") == 0
    alone, distilled = read_json(tmp_path / "s" / "plan.json")["cells"]
    assert len(read_json(tmp_path / "s" / "plan.json")["shards"]) == 2
    content = read_json(tmp_path / "s" / "sweep.json")
    rows = {
        name: [row for row in content["rows"] if row["cell"] == name]
        for name in (alone["name"], distilled["name"])
    }
    auc = [[row["auc_teacher"] for row in part] for part in rows.values()]
    assert auc[0] == auc[1]
    assert len(auc[0]) == 2
    assert [row["auc_step1"] for row in rows[alone["name"]]] == [None, None]
    assert [curve["phase"] for curve in content["curves"]] == ["teacher", "teacher", "step1"]


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sweep(*STRUCTURES, "--dry-run") == 0
    output = capsys.readouterr().out
    words = ("teacher_digits", "digits_2_1-2-4", "cells: 3, shards: 4", "teachers: 1; 50 steps")
    assert [word for word in words if word not in output] == []
    assert list(tmp_path.iterdir()) == []


# -- Settings --------------------------------------------------------------------------------------


def test_commas_make_axes_of_structures_and_widths(tmp_path, capsys):
    flags = ("--structure", "1,2", "--student-widths", "1-2-4,2-2-2", "--dry-run")
    assert sweep(*flags) == 0
    output = capsys.readouterr().out
    for name in ("digits_1_1-2-4", "digits_1_2-2-2", "digits_2_1-2-4", "digits_2_2-2-2"):
        assert name in output


def test_flags_override_common_values_axes_and_cells(config_file):
    path = config_file(
        seeds=3,
        lr="1e-3",
        axes={"structure": [1, 2], "latent": [8, 16]},
        cells=[{"step1_epochs": 1}, {"step1_epochs": 2, "lr": 0.1}],
    )
    configs, varied = _settings(path, {})
    assert varied == ("structure", "step1_epochs", "lr", "latent")
    assert [(c.step1_epochs, c.lr, c.structure, c.latent, c.seeds) for c in configs[:5]] == [
        *((1, 0.001, structure, latent, 3) for structure in "12" for latent in (8, 16)),
        (2, 0.1, "1", 8, 3),
    ]
    configs, _ = _settings(path, {"structure": ["4"], "lr": 0.2, "seeds": 1})
    assert [(c.step1_epochs, c.lr, c.structure, c.latent, c.seeds) for c in configs] == [
        (epochs, 0.2, "4", latent, 1) for epochs in (1, 2) for latent in (8, 16)
    ]
    configs, varied = _settings(path, {"structure": ["3", "4"]})
    assert {config.structure for config in configs} == {"3", "4"}
    assert "structure" in varied


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epochs": 3}, ("--epochs is no setting", "step1_epochs")),
        ({"axes": {"epochs": [3]}}, ("--epochs is no setting",)),
        ({"cells": [{"epochs": 3}]}, ("--epochs is no setting",)),
        ({"axes": {"lr": []}}, ("--lr is an axis without values", "leave it out")),
        ({"axes": {"lr": 0.1}}, ("--lr is an axis with the value 0.1", "must be a list")),
        ({"axes": {"lr": ["x"]}}, ("--lr", "expected float", "x")),
        ({"cells": []}, ("--cells is an empty list", "at least one cell")),
        ({"cells": {"lr": 1}}, ("--cells", "must be a list")),
        ({"cells": [3]}, ("--cells has 3", "settings with their values")),
        ({"axes": [3]}, ("--axes has [3]",)),
        ({"lr": 0.1, "axes": {"lr": [0.2]}}, ("--lr is an axis and a common setting", "keep one")),
        (
            {"cells": [{"lr": 0.1}], "axes": {"lr": [0.2]}},
            ("--lr is an axis and a setting of a cell", "keep one"),
        ),
        (
            {"structure": 1, "axes": {"lr": [0.2, 0.2]}},
            ("--lr gives the cell digits_1_1-2-4_lr-0.2 twice", "leave one out"),
        ),
        (
            {"structure": 1, "cells": [{}, {}]},
            ("--cells gives the cell digits_1_1-2-4 twice",),
        ),
        ({"structure": 7}, ("--structure", "7", "progressive-23")),
        ({"teacher": "runs/a"}, ("--teacher: expected a list",)),
    ],
)
def test_files_of_settings_that_cannot_be_used_are_refused(
    values, words, config_file, refused_sweep, tmp_path
):
    refused_sweep(["--config", config_file(**values), "--out", tmp_path / "s"], *words)


@pytest.mark.parametrize("content", ["lr: [", "- lr", "3", b"\xff"])
def test_a_damaged_file_of_settings_is_refused(content, refused_sweep, tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused_sweep(["--config", path, "--out", tmp_path / "s"], "--config")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--config", "missing.yaml"), ("--config missing.yaml cannot be read",)),
        (("--structure", "2,7"), ("--structure", "expected one of teacher-only", "'7'")),
        (("--structure", "2,2"), ("--structure gives the cell digits_2_1-2-4 twice",)),
        (("--structure", "2,"), ("--structure", "got ''")),
        (("--student-widths", "1-2-4,1-2"), ("--student-widths", "three positive", "'1-2'")),
        (("--seeds", "10000000"), ("--seeds", "20,000,000 models", "at most")),
        (("--normal-class", "11"), ("--normal-class 11 is not a class",)),
        (("--workers", "2"), ("--workers is a setting of the engine 'ray'", "--engine")),
        (("--address", "auto"), ("--address is a setting of the engine 'ray'",)),
        (("--resume", "x"), ("--resume takes every setting from the sweep's plan.json",)),
    ],
)
def test_flags_that_cannot_be_used_are_refused(flags, words, refused_sweep, tmp_path):
    out = ("--out", tmp_path / "s") if flags[0] != "--resume" else ()
    refused_sweep([*flags, *out], *words)


def test_folders_with_files_are_refused_and_unchanged(small_sweep, refused, tmp_path):
    argv = ["sweep", *TINY_SWEEP, "--out"]
    command = f"pkd sweep --resume {small_sweep}"
    refused([*argv, small_sweep], "another sweep", command, unchanged=small_sweep)
    (tmp_path / "notes.txt").write_text("content of the user")
    refused([*argv, tmp_path], "not empty", "another folder", unchanged=tmp_path)
    refused([*argv, tmp_path / "notes.txt"], "notes.txt", "another path", unchanged=tmp_path)


def test_a_folder_without_a_plan_is_not_resumed(refused, tmp_path):
    refused(["sweep", "--resume", tmp_path], "holds no sweep", "plan.json", unchanged=tmp_path)


def test_a_second_sweep_in_one_folder_is_refused(small_sweep, refused, tmp_path):
    for folder, flags in ((small_sweep, ("--resume",)), (tmp_path, (*TINY_SWEEP, "--out"))):
        with FileLock(folder / ".lock"):
            refused(["sweep", *flags, folder], "another process", str(folder), "wait for it")


# -- Failures --------------------------------------------------------------------------------------


def test_a_diverging_shard_does_not_stop_the_others(tmp_path, config_file, capsys):
    config = config_file(structure="student-only", axes={"lr": [1e30, 0.001]})
    assert sweep("--config", config, "--out", tmp_path / "s") == 1
    output = capsys.readouterr().out
    name, command = (
        "digits_student-only_1-2-4_lr-1e-30_part1",
        f"pkd sweep --resume {tmp_path / 's'}",
    )
    assert f"failed: {name}" in output
    assert command in output
    content = read_json(tmp_path / "s" / "sweep.json")
    assert [row["lr"] for row in content["rows"]] == [0.001, 0.001]
    (failed,) = content["failed"]
    assert (failed["shard"], failed["command"]) == (name, command)
    assert "not finite" in failed["error"]
    assert [curve["cell"] for curve in content["curves"]] == ["digits_student-only_1-2-4_lr-0.001"]


@pytest.mark.parametrize("name", SHARDS[:3:2])
def test_a_full_disk_fails_one_shard_and_the_sweep_continues_later(
    name, small_sweep, tmp_path, monkeypatch, capsys
):
    """With the teachers, the shards that need them fail too; the student alone is trained."""
    write = Path.write_bytes

    def write_to_a_full_disk(path, content):
        if name in str(path) and "safetensors" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_to_a_full_disk)
    assert sweep(*STRUCTURES, "--out", tmp_path / "s") == 1
    failed = {f["shard"]: f["error"] for f in read_json(tmp_path / "s" / "sweep.json")["failed"]}
    dependent = set(SHARDS[2:]) if name == SHARDS[0] else set()
    assert set(failed) == {name} | dependent
    assert "No space left on device" in failed.pop(name)
    assert all(f"the shard {name} failed" in error for error in failed.values())
    monkeypatch.setattr(Path, "write_bytes", write)
    trained = file_contents(tmp_path / "s" / "shards" / SHARDS[1])
    assert main(["sweep", "--resume", str(tmp_path / "s")]) == 0
    assert file_contents(tmp_path / "s" / "shards" / SHARDS[1]) == trained
    assert weights(tmp_path / "s" / "shards") == weights(small_sweep / "shards")
    assert rows_without_times(tmp_path / "s") == rows_without_times(small_sweep)


def test_a_shard_out_of_memory_continues_with_half_the_stack(tmp_path, monkeypatch, capsys):
    """The second phase does not fit: the first one is kept."""
    train, phases = StackLoop.train, []

    def limited_train(loop):
        phases.append((loop.phase.name, len(loop.trainer.members)))
        if phases[-1] == ("step1", 2):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return train(loop)

    monkeypatch.setattr(StackLoop, "train", limited_train)
    flags = ("--structure", "progressive-23", "--teacher-widths", "1-1-2")
    assert sweep(*flags, "--out", tmp_path / "s") == 0
    one = [("step1", 1), ("step1", 1), ("step2", 1), ("step2", 1)]
    assert phases == [("teacher", 2), ("step1", 2), *one]
    assert "out of GPU memory, continues in stacks of 1" in capsys.readouterr().out
    shards = read_json(tmp_path / "s" / "plan.json")["shards"]
    assert [shard["stack"] for shard in shards] == [2, 1]
    folder = tmp_path / "s" / "shards" / shards[1]["name"]
    assert yaml.safe_load((folder / "config.yaml").read_text())["stack"] == 1
    assert len(read_json(tmp_path / "s" / "sweep.json")["rows"]) == 2


def test_a_single_model_out_of_memory_fails_its_shard(tmp_path, monkeypatch, capsys):
    def fail(loop):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(StackLoop, "train", fail)
    assert sweep("--structure", "student-only", "--out", tmp_path / "s") == 1
    assert "CUDA out of memory; choose a smaller --batch-size" in capsys.readouterr().out


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_stops_the_sweep_after_a_checkpoint(
    number, small_sweep, tmp_path, monkeypatch, capsys, every_step_reported
):
    """The signal arrives in the third step of the second shard."""
    report, steps = ProgressFile.on_train_steps_end, []

    def report_and_send_signal(callback, steps_done, losses):
        report(callback, steps_done, losses)
        steps.append(steps_done)
        if len(steps) == 13:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(progress, "SECONDS", 0.0)
    monkeypatch.setattr(ProgressFile, "on_train_steps_end", report_and_send_signal)
    code = {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert sweep(*STRUCTURES, "--out", tmp_path / "s") == code
    assert len(steps) == 13
    assert f"continue with: pkd sweep --resume {tmp_path / 's'}" in capsys.readouterr().out
    assert main(["sweep", "--resume", str(tmp_path / "s")]) == 0
    assert len(steps) == 50
    assert weights(tmp_path / "s" / "shards") == weights(small_sweep / "shards")
    assert rows_without_times(tmp_path / "s") == rows_without_times(small_sweep)


def test_the_mean_auc_of_each_cell_is_printed(small_sweep, tmp_path, capsys):
    assert main(["sweep", "--resume", str(shutil.copytree(small_sweep, tmp_path / "copy"))]) == 0
    output = capsys.readouterr().out
    rows = {cells[0]: cells[1:] for cells in table_rows(output[output.index("Mean AUC") :])}
    for name in ("digits_student-only_1-2-4", "digits_2_1-2-4", "digits_progressive-23_1-2-4"):
        members = [r for r in read_json(small_sweep / "sweep.json")["rows"] if r["cell"] == name]
        for phase, cell in zip(PHASES, rows[name][1:], strict=True):
            auc = [row[f"auc_{phase}"] for row in members]
            assert cell == ("" if None in auc else f"{sum(auc) / 2:.4f}")
    assert f"pkd report {tmp_path / 'copy'}" in output


def test_teachers_of_several_runs_are_listed_in_a_file(small_sweep, tmp_path, config_file):
    """A list in YAML is a setting of several values, not an axis."""
    teachers = [str(small_sweep / "shards" / SHARDS[0])] * 2
    path = config_file(teacher=teachers, axes={"normal_class": [0, [0, 1]]})
    configs, _ = _settings(path, {})
    assert [config.teacher for config in configs] == [tuple(teachers)] * 2
    assert [config.normal_class for config in configs] == [(0,), (0, 1)]


def test_a_finished_sweep_is_not_trained_again_and_can_be_moved(small_sweep, tmp_path, monkeypatch):
    copy = shutil.copytree(small_sweep, tmp_path / "moved")
    before = file_contents(copy / "shards")
    monkeypatch.setattr("pkd.sweep.driver.train_shard", None)
    assert main(["sweep", "--resume", str(copy)]) == 0
    assert file_contents(copy / "shards") == before
    assert (copy / "sweep.csv").read_bytes() == (small_sweep / "sweep.csv").read_bytes()
    assert read_json(copy / "sweep.json") == read_json(small_sweep / "sweep.json")
    assert main(["report", str(copy)]) == 0
    assert (copy / "report.html").is_file()


@pytest.mark.parametrize(("device", "use_gpu"), [("cpu", False), ("auto", True)])
def test_ray_uses_the_gpus_of_its_workers_unless_the_device_is_the_cpu(
    device, use_gpu, monkeypatch, tmp_path
):
    calls = []

    def no_engine(*args):
        calls.append(args)
        raise PkdError("no engine")

    monkeypatch.setattr("pkd.sweep.ray_engine.RayEngine", no_engine)
    argv = ["sweep", *TINY_SWEEP, "--device", device, "--engine", "ray", "--workers", "2"]
    assert main([*argv, "--out", str(tmp_path / "sweep")]) == 2
    assert calls == [(2, None, use_gpu)]
