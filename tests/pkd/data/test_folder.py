"""Folders of image files in MVTec's layout: classes, sizes, colours and every error."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from image_helpers import picture, product_photos, save

from pkd.data.folder import load_folder
from pkd.data.image_files import read_image
from pkd.utils.errors import DataError


@pytest.fixture
def photos(tmp_path):
    return product_photos(tmp_path / "photos")


def test_folders_in_test_are_the_classes_and_good_is_the_first(photos):
    save(picture(300, novel=True), photos / "test" / "bent" / "left" / "top" / "1.png")
    data = load_folder(photos, 16)
    assert data.classes == ("good", "bent", "scratch")
    assert data.train_images.shape == (12, 1, 16, 16)
    assert data.train_images.dtype == data.test_images.dtype == np.uint8
    assert data.train_labels.tolist() == [0] * 12
    assert data.test_labels.tolist() == [0] * 4 + [1] + [2] * 4
    nested = read_image(photos / "test" / "bent" / "left" / "top" / "1.png", False, 16)
    np.testing.assert_array_equal(data.test_images[4], nested)
    first = read_image(photos / "train" / "good" / "000.png", False, 16)
    np.testing.assert_array_equal(data.train_images[0], first)
    assert data.skipped_files == ()


def test_sizes_and_formats_may_be_mixed(photos):
    for k, suffix in enumerate((".jpg", ".bmp", ".tiff", ".webp")):
        save(picture(k, 30 + k), photos / "train" / "good" / f"more{suffix}")
    assert load_folder(photos, 32).train_images.shape == (16, 3, 32, 32)  # WebP is always RGB


@pytest.mark.parametrize(("where", "channels"), [("train/good", 3), ("test/good", 1)])
def test_one_training_image_in_colour_makes_all_images_rgb(where, channels, photos):
    save(picture(0, colour=True), photos / where / "colour.png")
    data = load_folder(photos, 16)
    assert data.train_images.shape[1] == data.test_images.shape[1] == channels


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_converts_all_images(channels, photos):
    save(picture(0, colour=True), photos / "train" / "good" / "colour.png")
    data = load_folder(photos, 16, channels)
    assert data.train_images.shape[1] == data.test_images.shape[1] == channels


def test_unreadable_files_are_all_listed_or_skipped(photos):
    bad = [photos / "train/good/007.png", photos / "test/scratch/001.png"]
    for path in bad:
        path.write_text("no image")
    with pytest.raises(DataError, match=r"2 images cannot be used.*`skip_bad`") as caught:
        load_folder(photos, 16)
    assert all(str(path) in str(caught.value) for path in bad)
    data = load_folder(photos, 16, skip_bad=True)
    assert set(data.skipped_files) == set(bad)
    assert len(data.train_images) == len(data.train_labels) == 11
    assert data.test_labels.tolist() == [0] * 4 + [1] * 3


def test_an_error_lists_at_most_ten_unreadable_files(photos):
    for path in (photos / "train/good").iterdir():
        path.write_text("no image")
    with pytest.raises(DataError, match=r"12 images cannot be used.*; and 2 more"):
        load_folder(photos, 16)


def test_skipping_needs_at_least_one_readable_training_image(photos):
    for path in (photos / "train/good").iterdir():
        path.write_text("no image")
    with pytest.raises(DataError, match=r"no image in .*train/good can be read"):
        load_folder(photos, 16, skip_bad=True)


def test_a_folder_without_permission_is_reported(photos, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"train cannot be read \(Permission denied\)"):
        load_folder(photos, 16)


def test_a_decompression_bomb_is_reported(photos, monkeypatch):
    save(picture(0, 60), photos / "train" / "good" / "bomb.png")
    monkeypatch.setenv("PKD_MAX_PIXELS", "1000")
    with pytest.raises(DataError, match=r"1 image cannot be used: .*bomb\.png: it has 60 x 60"):
        load_folder(photos, 16)


LAYOUTS = {
    "nothing": (lambda folder: shutil.rmtree(folder), "no folder test"),
    "no train": (lambda folder: shutil.rmtree(folder / "train"), "no folder train/good"),
    "no test": (lambda folder: shutil.rmtree(folder / "test"), "no folder test"),
    "no good test": (lambda folder: shutil.rmtree(folder / "test/good"), "test/good contains no"),
    "no novel": (lambda folder: shutil.rmtree(folder / "test/scratch"), r"pkd\.Detector"),
    "bad train": (
        lambda folder: save(picture(0), folder / "train/scratch/1.png"),
        "train has scratch beside good",
    ),
    "no class": (
        lambda folder: save(picture(0), folder / "test/1.png"),
        "images outside the folders of classes",
    ),
}


@pytest.mark.parametrize(("change", "words"), LAYOUTS.values(), ids=LAYOUTS)
def test_another_layout_is_refused_and_the_error_describes_the_layout(change, words, photos):
    change(photos)
    with pytest.raises(DataError, match=words):
        load_folder(photos, 16)


@pytest.mark.parametrize("name", ["train/good", "test/good"])
def test_an_empty_folder_is_refused(name, photos):
    shutil.rmtree(photos / name)
    (photos / name).mkdir()
    with pytest.raises(
        DataError, match=f"{name} contains no images: put normal training images into"
    ):
        load_folder(photos, 16)
