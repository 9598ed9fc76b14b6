"""The arrays of an .npz file as a data set."""

import zipfile
from pathlib import Path

import numpy as np

from pkd.data.arrays import channels_first, pixel_range, to_uint8
from pkd.data.dataset import Dataset
from pkd.utils.errors import DataError

REQUIRED = ("train_images", "test_images", "test_labels")

_LAYOUT = (
    "save it with numpy.savez(FILE, train_images=..., test_images=..., test_labels=...), label 0 "
    "for the class of train_images, and set `data_dir` to FILE"
)


def load_npz(file: Path) -> Dataset:
    """Load the arrays of an .npz file.

    train_images, test_images: (n, H, W), (n, C, H, W) or (n, H, W, C) numbers; if they are not
        uint8, the `pixel_range` of the training images is mapped to 0..255.
    test_labels: (n,) integers from 0.
    train_labels: (n,) integers from 0; optional, default 0 for all images.
    classes: (k,) class names; optional, default the labels.

    Raises:
        DataError: the file cannot be read, or an array is missing or does not fit the others.
    """
    arrays = _read_arrays(file)
    missing = [name for name in REQUIRED if name not in arrays]
    if missing:
        raise DataError(f"{file} has no {', '.join(sorted(missing))}: {_LAYOUT}")
    try:
        return _make_dataset(arrays)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error


def _read_arrays(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        # NumPy takes any other file for a pickle; its message recommends unsafe loading.
        other_format = file.is_file() and not zipfile.is_zipfile(file)
        reason = "it has another format" if other_format else error
        raise DataError(f"{file} cannot be read as an .npz file ({reason}): {_LAYOUT}") from error


def _make_dataset(arrays: dict[str, np.ndarray]) -> Dataset:
    train, test = (_check_images(arrays[f"{split}_images"]) for split in ("train", "test"))
    if train.shape[1] != test.shape[1]:
        raise DataError(
            f"training images have {train.shape[1]} channels and test images {test.shape[1]}: "
            "convert one to the other"
        )
    zeros = np.zeros(len(train), np.int64)
    train_labels = _check_labels(arrays.get("train_labels", zeros), len(train), "train")
    test_labels = _check_labels(arrays["test_labels"], len(test), "test")
    largest = max(int(train_labels.max()), int(test_labels.max()))
    classes = tuple(map(str, arrays.get("classes", range(largest + 1))))
    if len(classes) <= largest:
        raise DataError(f"classes has {len(classes)} names, but the largest label is {largest}")
    black_white = pixel_range(train)
    return Dataset(
        "npz",
        classes,
        to_uint8(train, black_white),
        train_labels,
        to_uint8(test, black_white),
        test_labels,
    )


def _check_images(images: np.ndarray) -> np.ndarray:
    """Return images as (n, C, H, W); DataError if they are not finite numbers."""
    if images.dtype.kind not in "buif":
        raise DataError(f"images of type {images.dtype} cannot be used: save them as numbers")
    if not images.size:
        raise DataError("an array has no images: save at least two for training, two for the test")
    if not np.isfinite(images).all():
        raise DataError("images have NaN or infinite pixels: replace or remove them")
    return channels_first(images)


def _check_labels(labels: np.ndarray, images: int, split: str) -> np.ndarray:
    """Return labels as (n,) int64; DataError if they are not one integer from 0 for each image."""
    if labels.shape != (images,) or labels.dtype.kind not in "bui" or (labels < 0).any():
        raise DataError(
            f"{split}_labels, of shape {labels.shape} and type {labels.dtype}, must be "
            f"{images} integers from 0, one for each image"
        )
    return labels.astype(np.int64)
