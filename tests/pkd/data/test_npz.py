"""Data sets in .npz files: arrays, labels, class names and every error."""

import numpy as np
import pytest

from pkd.data.npz import load_npz
from pkd.utils.errors import DataError


def arrays(**changes):
    rng = np.random.default_rng(0)
    train, test = rng.random((2, 10, 9, 9))
    valid = {"train_images": train, "test_images": test, "test_labels": np.arange(10) % 2}
    return {k: v for k, v in (valid | changes).items() if v is not None}


def npz(folder, **changes):
    np.savez(folder / "data.npz", **arrays(**changes))
    return folder / "data.npz"


def test_arrays_are_loaded_as_a_data_set(tmp_path):
    given = arrays()
    data = load_npz(npz(tmp_path))
    assert data.classes == ("0", "1")
    assert data.train_images.shape == data.test_images.shape == (10, 1, 9, 9)
    np.testing.assert_array_equal(data.test_images[:, 0], np.rint(given["test_images"] * 255))
    assert data.train_labels.tolist() == [0] * 10
    np.testing.assert_array_equal(data.test_labels, given["test_labels"])


def test_training_labels_class_names_and_colours_are_optional(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (10, 9, 9, 3), np.uint8)
    changes = {"train_images": images, "test_images": np.moveaxis(images, 3, 1)}
    labels = np.arange(10, dtype=np.uint8) % 3
    names = np.array(["cap", "bottle", "box"])
    data = load_npz(npz(tmp_path, **changes, train_labels=labels, classes=names))
    assert data.classes == ("cap", "bottle", "box")
    assert data.train_labels.tolist() == labels.tolist()
    np.testing.assert_array_equal(data.train_images, data.test_images)


def test_test_images_are_scaled_by_the_pixel_range_of_the_training_images(tmp_path):
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
    "few names": ({"classes": np.array(["one"])}, "1 names, but the largest label is 1"),
}


@pytest.mark.parametrize(("changes", "words"), REFUSED.values(), ids=REFUSED)
def test_invalid_arrays_are_refused(changes, words, tmp_path):
    with pytest.raises(DataError, match=r"data\.npz.*" + words):
        load_npz(npz(tmp_path, **changes))


@pytest.mark.parametrize("content", [None, b"", b"text", "cut", "npy"])
def test_a_file_of_another_format_is_refused(content, tmp_path):
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
        DataError, match=r"data\.npz cannot be read as an \.npz file .*numpy\.savez"
    ) as caught:
        load_npz(path)
    assert "pickle" not in str(caught.value)
