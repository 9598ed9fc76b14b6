"""The user's own images as a data set: MVTec's folders and .npz files, and every refusal."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from image_helpers import picture, product_photos, save

from pkd.data import image_files as images
from pkd.data.folder import load_folder
from pkd.data.image_files import read_image
from pkd.data.npz import load_npz
from pkd.utils.errors import PkdError


@pytest.fixture
def photos(tmp_path):
    return product_photos(tmp_path / "photos")


def test_folders_below_test_are_the_classes_good_first(photos):
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
    assert data.left_out == ()


def test_sizes_and_formats_may_be_mixed(photos):
    for k, suffix in enumerate((".jpg", ".bmp", ".tiff", ".webp")):
        save(picture(k, 30 + k), photos / "train" / "good" / f"more{suffix}")
    assert load_folder(photos, 32).train_images.shape == (16, 3, 32, 32)  # WebP is always RGB


@pytest.mark.parametrize(("where", "channels"), [("train/good", 3), ("test/good", 1)])
def test_training_images_decide_on_colour(where, channels, photos):
    save(picture(0, colour=True), photos / where / "colour.png")
    data = load_folder(photos, 16)
    assert data.train_images.shape[1] == data.test_images.shape[1] == channels


@pytest.mark.parametrize("channels", [1, 3])
def test_all_images_are_brought_to_the_channels_asked_for(channels, photos):
    save(picture(0, colour=True), photos / "train" / "good" / "colour.png")
    data = load_folder(photos, 16, channels)
    assert data.train_images.shape[1] == data.test_images.shape[1] == channels


def test_unreadable_files_are_named_all_and_left_out_on_demand(photos):
    bad = [photos / "train/good/007.png", photos / "test/scratch/001.png"]
    for path in bad:
        path.write_text("no image")
    with pytest.raises(PkdError, match=r"2 images cannot be used.*--skip-bad") as caught:
        load_folder(photos, 16)
    assert all(str(path) in str(caught.value) for path in bad)
    data = load_folder(photos, 16, skip_bad=True)
    assert set(data.left_out) == set(bad)
    assert len(data.train_images) == len(data.train_labels) == 11
    assert data.test_labels.tolist() == [0] * 4 + [1] * 3


def test_of_many_unreadable_files_ten_are_named(photos):
    for path in (photos / "train/good").iterdir():
        path.write_text("no image")
    with pytest.raises(PkdError, match=r"12 images cannot be used.*; and 2 more"):
        load_folder(photos, 16)


def test_a_folder_without_a_readable_training_image_is_refused_even_then(photos):
    for path in (photos / "train/good").iterdir():
        path.write_text("no image")
    with pytest.raises(PkdError, match=r"no image in .*train/good can be read"):
        load_folder(photos, 16, skip_bad=True)


def test_a_folder_without_permission_is_named(photos, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(PkdError, match=r"train cannot be read \(Permission denied\)"):
        load_folder(photos, 16)


def test_an_image_bomb_is_refused_by_name(photos, monkeypatch):
    save(picture(0, 60), photos / "train" / "good" / "bomb.png")
    monkeypatch.setattr(images.Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(PkdError, match=r"1 image cannot be used: .*bomb\.png.*decompression bomb"):
        load_folder(photos, 16)


LAYOUTS = {
    "nothing": (lambda folder: shutil.rmtree(folder), "no folder test"),
    "no train": (lambda folder: shutil.rmtree(folder / "train"), "no folder train/good"),
    "no test": (lambda folder: shutil.rmtree(folder / "test"), "no folder test"),
    "no good test": (lambda folder: shutil.rmtree(folder / "test/good"), "test/good holds no"),
    "no novel": (lambda folder: shutil.rmtree(folder / "test/scratch"), r"pkd\.Detector"),
    "bad train": (
        lambda folder: save(picture(0), folder / "train/scratch/1.png"),
        "train has scratch beside good",
    ),
    "no class": (lambda folder: save(picture(0), folder / "test/1.png"), "images in no class"),
}


@pytest.mark.parametrize(("change", "words"), LAYOUTS.values(), ids=LAYOUTS)
def test_another_layout_is_refused_with_the_one_to_take(change, words, photos):
    change(photos)
    with pytest.raises(PkdError, match=words):
        load_folder(photos, 16)


@pytest.mark.parametrize("name", ["train/good", "test/good"])
def test_an_empty_folder_is_refused(name, photos):
    shutil.rmtree(photos / name)
    (photos / name).mkdir()
    with pytest.raises(PkdError, match=f"{name} holds no images: put normal images into"):
        load_folder(photos, 16)


def arrays(**changes):
    rng = np.random.default_rng(0)
    train, test = rng.random((2, 10, 9, 9))
    found = {"train_images": train, "test_images": test, "test_labels": np.arange(10) % 2}
    return {k: v for k, v in (found | changes).items() if v is not None}


def npz(folder, **changes):
    np.savez(folder / "data.npz", **arrays(**changes))
    return folder / "data.npz"


def test_arrays_become_a_data_set(tmp_path):
    given = arrays()
    data = load_npz(npz(tmp_path))
    assert data.classes == ("0", "1")
    assert data.train_images.shape == data.test_images.shape == (10, 1, 9, 9)
    np.testing.assert_array_equal(data.test_images[:, 0], np.rint(given["test_images"] * 255))
    assert data.train_labels.tolist() == [0] * 10
    np.testing.assert_array_equal(data.test_labels, given["test_labels"])


def test_arrays_may_name_classes_have_labels_and_colours(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (10, 9, 9, 3), np.uint8)
    changes = {"train_images": images, "test_images": np.moveaxis(images, 3, 1)}
    labels = np.arange(10, dtype=np.uint8) % 3
    names = np.array(["cap", "bottle", "box"])
    data = load_npz(npz(tmp_path, **changes, train_labels=labels, classes=names))
    assert data.classes == ("cap", "bottle", "box")
    assert data.train_labels.tolist() == labels.tolist()
    np.testing.assert_array_equal(data.train_images, data.test_images)


def test_test_images_span_what_training_images_do(tmp_path):
    train, test = np.full((2, 4, 8, 8), 4.0)
    train[0, 0, 0], test[0, 0, :2] = 20.0, (12.0, 100.0)
    data = load_npz(npz(tmp_path, train_images=train, test_images=test, test_labels=np.arange(4)))
    assert data.test_images[0, 0, 0, :3].tolist() == [128, 255, 0]


NAN, INF = arrays()["train_images"], arrays()["train_images"]
NAN[3, 1, 1], INF[2, 0, 0] = np.nan, np.inf
REFUSED = {
    "no labels": ({"test_labels": None}, "has no test_labels"),
    "nan": ({"train_images": NAN}, "NaN or infinite"),
    "inf": ({"test_images": INF}, "NaN or infinite"),
    "objects": ({"train_images": np.array([{}])}, "cannot be read"),
    "texts": ({"train_images": np.array(["a"])}, "save them as numbers"),
    "empty": ({"train_images": np.empty((0, 9, 9))}, "no images"),
    "flat": ({"train_images": np.zeros((5, 81))}, "flattened"),
    "channels": ({"train_images": np.zeros((5, 3, 9, 9))}, "3 channels and test images 1"),
    "few labels": ({"test_labels": np.arange(9)}, "must be 10 integers"),
    "negative labels": ({"test_labels": np.arange(10) - 1}, "integers from 0"),
    "real labels": ({"test_labels": np.arange(10) / 2}, "integers from 0"),
    "few names": ({"classes": np.array(["one"])}, "1 names, but there is a label 1"),
}


@pytest.mark.parametrize(("changes", "words"), REFUSED.values(), ids=REFUSED)
def test_arrays_that_do_not_fit_are_refused(changes, words, tmp_path):
    with pytest.raises(PkdError, match=r"data\.npz.*" + words):
        load_npz(npz(tmp_path, **changes))


@pytest.mark.parametrize("content", [None, b"", b"text", "cut", "npy"])
def test_a_file_that_is_no_npz_is_refused(content, tmp_path):
    path = npz(tmp_path)
    if content is None:
        path.unlink()
    elif content == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif content == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        path.write_bytes(content)
    with pytest.raises(
        PkdError, match=r"data\.npz cannot be read as an \.npz file .*numpy\.savez"
    ) as caught:
        load_npz(path)
    assert "pickle" not in str(caught.value)
