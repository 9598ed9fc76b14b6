"""Detectors of runs with one network, and of runs with teachers of other runs."""

import json
import shutil

import numpy as np
import pytest
import torch
from image_helpers import picture, save
from run_helpers import remove_checksums

from pkd.cli.main import main
from pkd.deploy.open_run import load_detector
from pkd.utils.errors import CheckpointError, ConfigError


@pytest.mark.parametrize(
    ("fixture", "network", "other"),
    [("student_only_run", "student", "teacher"), ("teacher_only_run", "teacher", "student")],
)
def test_the_only_network_is_the_default(fixture, network, other, request):
    run = request.getfixturevalue(fixture)
    detector = load_detector(run, normal_class=5, seed=1)
    assert detector.info.network == network
    assert (detector.info.normal_class, detector.info.seed, detector.member) == (5, 1, 2)
    with pytest.raises(ConfigError, match=rf"`network` {other} is not in .*choose {network}"):
        load_detector(run, other, 5)


def test_teachers_of_other_runs_are_loaded_from_there(shared_teachers_run, teacher_only_run):
    detector = load_detector(shared_teachers_run, "teacher", 5, 1)
    source = load_detector(teacher_only_run, "teacher", 5, 1)
    assert detector.info.threshold == source.info.threshold
    images = torch.randint(256, (3, 1, 32, 32), dtype=torch.uint8)
    scores, expected = (network.scorer()(images)[0].numpy() for network in (detector, source))
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert load_detector(shared_teachers_run, normal_class=5, seed=1).info.network == "student"


def test_a_teacher_that_is_missing_or_has_changed_is_refused(
    shared_teachers_run, teacher_only_run, tmp_path
):
    run = shutil.copytree(shared_teachers_run, tmp_path / "run")
    config = run / "config.yaml"
    text = config.read_text()
    source = shutil.copytree(teacher_only_run, tmp_path / "elsewhere" / "teachers")
    config.write_text(text.replace(str(teacher_only_run), str(source)))
    assert load_detector(run, "teacher", 3).info.network == "teacher"
    progress = remove_checksums(run) / "progress.json"
    values = json.loads(progress.read_text())
    values["teacher_sha256"][0] = "0" * 64
    progress.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="are not those that this run took"):
        load_detector(run, "teacher", 3)
    shutil.rmtree(source)
    with pytest.raises(CheckpointError, match="is not a run folder"):
        load_detector(run, "teacher", 3)
    assert load_detector(run, "student", 3).info.network == "student"


def test_score_takes_the_only_network(teacher_only_run, tmp_path, capsys):
    image = save(picture(0), tmp_path / "image.png")
    capsys.readouterr()
    assert main(["score", str(teacher_only_run), str(image), "--normal-class", "3"]) == 0
    detector = load_detector(teacher_only_run, "teacher", 3)
    assert float(capsys.readouterr().out.splitlines()[1].split(",")[2]) == pytest.approx(
        detector.info.threshold
    )


def test_a_network_that_the_run_lacks_is_refused(student_only_run, tmp_path, refused):
    command = ["export", student_only_run, "--output", tmp_path / "x.onnx", "--normal-class", "3"]
    refused([*command, "--network", "teacher"], "--network teacher", "student-only", "student")
    assert not (tmp_path / "x.onnx").exists()
