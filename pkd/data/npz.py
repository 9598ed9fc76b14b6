"""TODO."""

import zipfile
from pathlib import Path

import numpy as np

from pkd.data.arrays import channels_first, pixel_range, to_bytes
from pkd.data.dataset import Dataset
from pkd.utils.errors import DataError, PkdError

_ARRAYS = (
    "save it with numpy.savez(FILE, train_images=..., test_images=..., test_labels=...), labels 0 "
    "for the class of train_images, and give --data-dir FILE"
)


def load_npz(file: Path) -> Dataset:
    """Arrays of an .npz file.

    train_images, test_images: (n, H, W), (n, C, H, W) or (n, H, W, C), uint8 or numbers; those that
    are not uint8 span what `images.pixel_range` says of the training images.
    test_labels: (n,) integers from 0; train_labels likewise, 0 for all where there are none.
    classes: (k,) names, optional.

    Raises:
        PkdError: the file cannot be read, an array is missing or does not fit the others.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = dict(arrays)
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        # NumPy takes what is no zip file for a pickle, and advises to load it unsafely.
        reason = "it is none" if file.is_file() and not zipfile.is_zipfile(file) else error
        raise PkdError(f"{file} cannot be read as an .npz file ({reason}): {_ARRAYS}") from error
    missing = {"train_images", "test_images", "test_labels"} - found.keys()
    if missing:
        raise PkdError(f"{file} has no {', '.join(sorted(missing))}: {_ARRAYS}")
    found.setdefault("train_labels", np.zeros(len(found["train_images"]), np.int64))
    try:
        images = {s: _checked(found[f"{s}_images"]) for s in ("train", "test")}
        labels = {s: _labels(found[f"{s}_labels"], images[s], s) for s in images}
        return _dataset(images, labels, found.get("classes"))
    except DataError as error:
        raise PkdError(f"{file}: {error}") from error


def _dataset(
    images: dict[str, np.ndarray], labels: dict[str, np.ndarray], names: np.ndarray | None
) -> Dataset:
    train, test = images.values()
    if train.shape[1] != test.shape[1]:
        raise DataError(
            f"training images have {train.shape[1]} channels and test images {test.shape[1]}: "
            "convert one to the other"
        )
    largest = max(int(of.max()) for of in labels.values())
    classes = tuple(map(str, range(largest + 1) if names is None else names))
    if len(classes) <= largest:
        raise DataError(f"classes has {len(classes)} names, but there is a label {largest}")
    span = pixel_range(train)
    return Dataset(
        "npz",
        classes,
        to_bytes(train, span),
        labels["train"],
        to_bytes(test, span),
        labels["test"],
    )


def _checked(images: np.ndarray) -> np.ndarray:
    """(n, C, H, W) of finite numbers."""
    if images.dtype.kind not in "buif":
        raise DataError(f"images of type {images.dtype} cannot be used: save them as numbers")
    if not images.size:
        raise DataError("it holds no images: save at least two for training and two for the test")
    if not np.isfinite(images).all():
        raise DataError("images hold NaN or infinite pixels: replace them or leave them out")
    return channels_first(images)


def _labels(labels: np.ndarray, images: np.ndarray, split: str) -> np.ndarray:
    if labels.shape != (len(images),) or labels.dtype.kind not in "bui" or (labels < 0).any():
        raise DataError(
            f"{split}_labels, of shape {labels.shape} and type {labels.dtype}, must be "
            f"{len(images)} integers from 0, one for each image"
        )
    return labels.astype(np.int64)
