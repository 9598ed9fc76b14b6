"""Run folders, exported models and pickled detectors of earlier versions still work.

`fixtures/README.md` lists the formats. The fixtures were computed on one processor: another one,
or a later version of PyTorch, rounds differently, so comparisons have tolerances far below the
effect of a wrong setting.
"""

import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from run_helpers import metrics_records
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch.testing import assert_close

from pkd.cli.main import main

FIXTURES = Path(__file__).parent / "fixtures"
IMAGES = FIXTURES / "images"

# Nothing was held out, so that there are no thresholds.
NOTHING_HELD_OUT = ("edc8149", "a07abcc", "1919ad8", "20f2fa1")
FORMATS = (*NOTHING_HELD_OUT, "16ba0ad", "3fa2a84", "63cdda9", "290bb48", "89f97d6", "5da5e0c")
WITH_CHECKSUMS = FORMATS[-1:]


def copied(tmp_path: Path, name: str, state: str) -> Path:
    """Copy the run folder of a format: the commands write into it."""
    return shutil.copytree(FIXTURES / name / state, tmp_path / "run")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def auc_of(results: dict[str, Any]) -> list[list[float]]:
    """AUC of each member after each phase, then the means."""
    return [[*m["auc"].values()] for m in results["members"]] + [[*results["mean_auc"].values()]]


def score_rows(detector: Path, output: Path, *options: str) -> list[dict[str, Any]]:
    assert main(["score", str(detector), str(IMAGES), "--output", str(output), *options]) == 0
    return read_json(output)


def check_rows(rows: list[dict[str, Any]], scores: list[float], threshold: float) -> None:
    assert [row["score"] for row in rows] == pytest.approx(scores, rel=1e-4)
    assert [row["threshold"] for row in rows] == pytest.approx([threshold] * len(rows), rel=1e-4)
    verdicts = ["novel" if score > threshold else "normal" for score in scores]
    assert [row["verdict"] for row in rows] == verdicts


