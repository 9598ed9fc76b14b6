"""`pkd train --tensorboard`: TensorBoard reads the values that the run folder contains."""

import json
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pkd.cli.main import main
from pkd.runs.folder import RunFolder
from pkd.runs.pipeline import train
from pkd.runs.run import Run
from pkd.runs.tensorboard import TensorBoard
from pkd.training.callbacks import Callback, CallbackList, TrainingInterrupted
from pkd.training.config import TrainConfig
from pkd.training.settings import PARSERS

TINY = {
    **{"normal_class": "0,1", "device": "cpu", "latent": 8, "batch_size": 2, "structure": "2"},
    **{"teacher_widths": "2-4-8", "student_widths": "1-2-4", "max_train_images": 20},
    **{"teacher_epochs": 2, "step1_epochs": 1, "checkpoint_every": 0.0},
}
STEPS = {"teacher": [10, 20], "step1": [10]}  # at the end of each epoch


CONFIG = TrainConfig(**{k: PARSERS.get(k, lambda value: value)(v) for k, v in TINY.items()})


def flags(settings):
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]


def curves(folder, phase):
    """Name -> [(step, value)] of a phase."""
    events = EventAccumulator(str(folder / "tensorboard" / phase)).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def assert_auc_curves(folder):
    """Compare the AUC at the end of each epoch, each once, with metrics.jsonl."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for phase, steps in STEPS.items():
        phase_curves = curves(folder, phase)
        auc = [record["auc"] for record in records if record["phase"] == phase]
        mean = [sum(values) / len(values) for values in auc]
        for name, values in (
            ("mean", mean),
            ("smallest", map(min, auc)),
            ("largest", map(max, auc)),
        ):
            curve_steps, curve = zip(*phase_curves[f"auc/{name}"], strict=True)
            assert list(curve_steps) == steps
            assert list(curve) == pytest.approx(list(values))


def test_curves_of_a_run(tmp_path, every_step_reported):
    out = tmp_path / "run"
    assert main(["train", *flags(TINY), "--tensorboard", "--out", str(out)]) == 0
    assert_auc_curves(out)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for phase, network in (("teacher", "teacher"), ("step1", "student")):
        phase_curves = curves(out, phase)
        for short, name in (("G", "generator"), ("D", "discriminator")):
            steps, losses = zip(*phase_curves[f"loss/{network} {short}"], strict=True)
            assert list(steps) == list(range(1, STEPS[phase][-1] + 1))
            values = [r["losses"][network][name] for r in records if r["phase"] == phase]
            mean = sum(map(sum, values)) / (len(values) * 2)  # over epochs and members
            assert sum(losses) / len(losses) == pytest.approx(mean, rel=1e-5)


def test_a_resumed_run_continues_its_curves(tmp_path, every_step_reported):
    run = Run.create(CONFIG, tmp_path / "run")
    folder, calls = run.folder, iter(range(1000))

    class Stop(Callback):
        def on_batch_end(self):
            if next(calls) == 17:
                raise TrainingInterrupted

    with TensorBoard(folder.path / "tensorboard") as live, pytest.raises(TrainingInterrupted):
        train(run, CallbackList([live, Stop()]))
    done = folder.progress.epoch * 10 + folder.progress.step
    assert 0 < done < 20
    with TensorBoard(folder.path / "tensorboard") as live:  # points after the checkpoint
        live.on_phase_start(run.phases[0], 20, done)
        for step in range(done, 20):
            live.on_train_steps_end(step + 1, {"teacher G": -1.0})
    folder.release()
    assert main(["train", "--resume", str(folder.path), "--tensorboard"]) == 0
    assert_auc_curves(folder.path)
    steps, losses = zip(*curves(folder.path, "teacher")["loss/teacher G"], strict=True)
    assert sorted({*steps}) == list(steps)
    assert {*range(1, 21)} - {*steps} <= {done}
    assert min(losses) > 0


def test_a_missing_package_is_refused_before_a_folder_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "pkd.runs.tensorboard")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    out = tmp_path / "run"
    assert main(["train", *flags(TINY), "--tensorboard", "--out", str(out)]) == 2
    assert "pip install 'pkdgan[tensorboard]'" in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch, capsys):
    folder = Run.create(CONFIG, tmp_path / "run").folder
    folder.release()
    (folder.path / "tensorboard").write_text("a file instead of a folder")
    assert main(["train", "--resume", str(folder.path), "--tensorboard"]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert RunFolder.open(folder.path).progress.phase == 0


def test_without_the_flag_there_are_no_curves(tmp_path):
    out = tmp_path / "run"
    assert main(["train", *flags(TINY), "--out", str(out)]) == 0
    assert not (out / "tensorboard").exists()
