"""A folder of image files in MVTec's layout as a data set."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pkd.data.dataset import Dataset
from pkd.data.image_files import ImageError, find_images, is_colour, read_image, unusable_images
from pkd.utils.errors import DataError

NORMAL = "good"  # name of the folder with normal images

_LAYOUT = (
    "put normal training images into DIR/train/good, normal test images into DIR/test/good and "
    "novel test images into DIR/test/ANY_NAME, and set `data_dir` to DIR"
)


def load_folder(
    folder: Path, image_size: int, channels: int | None = None, skip_bad: bool = False
) -> Dataset:
    """Load images in MVTec's layout: train/good, test/good, and novel images in test/ANY_NAME.

    Args:
        folder: contains `train` and `test`; the folder of a class may have subfolders.
        image_size: height and width to which images are resized, in pixels.
        channels: 1 converts all images to grey, 3 to RGB; None means 3 if any training image is in
            colour, else 1.
        skip_bad: skip unreadable files instead of raising an error.

    Raises:
        DataError: the layout is another one, a class has no images, or files are unreadable.
    """
    try:
        train_files, test_files = _find_files(folder)
    except OSError as error:
        reason = f"{error.filename} cannot be read ({error.strerror})"
        raise DataError(f"{reason}: {_LAYOUT}") from error
    colour = any(map(_has_colour, train_files)) if channels is None else channels == 3
    train_images, errors = _read_images(train_files, colour, image_size)
    test_images = []
    for files in test_files.values():
        images, more_errors = _read_images(files, colour, image_size)
        test_images.append(images)
        errors |= more_errors
    if errors and not skip_bad:
        raise unusable_images([str(error) for error in errors.values()])
    if not len(train_images):
        raise DataError(f"no image in {folder / 'train' / NORMAL} can be read: {_LAYOUT}")
    return Dataset(
        "folder",
        tuple(test_files),
        train_images,
        np.zeros(len(train_images), np.int64),
        np.concatenate(test_images),
        np.repeat(np.arange(len(test_files)), [len(images) for images in test_images]),
        tuple(errors),
    )


def _read_images(
    paths: Sequence[Path], colour: bool, size: int
) -> tuple[np.ndarray, dict[Path, ImageError]]:
    """Read the usable files as (n, C, size, size) uint8; return the errors of the others too."""
    results = {path: _read_image(path, colour, size) for path in paths}
    images = [result for result in results.values() if isinstance(result, np.ndarray)]
    errors = {path: result for path, result in results.items() if isinstance(result, ImageError)}
    empty = np.empty((0, 3 if colour else 1, size, size), np.uint8)
    return np.stack(images) if images else empty, errors


def _read_image(path: Path, colour: bool, size: int) -> np.ndarray | ImageError:
    try:
        return read_image(path, colour, size)
    except ImageError as error:
        return error


def _has_colour(path: Path) -> bool:
    try:
        return is_colour(path)
    except ImageError:
        return False  # `read_image` will report the file


def _find_files(folder: Path) -> tuple[list[Path], dict[str, list[Path]]]:
    """Find training files, and test files by class; the first class is the normal one."""
    if not (folder / "train" / NORMAL).is_dir() or not (folder / "test").is_dir():
        missing = f"train/{NORMAL}" if (folder / "test").is_dir() else "test"
        raise DataError(f"{folder} has no folder {missing}: {_LAYOUT}")
    others = _subfolders(folder / "train") - {NORMAL}
    if others:
        raise DataError(
            f"{folder / 'train'} has {', '.join(sorted(others))} beside {NORMAL}, but only normal "
            f"images are used for training: move novel images to test, normal images to {NORMAL}"
        )
    if any(path.parent == folder / "test" for path in find_images(folder / "test")):
        raise DataError(f"{folder / 'test'} has images outside the folders of classes: {_LAYOUT}")
    classes = sorted(_subfolders(folder / "test"), key=lambda name: (name != NORMAL, name))
    test = {name: find_images(folder / "test" / name) for name in classes}
    test = {name: paths for name, paths in test.items() if paths}
    train = find_images(folder / "train" / NORMAL)
    for split, paths in (("train", train), ("test", test.get(NORMAL))):
        if not paths:
            raise DataError(f"{folder / split / NORMAL} contains no images: {_LAYOUT}")
    if len(test) < 2:
        raise DataError(
            f"{folder / 'test'} has no novel images beside {NORMAL}: {_LAYOUT}; without novel "
            "images, train pkd.Detector"
        )
    return train, test


def _subfolders(folder: Path) -> set[str]:
    """Names of the subfolders that are not hidden; OSError."""
    return {p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")}
