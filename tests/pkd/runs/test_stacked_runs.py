"""A run with several stacks gives the results of a run with one stack."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pkd.cli.main import main
from pkd.runs import pipeline
from pkd.runs.run import Run
from pkd.runs.run_parts import evaluate
from pkd.training.callbacks import Callback, TrainingInterrupted
from pkd.training.config import TrainConfig
from pkd.training.settings import PARSERS

SETTINGS = (
    *("--structure", "progressive-23"),
    *("--normal-class", "0,1", "--seeds", "2", "--device", "cpu", "--latent", "8"),
    *("--teacher-widths", "2-4-8", "--student-widths", "1-2-4", "--max-train-images", "10"),
    *("--teacher-epochs", "2", "--step1-epochs", "2", "--step2-epochs", "1", "--batch-size", "2"),
)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module", params=DEVICES)
def runs(request, tmp_path_factory):
    """Stack size -> finished run, in float64, where Adam amplifies rounding less."""
    folder = tmp_path_factory.mktemp("runs")
    torch.set_default_dtype(torch.float64)
    try:
        for size in ("4", "3", "1"):
            argv = ["train", *SETTINGS, "--device", request.param, "--stack", size]
            assert main([*argv, "--out", str(folder / size)]) == 0
    finally:
        torch.set_default_dtype(torch.float32)
    return {size: folder / size for size in ("4", "3", "1")}


@pytest.mark.parametrize("size", ["3", "1"])
def test_several_stacks_end_with_the_weights_of_one(size, runs):
    for path in (runs["4"] / "checkpoints").iterdir():
        actual = load_file(runs[size] / "checkpoints" / path.name)
        for key, value in load_file(path).items():
            torch.testing.assert_close(actual[key], value, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", ["3", "1"])
def test_several_stacks_have_the_metrics_and_results_of_one(size, runs):
    def lines(folder):
        return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    for actual, expected in zip(lines(runs[size]), lines(runs["4"]), strict=True):
        assert actual["auc"] == pytest.approx(expected["auc"], abs=1e-6)
        for network, losses in expected["losses"].items():
            for loss, values in losses.items():
                assert actual["losses"][network][loss] == pytest.approx(values, abs=1e-9)
    actual, expected = (json.loads((runs[k] / "results.json").read_text()) for k in (size, "4"))
    for phase, auc in expected["mean_auc"].items():
        assert actual["mean_auc"][phase] == pytest.approx(auc, abs=1e-6)
    for member, reference in zip(actual["members"], expected["members"], strict=True):
        assert member["threshold"] == pytest.approx(reference["threshold"], abs=1e-6)
    assert set(actual["seconds"]) == set(expected["seconds"])
    assert (runs[size] / "curves.png").exists()


def test_a_run_in_several_stacks_is_evaluated_stack_by_stack(runs):
    run = Run.open(runs["3"])
    for phase in run.phases:
        run.load_phase(phase)
        actual = evaluate(run, phase.network)
        assert actual == pytest.approx(run.folder.progress.auc[phase.name], abs=1e-3)  # in float32


def test_a_run_in_several_stacks_is_reported(runs, tmp_path):
    """On a GPU where there is one: it has the test images, but not the networks."""
    output = tmp_path / "report.html"
    assert main(["report", str(runs["3"]), "--output", str(output)]) == 0
    assert "data:image/png" in output.read_text(encoding="utf-8")


def test_several_stacks_are_announced(tmp_path, capsys):
    assert main(["train", *SETTINGS, "--stack", "3", "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.count("4 models in stacks of 3 + 1, one after the other") == 1


@pytest.mark.parametrize("device", DEVICES)
def test_stopped_between_two_stacks_nothing_of_the_first_is_trained_again(device, tmp_path):
    """While the second one's teacher outputs are computed there is no checkpoint of it yet."""
    config = dict(zip(*[iter(SETTINGS)] * 2, strict=True))
    config = {k.removeprefix("--").replace("-", "_"): v for k, v in config.items()}
    numbers = {k: int(v) if v.isdigit() else v for k, v in config.items()}
    for name, parse in PARSERS.items():
        if name in numbers:
            numbers[name] = parse(numbers[name])
    run = Run.create(TrainConfig(**numbers | {"device": device}, stack=3), tmp_path / "run")
    finished = []

    class StopAfterFirstStack(Callback):
        def on_batch_end(self):
            progress = run.folder.progress
            if progress.phase == 1 and progress.epoch == 2:  # step 1 of the first stack is done
                finished.append(progress)
                raise TrainingInterrupted

    with pytest.raises(TrainingInterrupted):
        pipeline.train(run, StopAfterFirstStack())
    assert (finished[0].stack, finished[0].step) == (0, 0)
    run.folder.release()
    run = Run.resume(tmp_path / "run")
    steps = []

    class RecordSteps(Callback):
        def on_phase_start(self, phase, steps_of_phase, steps_done):
            steps.append((phase.name, steps_of_phase, steps_done))

    pipeline.train(run, RecordSteps())
    assert steps == [
        ("step1", 10, 10),
        ("step1", 10, 0),
        ("step2", 5, 0),
        ("step2", 5, 0),
    ]