@pytest.mark.parametrize("name", FORMATS)
def test_evaluate_gives_the_auc_of_results_json(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = copied(tmp_path, name, "finished")
    assert main(["evaluate", str(run)]) == 0
    printed = [float(number) for number in re.findall(r"\b[01]\.\d{4}\b", capsys.readouterr().out)]
    expected = [value for row in auc_of(read_json(run / "results.json")) for value in row]
    assert printed == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("name", FORMATS[len(NOTHING_HELD_OUT) :])
@pytest.mark.parametrize("normal_class", [1, 2])
def test_score_uses_the_threshold_of_results_json(
    name: str, normal_class: int, tmp_path: Path
) -> None:
    run = copied(tmp_path, name, "finished")
    rows = score_rows(run, tmp_path / "scores.json", "--normal-class", str(normal_class))
    scores = read_json(FIXTURES / name / "expected.json")["scores"][str(normal_class)]
    member = read_json(run / "results.json")["members"][normal_class - 1]
    *_, threshold = member["threshold"].values()
    check_rows(rows, scores, threshold)


@pytest.mark.parametrize("name", NOTHING_HELD_OUT)
@pytest.mark.parametrize("normal_class", [1, 2])
def test_score_takes_the_threshold_from_the_training_images_where_none_were_held_out(
    name: str, normal_class: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = copied(tmp_path, name, "finished")
    rows = score_rows(run, tmp_path / "scores.json", "--normal-class", str(normal_class))
    expected = read_json(FIXTURES / name / "expected.json")
    # of 12 scores the largest: fewer than 1 / contamination - 1
    threshold = max(expected["training_scores"][str(normal_class)])
    check_rows(rows, expected["scores"][str(normal_class)], threshold)
    assert caplog.text.count("thresholds come from its training images") == 1


def test_export_of_the_first_format_scores_the_same(tmp_path: Path) -> None:
    run, model = copied(tmp_path, "edc8149", "finished"), tmp_path / "student.onnx"
    assert main(["export", str(run), "--normal-class", "2", "--output", str(model)]) == 0
    expected = read_json(FIXTURES / "edc8149" / "expected.json")
    rows = score_rows(model, tmp_path / "scores.json")
    check_rows(rows, expected["scores"]["2"], max(expected["training_scores"]["2"]))


@pytest.mark.parametrize("name", FORMATS)
def test_report_shows_the_auc_of_results_json(name: str, tmp_path: Path) -> None:
    run = copied(tmp_path, name, "finished")
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    for row in auc_of(read_json(run / "results.json")):
        assert all(f"{auc:.4f}" in page for auc in row)


@pytest.mark.parametrize("name", FORMATS)
def test_resumed_run_ends_as_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    run, finished = copied(tmp_path, name, "interrupted"), FIXTURES / name / "finished"
    assert main(["train", "--resume", str(run)]) == 0
    for checkpoint in sorted((finished / "checkpoints").iterdir()):
        tensors = load_file(run / "checkpoints" / checkpoint.name)
        for key, expected in load_file(checkpoint).items():
            # a learning rate that is not the run's moves a weight by 1e-4 in a step
            actual = tensors[key]
            if actual.dim() > expected.dim():  # scores: other parts than the latent one are new
                actual = actual[..., 0]
            assert_close(actual, expected, atol=2e-5, rtol=0)
    records, expected_records = (
        metrics_records(folder / "metrics.jsonl") for folder in (run, finished)
    )
    for record, expected in zip(records, expected_records, strict=True):
        assert record.keys() == expected.keys()
        assert record["auc"] == pytest.approx(expected["auc"], abs=1e-3)
        for network, losses in expected["losses"].items():
            for loss, values in losses.items():
                assert record["losses"][network][loss] == pytest.approx(values, rel=1e-3, abs=1e-6)
    results, expected = (read_json(folder / "results.json") for folder in (run, finished))
    assert np.allclose(auc_of(results), auc_of(expected), atol=1e-3)
    assert results["data_sha256"] == expected["data_sha256"]
    for member, expected_member in zip(results["members"], expected["members"], strict=True):
        if name not in NOTHING_HELD_OUT:
            assert member["threshold"] == pytest.approx(expected_member["threshold"], rel=1e-3)


def test_setting_of_the_first_format_must_not_be_missing(tmp_path: Path, refused: Any) -> None:
    run = copied(tmp_path, "290bb48", "finished")
    settings = yaml.safe_load((run / "config.yaml").read_text())
    del settings["latent"]
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    refused(["evaluate", run], "config.yaml", "latent")


@pytest.mark.parametrize("name", FORMATS)
def test_files_without_checksums_open_with_one_notice(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = copied(tmp_path, name, "finished")
    assert main(["evaluate", str(run)]) == 0
    notices = caplog.text.count(f"{run} was written before checkpoints had checksums")
    assert notices == (name not in WITH_CHECKSUMS)


@pytest.mark.parametrize("name", ["63cdda9", "290bb48", "89f97d6", "5da5e0c"])
def test_exported_model_scores_the_same(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = score_rows(FIXTURES / name / "student.onnx", tmp_path / "scores.json")
    _, member = read_json(FIXTURES / name / "finished" / "results.json")["members"]
    scores = read_json(FIXTURES / name / "expected.json")["onnx_scores"]
    *_, threshold = member["threshold"].values()
    check_rows(rows, scores, threshold)
    notices = caplog.text.count("was exported before files had checksums")
    assert notices == (name not in WITH_CHECKSUMS)


@pytest.mark.parametrize("name", ["16ba0ad", "3fa2a84", "63cdda9", "290bb48", "89f97d6", "5da5e0c"])
def test_pickled_detector_scores_the_same(name: str) -> None:
    detector = pickle.loads((FIXTURES / name / "detector.pickle").read_bytes())
    expected = read_json(FIXTURES / name / "expected.json")["detector"]
    images = load_digits().images[100:108]
    scores = detector.score_samples(images)
    assert scores == pytest.approx(expected["score_samples"], rel=1e-5)
    assert detector.threshold_ == expected["threshold"]
    assert (detector.predict(images) == np.where(scores >= -expected["threshold"], 1, -1)).all()
    assert detector.get_params()["precision"] == "float32"
