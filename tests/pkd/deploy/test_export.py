"""Exported detectors score as the network of the run does; errors of `pkd export`."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from image_helpers import product_photos
from pkd_kernels import novelty_score, scale_pixels
from run_helpers import remove_checksums

from pkd.cli.main import main
from pkd.data.arrays import resize
from pkd.data.standard import load
from pkd.deploy import export
from pkd.deploy.export import relative_difference, to_onnx, to_torch
from pkd.deploy.inference import DetectorInfo, open_onnx
from pkd.models.architecture import Architecture
from pkd.models.ganomaly import Generator
from pkd.runs.folder import RunFolder
from pkd.scoring.single import Scorer, score_function

INFO = DetectorInfo("student", "digits", 5, "5", 1, 1, 32, 0.1, 0.05, "0.1.0")
ARCHITECTURES = {
    "paper": Architecture(1, (1, 2, 4)),
    "first convolution not normalised": Architecture(1, (2, 3, 4), norm_first=False),
    "batch norm": Architecture(3, (2, 3, 4), norm="batch"),
    "16x16": Architecture(3, (2, 3, 4), latent=5, image_size=16),
    "128x128": Architecture(1, (2, 3, 4), latent=5, image_size=128),
}


def stack_of_three(architecture: Architecture) -> Generator:
    """A stack in which all parameters and statistics influence the scores."""
    generator = Generator(architecture, 3).requires_grad_(False).eval()
    draw = torch.Generator().manual_seed(0)
    for name, tensor in generator.state_dict().items():
        tensor.normal_(0, 0.3, generator=draw)
        if name.endswith(("gamma", "running_var")):
            tensor.abs_().add_(0.5)
    return generator


def random_images(count: int, architecture: Architecture) -> np.ndarray:
    shape = (count, architecture.channels, architecture.image_size, architecture.image_size)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def scores_of_member(generator: Generator, images: np.ndarray, member: int) -> np.ndarray:
    outputs = generator(scale_pixels(torch.from_numpy(images)))
    return novelty_score(outputs.z1, outputs.z2, stack=3)[:, member].numpy()


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_scorer_gives_the_scores_of_its_member_of_the_stack(architecture):
    generator, images = stack_of_three(architecture), random_images(4, architecture)
    for member in range(3):
        expected = scores_of_member(generator, images, member)
        scorer = Scorer(generator, member)
        for pixels in (torch.from_numpy(images), torch.from_numpy(images).float()):
            np.testing.assert_allclose(scorer(pixels)[0].numpy(), expected, rtol=1e-5)
    first_scores = {round(float(scores_of_member(generator, images, m)[0]), 6) for m in range(3)}
    assert len(first_scores) == 3


@pytest.mark.parametrize("export_model", [to_onnx, to_torch])
@pytest.mark.parametrize(("name", "dtype"), [("paper", torch.uint8), ("batch norm", torch.float32)])
def test_exported_files_give_the_same_scores_in_batches_of_any_size(name, export_model, dtype):
    architecture = ARCHITECTURES[name]
    generator, images = stack_of_three(architecture), random_images(7, architecture)
    info = replace(INFO, channels=architecture.channels)
    _, score = export_model(Scorer(generator, 1), info, dtype)
    expected = scores_of_member(generator, images, 1)
    for size in (1, 2, 7):
        np.testing.assert_allclose(score(images[:size]), expected[:size], rtol=1e-5)


def test_onnx_graph_has_one_node_for_each_operation_and_no_source_paths():
    architecture = ARCHITECTURES["paper"]
    content, _ = to_onnx(Scorer(stack_of_three(architecture)), INFO, torch.uint8)
    graph = onnx.load_from_string(content).graph
    ops = [node.op_type for node in graph.node]
    assert ops.count("Conv") + ops.count("ConvTranspose") + ops.count("Gemm") == 12
    assert ops.count("InstanceNormalization") == 9
    assert len(ops) <= 48
    assert len(content) < 4 * sum(p.numel() for p in Generator(architecture).parameters()) + 20_000
    for path in (Path(torch.__file__).parent, Path(export.__file__).parent):
        assert str(path).encode() not in content


def test_difference_is_the_largest_relative_one_of_all_images():
    images = np.zeros((3, 1, 2, 2), np.uint8)
    expected = np.float32([1, 2, 4])
    for k, scores in enumerate(([1.5, 2, 4], [1, 3, 4], [1, 2, 2])):
        batches = iter([np.float32(scores[:1]), np.float32(scores[1:])])
        score = lambda _, batches=batches: next(batches)  # noqa: E731
        assert relative_difference(score, images, expected) == 0.5, k
    brightness = score_function(lambda x: (x.float().mean((1, 2, 3)),))
    assert relative_difference(brightness, images, np.zeros(3)) == 0


def export_command(run, output, *flags):
    """Exit code of `pkd export`."""
    return main(["export", str(run), "--output", str(output), *map(str, flags)])


def test_metadata_of_an_exported_student_match_the_run(small_run, small_onnx):
    info, _ = open_onnx(small_onnx)
    results = json.loads((small_run / "results.json").read_text())
    member = results["members"][3]
    assert (member["normal_class"], member["seed"]) == (5, 1)
    threshold, version = member["threshold"]["step2"], results["versions"]["pkdgan"]
    assert info == DetectorInfo("student", "digits", 5, "5", 1, 1, 32, threshold, 0.05, version)


def test_exported_teacher_has_the_weights_of_the_last_phase_that_evaluated_it(small_run, tmp_path):
    flags = ("--network", "teacher", "--normal-class", 3)
    assert export_command(small_run, tmp_path / "t.onnx", *flags) == 0
    info, score = open_onnx(tmp_path / "t.onnx")
    results = json.loads((small_run / "results.json").read_text())
    assert info.network == "teacher"
    assert info.threshold == results["members"][0]["threshold"]["teacher"]
    checkpoint = RunFolder.open(small_run).load_tensors("teacher.safetensors", "teacher.generator.")
    generator = Generator(Architecture(1, (2, 4, 8), latent=8), 4).requires_grad_(False)
    generator.load_state_dict(
        {k.removeprefix("teacher.generator."): v for k, v in checkpoint.items()}
    )
    images = resize(load("digits").test_images[:5], 32)
    outputs = generator(scale_pixels(images))
    expected = novelty_score(outputs.z1, outputs.z2, stack=4)[:, 0].numpy()
    np.testing.assert_allclose(score(images.numpy()), expected, rtol=1e-4)


def test_export_prints_the_difference_of_the_scores(small_run, tmp_path, capsys):
    flags = ("--normal-class", 5, "--format", "torch")
    assert export_command(small_run, tmp_path / "s.pt2", *flags) == 0
    printed = capsys.readouterr().out
    assert "student of class 5 5, seed 0" in printed
    difference = float(printed.split("by at most ")[1].split()[0])
    assert 0 <= difference <= 1e-4
    extra_files = {"pkd.json": ""}
    program = torch.export.load(tmp_path / "s.pt2", extra_files=extra_files)
    assert json.loads(extra_files["pkd.json"])["pkd.class_name"] == "5"
    assert program.module()(torch.zeros(3, 1, 32, 32, dtype=torch.uint8))[0].shape == (3,)


def test_export_reads_test_images_from_a_folder_that_moved(tmp_path):
    photos = product_photos(tmp_path / "photos")
    small = ("--latent", "8", "--teacher-widths", "2-4-8", "--student-widths", "1-2-4")
    short = ("--teacher-epochs", "1", "--step1-epochs", "1", "--step2-epochs", "1")
    run = tmp_path / "run"
    data = ("--dataset", "folder", "--data-dir", str(photos))
    assert main(["train", *data, *small, *short, "--out", str(run)]) == 0
    moved = photos.rename(tmp_path / "moved")
    assert export_command(run, tmp_path / "s.onnx") == 2
    assert not (tmp_path / "s.onnx").exists()
    flags = ("--data-dir", moved, "--input", "float")
    assert export_command(run, tmp_path / "s.onnx", *flags) == 0
    info, score = open_onnx(tmp_path / "s.onnx")
    assert info.class_name == "good"
    assert score(np.zeros((2, 1, 32, 32), np.uint8)).shape == (2,)


def test_existing_file_is_replaced_only_with_overwrite(small_run, tmp_path, refused):
    file = tmp_path / "s.onnx"
    file.write_text("old content")
    arguments = ("export", small_run, "--output", file, "--normal-class", 3)
    refused(arguments, f"{file} exists", "--overwrite")
    assert file.read_text() == "old content"
    assert main([*map(str, arguments), "--overwrite"]) == 0
    assert open_onnx(file)[0].normal_class == 3
    assert list(tmp_path.iterdir()) == [file]


def test_file_with_other_scores_is_not_written(small_run, tmp_path, refused, monkeypatch):
    def to_wrong_scores(scorer, info, dtype):
        content, score = to_torch(scorer, info, dtype)
        return content, lambda images: score(images) * np.float32(1.001)

    monkeypatch.setitem(export.FORMATS, "torch", to_wrong_scores)
    file = tmp_path / "s.pt2"
    file.write_text("old content")
    flags = ("--normal-class", 3, "--format", "torch", "--overwrite")
    refused(("export", small_run, "--output", file, *flags), "1.0e-03", "nothing was written")
    assert file.read_text() == "old content"
    assert list(tmp_path.iterdir()) == [file]


INVALID_SELECTIONS = {
    "no class": ((), ("--normal-class is not given", "3 3, 5 5")),
    "unknown class": (("--normal-class", 4), ("4 is not in this run", "3 3, 5 5")),
    "class of another type": (("--normal-class", "x"), ("--normal-class",)),
    "unknown seed": (("--normal-class", 3, "--seed", 2), ("--seed 2", "choose one of 0, 1")),
    "unknown format": (("--normal-class", 3, "--format", "tflite"), ("onnx", "torch")),
}


@pytest.mark.parametrize(("flags", "words"), INVALID_SELECTIONS.values(), ids=INVALID_SELECTIONS)
def test_invalid_selection_of_a_detector(flags, words, small_run, tmp_path, refused):
    refused(("export", small_run, "--output", tmp_path / "s.onnx", *flags), *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere/s.onnx", ("cannot be written", "No such file")),
        ("file/s.onnx", ("cannot be written", "Not a directory")),
        ("folder", ("is a folder",)),
    ],
)
def test_output_that_cannot_be_written(name, words, small_run, tmp_path, refused):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    output = tmp_path / name
    refused(("export", small_run, "--output", output, "--normal-class", 3), output, *words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def remove_results(run):
    (run / "results.json").unlink()


def rewind_progress(run):
    remove_checksums(run)
    progress = json.loads((run / "progress.json").read_text())
    (run / "progress.json").write_text(json.dumps(progress | {"phase": 2}))


def remove_thresholds(run):
    remove_checksums(run)
    results = json.loads((run / "results.json").read_text())
    for member in results["members"]:
        del member["threshold"]
    (run / "results.json").write_text(json.dumps(results))


def remove_members(run):
    remove_checksums(run)
    results = json.loads((run / "results.json").read_text())
    del results["members"][1:]
    (run / "results.json").write_text(json.dumps(results))


def rename_a_setting(run):
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("held_out:", "unknown:"))


def truncate_checkpoint(run):
    file = run / "checkpoints" / "step2.safetensors"
    file.write_bytes(file.read_bytes()[:100])


DAMAGES = {
    "unfinished": (remove_results, "pkd train --resume"),
    "within a phase": (rewind_progress, "pkd train --resume"),
    "results of another version": (remove_thresholds, "'threshold'"),
    "results of another run": (remove_members, "another number of members"),
    "settings of another version": (rename_a_setting, "another version of pkd"),
    "truncated checkpoint": (truncate_checkpoint, "step2.safetensors"),
    "no run": (lambda run: (run / "config.yaml").unlink(), "is not a run folder"),
}


@pytest.mark.parametrize(("damage", "word"), DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("command", ["export", "score"])
def test_run_that_cannot_be_used(command, damage, word, small_run, tmp_path, refused):
    run, output = tmp_path / "run", tmp_path / "output.csv"
    shutil.copytree(small_run, run)
    damage(run)
    photos = product_photos(tmp_path / "photos", 1, 1) / "test"
    images = [photos] if command == "score" else []
    refused((command, run, *images, "--output", output, "--normal-class", 3), run, word)
    assert not output.exists()
