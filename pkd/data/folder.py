"""The user's own images as a data set: a folder of files, or arrays in an .npz file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pkd.data.dataset import Dataset
from pkd.data.image_files import BadImage, image_files, is_colour, read_image, unreadable
from pkd.utils.errors import PkdError

NORMAL = "good"

_LAYOUT = (
    "put normal images into DIR/train/good, normal ones for the test into DIR/test/good, novel "
    "ones into DIR/test/ANY_NAME, and give --data-dir DIR"
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
        PkdError: another layout, no images, or unreadable files.
    """
    try:
        train, test = _files(folder)
    except OSError as error:
        raise PkdError(f"{error.filename} cannot be read ({error.strerror}): {_LAYOUT}") from error
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
        raise PkdError(f"no image in {folder / 'train' / NORMAL} can be read: {_LAYOUT}")
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
        raise PkdError(f"{folder} has no folder {missing}: {_LAYOUT}")
    others = _folders(folder / "train") - {NORMAL}
    if others:
        raise PkdError(
            f"{folder / 'train'} has {', '.join(sorted(others))} beside good, but training takes "
            "normal images alone: move what is novel below test, and what is normal into good"
        )
    if any(path.parent == folder / "test" for path in image_files(folder / "test")):
        raise PkdError(f"{folder / 'test'} has images in no class: {_LAYOUT}")
    classes = sorted(_folders(folder / "test"), key=lambda name: (name != NORMAL, name))
    test = {name: image_files(folder / "test" / name) for name in classes}
    test = {name: paths for name, paths in test.items() if paths}
    train = image_files(folder / "train" / NORMAL)
    for name, paths in (("train/good", train), ("test/good", test.get(NORMAL))):
        if not paths:
            raise PkdError(f"{folder / name} holds no images: {_LAYOUT}")
    if len(test) < 2:
        raise PkdError(
            f"{folder / 'test'} has no novel images beside good: {_LAYOUT}; without novel images, "
            "train pkd.Detector"
        )
    return train, test


def _folders(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")}
