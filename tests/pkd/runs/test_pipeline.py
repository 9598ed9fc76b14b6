"""Files of a finished run: results, metrics and curves."""

import json
import struct

import numpy as np
import pytest
import torch
import yaml
from run_helpers import PHASES, SMALL_NETWORKS, TINY, file_contents
from safetensors.torch import load_file
from stack_helpers import assert_tensors_equal

from pkd.cli.main import main
from pkd.runs.folder import RunFolder
from pkd.runs.pipeline import train
from pkd.runs.run import Run
from pkd.runs.run_parts import load_parts
from pkd.scoring.metrics import threshold
from pkd.training.callbacks import Callback
from pkd.training.config import TrainConfig


def test_results_contain_the_auc_of_every_member(small_run):
    results = json.loads((small_run / "results.json").read_text())
    config = yaml.safe_load((small_run / "config.yaml").read_text())
    assert results["dataset"] == "digits"
    assert results["config"] == config
    assert config["teacher_epochs"] == 1
    members = results["members"]
    pairs = [(member["normal_class"], member["seed"]) for member in members]
    assert sorted(pairs) == [(3, 0), (3, 1), (5, 0), (5, 1)]
    for phase in PHASES:
        values = [member["auc"][phase] for member in members]
        assert all(0 <= value <= 1 for value in values)
        assert results["mean_auc"][phase] == pytest.approx(sum(values) / 4)
    assert list(results["std_auc"]) == list(results["mean_auc"]) == PHASES


def test_results_contain_what_scoring_new_images_needs(small_run):
    """A threshold of each member and network, from the stored scores of held-out images."""
    results = json.loads((small_run / "results.json").read_text())
    assert (results["image_size"], results["channels"], results["left_out"]) == (32, 1, 0)
    assert results["classes"] == [str(k) for k in range(10)]
    run = Run.open(small_run, device="cpu")
    labels = run.dataset.train_labels
    for phase in run.phases:
        held_out_scores = load_parts(run, phase).held_out_scores(run.score_rule)
        for member, scores in zip(results["members"], held_out_scores, strict=True):
            assert len(scores) == np.ceil(0.1 * (labels == member["normal_class"]).sum())
            assert member["threshold"][phase.name] == threshold(scores, 0.05)


def test_metrics_contain_a_line_per_epoch_for_all_members(small_run):
    lines = [json.loads(line) for line in (small_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == PHASES
    assert all(len(line["auc"]) == 4 and line["test_images"] == 360 for line in lines)
    assert all(len(values) == 4 for values in lines[0]["losses"]["teacher"].values())


def test_curves_are_a_png(small_run):
    content = (small_run / "curves.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert width > 400
    assert height > 200


def test_a_finished_run_has_only_the_documented_files(small_run):
    names = {str(path.relative_to(small_run)) for path in file_contents(small_run)} - {".lock"}
    checkpoints = {f"checkpoints/{phase}.safetensors" for phase in PHASES}
    files = {"config.yaml", "progress.json", "metrics.jsonl", "results.json", "curves.png"}
    assert names == {"checkpoints"} | checkpoints | files


@pytest.mark.slow
def test_a_teacher_rate_that_equals_the_common_rate_changes_no_bit(tmp_path):
    """Another rate changes the teacher of the second step, and its student."""

    def checkpoints(name: str, *settings: str) -> dict[str, dict[str, torch.Tensor]]:
        out = tmp_path / name
        assert main(["train", *TINY, "--lr", "0.01", *settings, "--out", str(out)]) == 0
        return {phase: load_file(out / f"checkpoints/{phase}.safetensors") for phase in PHASES}

    common = checkpoints("common")
    for phase, tensors in checkpoints("same", "--step2-teacher-lr", "0.01").items():
        assert_tensors_equal(tensors, common[phase])
    slower = checkpoints("slower", "--step2-teacher-lr", "0.001")
    assert_tensors_equal(slower["step1"], common["step1"])
    weight = "generator.encoder.1.weight"
    for network in ("teacher", "student"):
        assert not torch.equal(
            slower["step2"][f"{network}.{weight}"], common["step2"][f"{network}.{weight}"]
        )


def test_curves_use_all_images_where_a_sample_would_lack_a_class(tmp_path, monkeypatch):
    monkeypatch.setattr("pkd.runs.stack_loop.CURVE_IMAGES", 4)
    images = np.random.default_rng(0).integers(0, 256, (40, 20, 20), np.uint8)
    labels = np.ones(40, np.int64)
    labels[3] = 0
    np.savez(tmp_path / "data.npz", train_images=images, test_images=images, test_labels=labels)
    data = ("--dataset", "npz", "--data-dir", str(tmp_path / "data.npz"), "--image-size", "16")
    argv = ["train", *data, *SMALL_NETWORKS, "--teacher-epochs", "2"]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 0
    lines = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").open()]
    assert all(np.isfinite(line["auc"]).all() for line in lines)
    assert lines[0]["test_images"] == 40


class Recorder(Callback):
    """Records the hooks that a run calls."""

    def __init__(self):
        self.phases, self.epochs, self.steps, self.batches = [], [], [], 0

    def on_phase_start(self, phase, steps, steps_done):
        self.phases.append((phase.name, steps, steps_done))

    def on_batch_end(self):
        self.batches += 1

    def on_train_steps_end(self, steps_done, losses):
        self.steps.append((steps_done, sorted(losses)))

    def on_epoch_end(self, record, epochs):
        self.epochs.append((record["phase"], record["epoch"], epochs))


@pytest.mark.usefixtures("every_step_reported")
def test_callbacks_follow_the_phases_epochs_and_steps_of_a_run(tmp_path):
    config = TrainConfig(
        **{"normal_class": (0,), "latent": 8, "batch_size": 5, "max_train_images": 10},
        **{"teacher_widths": (1, 2, 4), "student_widths": (1, 2, 4), "structure": "1"},
        **{"teacher_epochs": 2, "step1_epochs": 1, "device": "cpu"},
    )
    run, recorder = Run.create(config, tmp_path / "run"), Recorder()
    results = train(run, recorder)
    assert results == RunFolder.open(tmp_path / "run").results()
    assert recorder.phases == [("teacher", 4, 0), ("step1", 2, 0)]
    assert recorder.epochs == [("teacher", 1, 2), ("teacher", 2, 2), ("step1", 1, 1)]
    assert recorder.steps == [
        *((step, ["teacher D", "teacher G"]) for step in (1, 2, 3, 4)),
        *((step, ["student G"]) for step in (1, 2)),
    ]
    assert recorder.batches > len(recorder.steps)  # scoring and teacher caching too
    run.folder.release()
