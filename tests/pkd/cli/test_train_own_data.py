"""`pkd train` on the user's own images: folders and .npz files."""

import json

import numpy as np
import pytest
import yaml
from image_helpers import picture, product_photos, save
from run_helpers import PHASES, own_data_command, table_rows

from pkd.cli.main import main


def test_photos_are_trained_on_and_evaluated(photos, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(own_data_command("folder", photos, out)) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["classes"] == ["good", "scratch"]
    assert (results["image_size"], results["channels"]) == (16, 1)
    (member,) = results["members"]
    assert (member["normal_class"], member["class_name"]) == (0, "good")
    assert list(member["auc"]) == list(member["threshold"]) == PHASES
    assert results["config"]["batch_size"] == 8
    capsys.readouterr()
    assert main(["evaluate", str(out)]) == 0
    rows = table_rows(capsys.readouterr().out)
    auc = [f"{member['auc'][phase]:.4f}" for phase in PHASES]
    assert rows[1] == ["0 good", "0", *auc]
    moved = photos.rename(tmp_path / "moved")
    assert main(["evaluate", str(out), "--data-dir", str(moved)]) == 0


def test_photos_in_colour_train_networks_with_three_channels(photos, tmp_path):
    save(picture(0, 40, colour=True), photos / "train" / "good" / "colour.jpg")
    assert main(own_data_command("folder", photos, tmp_path / "run", "--seeds", "2")) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["channels"] == 3
    assert len(results["members"]) == 2


def test_a_run_keeps_its_channels_when_images_in_colour_are_added(photos, tmp_path):
    out = tmp_path / "run"
    assert main(own_data_command("folder", photos, out)) == 0
    assert yaml.safe_load((out / "config.yaml").read_text())["channels"] == 1
    save(picture(0, 40, colour=True), photos / "train" / "good" / "colour.jpg")
    assert main(["evaluate", str(out)]) == 0
    assert main(own_data_command("folder", photos, tmp_path / "grey", "--channels", "1")) == 0


def test_arrays_with_other_channels_than_the_run_are_refused(tmp_path, refused):
    for name, shape in (("grey", (8, 20, 20)), ("rgb", (8, 20, 20, 3))):
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        arrays = {"train_images": images, "test_images": images, "test_labels": np.arange(8) % 2}
        np.savez(tmp_path / f"{name}.npz", **arrays)
    out = tmp_path / "run"
    assert main(own_data_command("npz", tmp_path / "grey.npz", out)) == 0
    words = ("--channels is 1", "npz has images with 3 channels: convert")
    refused(["evaluate", out, "--data-dir", tmp_path / "rgb.npz"], *words, unchanged=tmp_path)
    argv = own_data_command("npz", tmp_path / "grey.npz", tmp_path / "other", "--channels", "3")
    words = ("--channels is 3", "npz has images with 1 channel:")
    refused(argv, *words, unchanged=tmp_path)


@pytest.mark.parametrize("size", ["32", pytest.param("64", marks=pytest.mark.slow)])
def test_arrays_train_every_class_that_has_training_images(size, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "data.npz",
        train_images=rng.random((30, 20, 24, 3)),
        train_labels=np.repeat([0, 2], 15),
        test_images=rng.random((12, 20, 24, 3)),
        test_labels=np.arange(12) % 3,
        classes=np.array(["nut", "dust", "bolt"]),
    )
    data, out = tmp_path / "data.npz", tmp_path / "run"
    assert main(own_data_command("npz", data, out, "--image-size", size)) == 0
    results = json.loads((out / "results.json").read_text())
    assert [member["class_name"] for member in results["members"]] == ["nut", "bolt"]
    assert (results["image_size"], results["channels"]) == (int(size), 3)


def test_unreadable_photos_are_skipped_and_counted(photos, tmp_path, capsys, refused):
    bad = photos / "train" / "good" / "003.png"
    bad.write_text("no image")
    argv = own_data_command("folder", photos, tmp_path / "run")
    refused(argv, bad, "1 image cannot be used", "--skip-bad", unchanged=tmp_path)
    assert main([*argv, "--skip-bad"]) == 0
    output = capsys.readouterr().out
    assert "unreadable files left out: 1\n" in output
    assert str(bad) in output
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["left_out"] == 1
    assert main(["evaluate", str(tmp_path / "run")]) == 0


def test_identical_images_give_finite_results(tmp_path):
    images = np.full((12, 20, 20), 90, np.uint8)
    labels = np.arange(12) % 2
    np.savez(tmp_path / "data.npz", train_images=images, test_images=images, test_labels=labels)
    assert main(own_data_command("npz", tmp_path / "data.npz", tmp_path / "run")) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    (member,) = results["members"]
    assert list(member["auc"].values()) == [0.5] * 3
    assert np.isfinite(list(member["threshold"].values())).all()


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ("folder", ("--data-dir is missing", "'folder'", "train/good")),
        ("npz", ("--data-dir is missing", "an .npz file")),
    ],
)
def test_own_data_need_a_path(dataset, words, refused, tmp_path):
    refused(["train", "--dataset", dataset, "--out", tmp_path / "run"], *words)
    assert not (tmp_path / "run").exists()


def test_one_training_photo_is_not_enough(refused, tmp_path):
    photos = product_photos(tmp_path / "photos", train=1)
    words = ("none of the 1 training images of class 0 good", "at least two")
    refused(own_data_command("folder", photos, tmp_path / "run"), *words, unchanged=tmp_path)


def test_a_decompression_bomb_is_refused(photos, refused, tmp_path, monkeypatch):
    save(picture(0, 60), photos / "test" / "scratch" / "bomb.png")
    monkeypatch.setenv("PKD_MAX_PIXELS", "1000")
    words = ("bomb.png", "60 x 60 pixels", "--skip-bad")
    refused(own_data_command("folder", photos, tmp_path / "run"), *words, unchanged=tmp_path)


def test_an_output_folder_below_a_file_is_refused(photos, refused, tmp_path):
    (tmp_path / "file").write_text("content of the user")
    words = ("cannot be written", "another path")
    argv = own_data_command("folder", photos, tmp_path / "file" / "run")
    refused(argv, *words, unchanged=tmp_path)
