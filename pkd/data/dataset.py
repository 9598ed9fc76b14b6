"""A labelled data set in memory, and the choice of held-out images."""

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np


@dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled data set; images have the size of their files.

    Attributes:
        name: a standard data set (`standard.DATASETS`), "folder" or "npz".
        classes: class names, index = label.
        train_images, test_images: (n, C, H, W) uint8.
        train_labels, test_labels: (n,) int64 in 0..len(classes) - 1.
        skipped_files: unreadable image files that were skipped on request.
    """

    name: str
    classes: tuple[str, ...]
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    skipped_files: tuple[Path, ...] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of shapes and values of the four arrays; identifies the data."""
        sha = hashlib.sha256()
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            sha.update(f"{array.dtype.str}{array.shape}".encode())
            sha.update(array.data)
        return sha.hexdigest()


def hold_out(labels: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """Choose the training images that are held out for the threshold.

    Args:
        labels: (n,) int64 classes.
        share: fraction in (0, 1) of each class to hold out, rounded up to whole images.
        seed: seed of the random choice. The choice in a class does not depend on other classes.

    Returns:
        (n,) bool, true for held-out images.
    """
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        shuffled = np.random.default_rng([seed, label]).permutation(rows)
        held_out[shuffled[: math.ceil(share * len(rows))]] = True
    return held_out


DEVELOPMENT_SHARE, DEVELOPMENT_SEED = 1 / 6, 1


def development_split(dataset: Dataset) -> Dataset:
    """Replace the test split by a sixth of the training images of each class.

    Settings can be chosen on the result without a look at the test split.
    """
    chosen = hold_out(dataset.train_labels, DEVELOPMENT_SHARE, DEVELOPMENT_SEED)
    return replace(
        dataset,
        train_images=dataset.train_images[~chosen],
        train_labels=dataset.train_labels[~chosen],
        test_images=dataset.train_images[chosen],
        test_labels=dataset.train_labels[chosen],
    )
