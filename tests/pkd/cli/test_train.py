"""`pkd train`: options, output folders that are in use, and training that fails."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from run_helpers import PHASES, TINY, file_contents

from pkd.cli.main import main
from pkd.data import standard
from pkd.runs.folder import RunFolder
from pkd.training import cuda_graph
from pkd.training.trainer import Trainer


def test_a_run_is_repeated_from_its_configuration(finished_run, tmp_path):
    again = tmp_path / "again"
    argv = ["train", "--config", str(finished_run / "config.yaml"), "--out", str(again)]
    assert main(argv) == 0
    contents = file_contents(again)
    for path, content in file_contents(finished_run).items():
        if path.name not in ("results.json", "progress.json"):  # they contain times
            assert contents[again / path.relative_to(finished_run)] == content
    results = [json.loads((f / "results.json").read_text()) for f in (finished_run, again)]
    assert results[0]["members"] == results[1]["members"]


def test_a_path_is_printed_unchanged_and_quoted_in_commands(finished_run, capsys):
    assert main(["train", "--resume", str(finished_run)]) == 0
    assert f"run folder: {finished_run}\n" in capsys.readouterr().out
    assert main(["train", *TINY, "--out", str(finished_run)]) == 2
    assert f"--resume '{finished_run}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings",
    [
        *(
            pytest.param(("--structure", name), marks=pytest.mark.slow)
            for name in ("1", "2", "3", "4", "progressive-24")
        ),
        ("--structure", "student-only"),
        ("--structure", "teacher-only"),
        ("--structure", "3", "--norm", "batch"),
        ("--structure", "4", "--reduction", "norm", "--norm-first", "false"),
        ("--structure", "1", "--weights", "0,0,0,0,0,0", "--betas", "0,0"),
        ("--structure", "2", "--batch-size", "20", "--checkpoint-every", "0"),
    ],
)
def test_every_structure_and_option_trains_to_the_end(settings, tmp_path):
    assert main(["train", *TINY, *settings, "--out", str(tmp_path / "run")]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    alone = {"student-only": ["step1"], "teacher-only": ["teacher"]}
    phases = PHASES if "progressive" in settings[1] else alone.get(settings[1], PHASES[:2])
    assert list(results["mean_auc"]) == phases
    assert {path.stem for path in (tmp_path / "run" / "checkpoints").iterdir()} == set(phases)


def test_a_finished_run_lends_its_teachers(finished_run, tmp_path):
    run = tmp_path / "run"
    argv = ["train", *TINY, "--structure", "1", "--out", str(run), "--teacher", str(finished_run)]
    assert main(argv) == 0
    results = [json.loads((f / "results.json").read_text()) for f in (finished_run, run)]
    trained, taken = (
        {(m["normal_class"], m["seed"]): m["auc"]["teacher"] for m in r["members"]} for r in results
    )
    assert taken.items() <= trained.items()
    assert list(results[1]["seconds"]) == ["step1"]
    again = tmp_path / "again"
    assert main(["train", "--config", str(run / "config.yaml"), "--out", str(again)]) == 0
    assert json.loads((again / "results.json").read_text())["members"] == results[1]["members"]
    assert main(["train", "--resume", str(again)]) == 0


def test_settings_are_chosen_on_development_images(tmp_path, capsys):
    run = tmp_path / "run"
    argv = ["train", *TINY, "--structure", "student-only", "--evaluate-on", "development"]
    assert main([*argv, "--out", str(run)]) == 0
    assert "AUC, digits, development images, last epoch" in capsys.readouterr().out
    assert main(["evaluate", str(run)]) == 0
    assert "development images" in capsys.readouterr().out


@pytest.mark.parametrize("graph", [True, False])
def test_a_failed_graph_capture_is_reported_once_and_the_run_trains(
    graph, tmp_path, monkeypatch, capsys
):
    def fail(*_):
        raise cuda_graph.GraphCaptureError("driver too old")

    monkeypatch.setattr(cuda_graph, "available", lambda device: True)
    monkeypatch.setattr(cuda_graph, "capture", fail)
    flags = () if graph else ("--no-graph",)
    assert main(["train", *TINY, *flags, "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.count("no CUDA graph (driver too old)") == graph
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["graph"] == graph


def test_the_default_folder_of_a_run_is_below_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *TINY, "--structure", "1", "--normal-class", "1"]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("digits-")


# -- Data and folders that are refused -------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [None, gzip.compress(b"\0\0\x08\3" + bytes(20), mtime=0)[:-9]],
    ids=["missing", "cut"],
)
def test_missing_and_truncated_data_files_are_refused(content, refused, tmp_path):
    name = "train-images-idx3-ubyte.gz"
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    if content:
        (raw / name).write_bytes(content)
    argv = ["train", "--dataset", "mnist", "--data-dir", tmp_path / "data"]
    remedy = f"pkd data mnist --data-dir {tmp_path / 'data'} --download"
    refused([*argv, "--out", tmp_path / "run"], name, remedy, unchanged=tmp_path)


def test_a_class_without_images_is_refused(refused, monkeypatch, tmp_path):
    digits = standard.load("digits")
    digits.train_labels[digits.train_labels == 1] = 2
    monkeypatch.setattr("pkd.runs.data.load", lambda *_: digits)
    argv = ["train", *TINY, "--out", tmp_path / "run"]
    words = ("--normal-class 1 has no images", "another class")
    refused(argv, *words, unchanged=tmp_path)


@pytest.mark.parametrize("name", ["config.yaml", "notes.txt", "checkpoints/x", ".hidden"])
def test_a_folder_with_files_is_refused_and_unchanged(name, refused, tmp_path):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("content of the user")
    words = ("another run", "--resume") if name == "config.yaml" else ("not empty",)
    argv = ["train", *TINY, "--out", tmp_path / "run"]
    refused(argv, *words, "choose another folder", unchanged=tmp_path)


def test_an_output_path_that_is_or_passes_a_file_is_refused(refused, tmp_path):
    (tmp_path / "file").write_text("content of the user")
    words = ("file", "cannot be written", "another path")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        refused(["train", *TINY, "--out", out], *words, unchanged=tmp_path)


# -- Training that fails ---------------------------------------------------------------------------


def test_a_diverging_run_is_reported_and_keeps_its_checkpoint(refused, tmp_path):
    run = tmp_path / "run"
    argv = ["train", *TINY, "--lr", "1e30", "--checkpoint-every", "0", "--out", run]
    refused(argv, "normal class 0, seed 0", "finite at step 2 of epoch 1", "lower --lr")
    assert not (run / "results.json").exists()
    RunFolder.open(run)  # raises if a file is damaged


@pytest.mark.parametrize("epochs", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_weights_that_are_not_finite_never_replace_a_good_checkpoint(
    epochs, refused, tmp_path, monkeypatch, every_step_reported
):
    """The second member's weights overflow in the last step of an epoch, after finite losses."""
    step, steps = Trainer.step, []

    def spoiling_step(trainer):
        step(trainer)
        steps.append(1)
        if len(steps) == 5 * epochs:
            weight = trainer.generator_params[0]
            weight.data.view(2, -1)[1, 0] = float("inf")

    monkeypatch.setattr(Trainer, "step", spoiling_step)
    run = tmp_path / "run"
    settings = ("--teacher-epochs", str(epochs), "--max-train-images", "10")
    argv = ["train", *TINY, *settings, "--checkpoint-every", "0", "--out", run]
    refused(argv, "normal class 1, seed 0", f"at step 5 of epoch {epochs}", "lower --lr")
    monkeypatch.setattr(Trainer, "step", step)
    assert json.loads((run / "progress.json").read_text())["step"] == 4
    assert main(["train", "--resume", str(run)]) == 0


def test_scores_that_are_not_finite_are_reported(refused, tmp_path, monkeypatch):
    monkeypatch.setattr("pkd.runs.run.novelty_scores", lambda *_: np.full((360, 2), np.nan))
    argv = ["train", *TINY, "--out", tmp_path / "run"]
    refused(argv, "scores of the teacher of normal class 0, seed 0", "lower --lr")


def test_a_full_disk_is_reported_and_the_run_resumes(refused, tmp_path, monkeypatch):
    run, write_bytes = tmp_path / "run", Path.write_bytes

    def fail_on_step1(path, content):
        if "step1" in path.name:
            write_bytes(path, content[:100])
            raise OSError(28, "No space left on device")
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", fail_on_step1)
    words = ("step1.safetensors", "No space left", "free disk space", "--resume")
    refused(["train", *TINY, "--out", run], *words)
    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    assert main(["train", "--resume", str(run)]) == 0
    assert not list(run.rglob(".*.tmp"))
