"""Exported detectors: the network of the run, whatever file it is in; every refusal."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from image_helpers import product_photos
from pkd_kernels import novelty_score, scale_pixels

from pkd.cli.main import main
from pkd.data.arrays import resize
from pkd.data.standard import load
from pkd.deploy import export
from pkd.deploy.export import difference, to_onnx, to_torch
from pkd.deploy.inference import Card, open_onnx
from pkd.models.ganomaly import Architecture, Generator
from pkd.runs.folder import RunFolder
from pkd.scoring.single import Scorer, in_torch

CARD = Card("student", "digits", 5, "5", 1, 1, 32, 0.1, 0.05, "0.1.0")
ARCHITECTURES = {
    "paper": Architecture(1, (1, 2, 4)),
    "first convolution not normalised": Architecture(1, (2, 3, 4), norm_first=False),
    "batch norm": Architecture(3, (2, 3, 4), norm="batch"),
    "16x16": Architecture(3, (2, 3, 4), latent=5, image_size=16),
    "128x128": Architecture(1, (2, 3, 4), latent=5, image_size=128),
}


def stack_of_three(architecture: Architecture) -> Generator:
    """With parameters and statistics that all count."""
    generator = Generator(architecture, 3).requires_grad_(False).eval()
    draw = torch.Generator().manual_seed(0)
    for name, tensor in generator.state_dict().items():
        tensor.normal_(0, 0.3, generator=draw)
        if name.endswith(("gamma", "running_var")):
            tensor.abs_().add_(0.5)
    return generator


def pictures(count: int, architecture: Architecture) -> np.ndarray:
    shape = (count, architecture.channels, architecture.image_size, architecture.image_size)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def wanted(generator: Generator, images: np.ndarray, member: int) -> np.ndarray:
    made = generator(scale_pixels(torch.from_numpy(images)))
    return novelty_score(made.z1, made.z2, stack=3)[:, member].numpy()


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_scorer_is_its_member_of_the_stack(architecture):
    generator, images = stack_of_three(architecture), pictures(4, architecture)
    for member in range(3):
        expected = wanted(generator, images, member)
        scorer = Scorer(generator, member)
        for pixels in (torch.from_numpy(images), torch.from_numpy(images).float()):
            np.testing.assert_allclose(scorer(pixels).numpy(), expected, rtol=1e-5)
    assert len({round(float(wanted(generator, images, m)[0]), 6) for m in range(3)}) == 3


@pytest.mark.parametrize("make", [to_onnx, to_torch])
@pytest.mark.parametrize(("name", "dtype"), [("paper", torch.uint8), ("batch norm", torch.float32)])
def test_exported_files_give_the_same_scores_in_batches_of_any_size(name, make, dtype):
    architecture = ARCHITECTURES[name]
    generator, images = stack_of_three(architecture), pictures(7, architecture)
    card = Card(**vars(CARD) | {"channels": architecture.channels})
    _, score = make(Scorer(generator, 1), card, dtype)
    expected = wanted(generator, images, 1)
    for size in (1, 2, 7):
        np.testing.assert_allclose(score(images[:size]), expected[:size], rtol=1e-5)


def test_onnx_graph_is_as_plain_as_the_network():
    architecture = ARCHITECTURES["paper"]
    content, _ = to_onnx(Scorer(stack_of_three(architecture)), CARD, torch.uint8)
    graph = onnx.load_from_string(content).graph
    ops = [node.op_type for node in graph.node]
    assert ops.count("Conv") + ops.count("ConvTranspose") + ops.count("Gemm") == 12
    assert ops.count("InstanceNormalization") == 9
    assert len(ops) <= 42
    assert len(content) < 4 * sum(p.numel() for p in Generator(architecture).parameters()) + 20_000
    for path in (Path(torch.__file__).parent, Path(export.__file__).parent):
        assert str(path).encode() not in content


def test_difference_is_relative_and_over_every_image():
    images = np.zeros((3, 1, 2, 2), np.uint8)
    expected = np.float32([1, 2, 4])
    for k, scores in enumerate(([1.5, 2, 4], [1, 3, 4], [1, 2, 2])):
        given = iter([np.float32(scores[:1]), np.float32(scores[1:])])
        assert difference(lambda _, given=given: next(given), images, expected) == 0.5, k
    assert difference(in_torch(lambda x: x.float().mean((1, 2, 3))), images, np.zeros(3)) == 0


def exported(run, output, *flags):
    return main(["export", str(run), "--output", str(output), *map(str, flags)])


def test_card_of_an_exported_student_is_what_the_run_knows(small_run, small_onnx):
    card, _ = open_onnx(small_onnx)
    results = json.loads((small_run / "results.json").read_text())
    member = results["members"][3]
    assert (member["normal_class"], member["seed"]) == (5, 1)
    assert card == Card(
        "student", "digits", 5, "5", 1, 1, 32, member["threshold"]["step2"], 0.05, card.version
    )
    assert card.version == results["versions"]["pkdgan"]


def test_teacher_is_the_one_that_its_own_phase_judged(small_run, tmp_path):
    assert (
        exported(small_run, tmp_path / "t.onnx", "--network", "teacher", "--normal-class", 3) == 0
    )
    card, score = open_onnx(tmp_path / "t.onnx")
    results = json.loads((small_run / "results.json").read_text())
    assert card.network == "teacher"
    assert card.threshold == results["members"][0]["threshold"]["teacher"]
    checkpoint = RunFolder.open(small_run).load_tensors("teacher.safetensors", "teacher.generator.")
    generator = Generator(Architecture(1, (2, 4, 8), latent=8), 4).requires_grad_(False)
    generator.load_state_dict(
        {k.removeprefix("teacher.generator."): v for k, v in checkpoint.items()}
    )
    images = resize(load("digits").test_images[:5], 32)
    made = generator(scale_pixels(images))
    expected = novelty_score(made.z1, made.z2, stack=4)[:, 0].numpy()
    np.testing.assert_allclose(score(images.numpy()), expected, rtol=1e-4)


def test_export_tells_how_well_the_file_agrees(small_run, tmp_path, capsys):
    assert exported(small_run, tmp_path / "s.pt2", "--normal-class", 5, "--format", "torch") == 0
    said = capsys.readouterr().out
    assert "student of class 5 5, seed 0" in said
    apart = float(said.split("by at most ")[1].split()[0])
    assert 0 <= apart <= 1e-4
    loaded = {"pkd.json": ""}
    program = torch.export.load(tmp_path / "s.pt2", extra_files=loaded)
    assert json.loads(loaded["pkd.json"])["pkd.class_name"] == "5"
    assert program.module()(torch.zeros(3, 1, 32, 32, dtype=torch.uint8)).shape == (3,)


def test_images_of_a_run_that_moved_are_found(tmp_path):
    photos = product_photos(tmp_path / "photos")
    small = ("--latent", "8", "--teacher-widths", "2-4-8", "--student-widths", "1-2-4")
    short = ("--teacher-epochs", "1", "--step1-epochs", "1", "--step2-epochs", "1")
    run = tmp_path / "run"
    data = ("--dataset", "folder", "--data-dir", str(photos))
    assert main(["train", *data, *small, *short, "--out", str(run)]) == 0
    moved = photos.rename(tmp_path / "moved")
    assert exported(run, tmp_path / "s.onnx") == 2
    assert not (tmp_path / "s.onnx").exists()
    assert exported(run, tmp_path / "s.onnx", "--data-dir", moved, "--input", "float") == 0
    card, score = open_onnx(tmp_path / "s.onnx")
    assert card.class_name == "good"
    assert score(np.zeros((2, 1, 32, 32), np.uint8)).shape == (2,)


def test_a_file_is_replaced_only_when_asked(small_run, tmp_path, refused):
    file = tmp_path / "s.onnx"
    file.write_text("dear")
    arguments = ("export", small_run, "--output", file, "--normal-class", 3)
    refused(arguments, f"{file} exists", "--overwrite")
    assert file.read_text() == "dear"
    assert main([*map(str, arguments), "--overwrite"]) == 0
    assert open_onnx(file)[0].normal_class == 3
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_scores_differently_is_not_written(small_run, tmp_path, refused, monkeypatch):
    def wrong(scorer, card, dtype):
        content, score = to_torch(scorer, card, dtype)
        return content, lambda images: score(images) * np.float32(1.001)

    monkeypatch.setitem(export.FORMATS, "torch", wrong)
    file = tmp_path / "s.pt2"
    file.write_text("dear")
    flags = ("--normal-class", 3, "--format", "torch", "--overwrite")
    refused(("export", small_run, "--output", file, *flags), "1.0e-03", "nothing was written")
    assert file.read_text() == "dear"
    assert list(tmp_path.iterdir()) == [file]


REFUSED_CHOICES = {
    "no class": ((), ("--normal-class is not given", "3 3, 5 5")),
    "unknown class": (("--normal-class", 4), ("4 is not in this run", "3 3, 5 5")),
    "class of another type": (("--normal-class", "x"), ("--normal-class",)),
    "unknown seed": (("--normal-class", 3, "--seed", 2), ("--seed 2", "choose one of 0, 1")),
    "unknown format": (("--normal-class", 3, "--format", "tflite"), ("onnx", "torch")),
}


@pytest.mark.parametrize(("flags", "words"), REFUSED_CHOICES.values(), ids=REFUSED_CHOICES)
def test_a_choice_that_a_run_has_not(flags, words, small_run, tmp_path, refused):
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
def test_an_output_that_cannot_be_written(name, words, small_run, tmp_path, refused):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    output = tmp_path / name
    refused(("export", small_run, "--output", output, "--normal-class", 3), output, *words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def unfinished(run):
    (run / "results.json").unlink()


def within_a_phase(run):
    progress = json.loads((run / "progress.json").read_text())
    (run / "progress.json").write_text(json.dumps(progress | {"phase": 2}))


def without_thresholds(run):
    results = json.loads((run / "results.json").read_text())
    for member in results["members"]:
        del member["threshold"]
    (run / "results.json").write_text(json.dumps(results))


def of_fewer_members(run):
    results = json.loads((run / "results.json").read_text())
    del results["members"][1:]
    (run / "results.json").write_text(json.dumps(results))


def without_a_setting(run):
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("held_out:", "gone:"))


def cut(run):
    file = run / "checkpoints" / "step2.safetensors"
    file.write_bytes(file.read_bytes()[:100])


DAMAGES = {
    "unfinished": (unfinished, "pkd train --resume"),
    "within a phase": (within_a_phase, "pkd train --resume"),
    "results of another version": (without_thresholds, "'threshold'"),
    "results of another run": (of_fewer_members, "does not fit"),
    "settings of another version": (without_a_setting, "another version of pkd"),
    "cut checkpoint": (cut, "step2.safetensors"),
    "no run": (lambda run: (run / "config.yaml").unlink(), "is not a run folder"),
}


@pytest.mark.parametrize(("damage", "word"), DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("command", ["export", "score"])
def test_a_run_that_cannot_be_used(command, damage, word, small_run, tmp_path, refused):
    run, output = tmp_path / "run", tmp_path / "output.csv"
    shutil.copytree(small_run, run)
    damage(run)
    photos = product_photos(tmp_path / "photos", 1, 1) / "test"
    images = [photos] if command == "score" else []
    refused((command, run, *images, "--output", output, "--normal-class", 3), run, word)
    assert not output.exists()
