"""The user's own images as a data set: a folder of files, or arrays in an .npz file."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pkd.datasets import Dataset
from pkd.errors import InputError, UserError
from pkd.images import (
    BadImage,
    channels_first,
    image_files,
    is_colour,
    pixel_range,
    read_image,
    to_bytes,
    unreadable,
)

NORMAL = "good"

_LAYOUT = (
    "put normal images into DIR/train/good, normal ones for the test into DIR/test/good, novel "
    "ones into DIR/test/ANY_NAME, and give --data-dir DIR"
)
_ARRAYS = (
    "save it with numpy.savez(FILE, train_images=..., test_images=..., test_labels=...), labels 0 "
    "for the class of train_images, and give --data-dir FILE"
)


def load_folder(
    folder: Path, image_size: int, channels: int | None = None, skip_bad: bool = False
) -> Dataset:
    """Images in MVTec's layout: train/good, test/good and other folders below test, each novel.

    Args:
        folder: holds train and test; folders within a class may be nested.
        image_size: height and width that images are brought to.
        channels: 1 brings all images to grey, 3 to RGB; None means 3 if any training image is in
            colour.
        skip_bad: leave unreadable files out instead of refusing the folder.

    Raises:
        UserError: another layout, no images, or unreadable files.
    """
    try:
        train, test = _files(folder)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}): {_LAYOUT}") from error
    bad: dict[Path, str] = {}
    colour = any(map(_is_colour, train)) if channels is None else channels == 3

    def read(paths: Sequence[Path]) -> np.ndarray:
        found = []
        for path in paths:
            try:
                found.append(read_image(path, colour, image_size))
            except BadImage as error:
                bad[path] = str(error)
        none = np.empty((0, 3 if colour else 1, image_size, image_size), np.uint8)
        return np.stack(found) if found else none

    train_images = read(train)
    test_images = [read(paths) for paths in test.values()]
    if bad and not skip_bad:
        raise unreadable(list(bad.values()))
    if not len(train_images):
        raise UserError(f"no image in {folder / 'train' / NORMAL} can be read: {_LAYOUT}")
    return Dataset(
        "folder",
        tuple(test),
        train_images,
        np.zeros(len(train_images), np.int64),
        np.concatenate(test_images),
        np.repeat(np.arange(len(test)), [len(images) for images in test_images]),
        tuple(bad),
    )


def _is_colour(path: Path) -> bool:
    try:
        return is_colour(path)
    except BadImage:
        return False  # reading it will name it


def _files(folder: Path) -> tuple[list[Path], dict[str, list[Path]]]:
    """Training files, and test files by class, the normal class first."""
    if not (folder / "train" / NORMAL).is_dir() or not (folder / "test").is_dir():
        missing = "train/good" if (folder / "test").is_dir() else "test"
        raise UserError(f"{folder} has no folder {missing}: {_LAYOUT}")
    others = _folders(folder / "train") - {NORMAL}
    if others:
        raise UserError(
            f"{folder / 'train'} has {', '.join(sorted(others))} beside good, but training takes "
            "normal images alone: move what is novel below test, and what is normal into good"
        )
    if any(path.parent == folder / "test" for path in image_files(folder / "test")):
        raise UserError(f"{folder / 'test'} has images in no class: {_LAYOUT}")
    classes = sorted(_folders(folder / "test"), key=lambda name: (name != NORMAL, name))
    test = {name: image_files(folder / "test" / name) for name in classes}
    test = {name: paths for name, paths in test.items() if paths}
    train = image_files(folder / "train" / NORMAL)
    for name, paths in (("train/good", train), ("test/good", test.get(NORMAL))):
        if not paths:
            raise UserError(f"{folder / name} holds no images: {_LAYOUT}")
    if len(test) < 2:
        raise UserError(
            f"{folder / 'test'} has no novel images beside good: {_LAYOUT}; without novel images, "
            "train pkd.Detector"
        )
    return train, test


def _folders(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")}


def load_npz(file: Path) -> Dataset:
    """Arrays of an .npz file.

    train_images, test_images: (n, H, W), (n, C, H, W) or (n, H, W, C), uint8 or numbers; those that
    are not uint8 span what `images.pixel_range` says of the training images.
    test_labels: (n,) integers from 0; train_labels likewise, 0 for all where there are none.
    classes: (k,) names, optional.

    Raises:
        UserError: the file cannot be read, an array is missing or does not fit the others.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = dict(arrays)
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        # NumPy takes what is no zip file for a pickle, and advises to load it unsafely.
        reason = "it is none" if file.is_file() and not zipfile.is_zipfile(file) else error
        raise UserError(f"{file} cannot be read as an .npz file ({reason}): {_ARRAYS}") from error
    missing = {"train_images", "test_images", "test_labels"} - found.keys()
    if missing:
        raise UserError(f"{file} has no {', '.join(sorted(missing))}: {_ARRAYS}")
    found.setdefault("train_labels", np.zeros(len(found["train_images"]), np.int64))
    try:
        images = {s: _checked(found[f"{s}_images"]) for s in ("train", "test")}
        labels = {s: _labels(found[f"{s}_labels"], images[s], s) for s in images}
        return _dataset(images, labels, found.get("classes"))
    except InputError as error:
        raise UserError(f"{file}: {error}") from error


def _dataset(
    images: dict[str, np.ndarray], labels: dict[str, np.ndarray], names: np.ndarray | None
) -> Dataset:
    train, test = images.values()
    if train.shape[1] != test.shape[1]:
        raise InputError(
            f"training images have {train.shape[1]} channels and test images {test.shape[1]}: "
            "convert one to the other"
        )
    largest = max(int(of.max()) for of in labels.values())
    classes = tuple(map(str, range(largest + 1) if names is None else names))
    if len(classes) <= largest:
        raise InputError(f"classes has {len(classes)} names, but there is a label {largest}")
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
        raise InputError(f"images of type {images.dtype} cannot be used: save them as numbers")
    if not images.size:
        raise InputError("it holds no images: save at least two for training and two for the test")
    if not np.isfinite(images).all():
        raise InputError("images hold NaN or infinite pixels: replace them or leave them out")
    return channels_first(images)


def _labels(labels: np.ndarray, images: np.ndarray, split: str) -> np.ndarray:
    if labels.shape != (len(images),) or labels.dtype.kind not in "bui" or (labels < 0).any():
        raise InputError(
            f"{split}_labels, of shape {labels.shape} and type {labels.dtype}, must be "
            f"{len(images)} integers from 0, one for each image"
        )
    return labels.astype(np.int64)
