"""TODO."""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np


@dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled data set in its own image size.

    Attributes:
        name: one of DATASETS, or of the user's own: "folder" or "npz".
        classes: human names, index = label.
        train_images, test_images: (n, C, H, W) uint8.
        train_labels, test_labels: (n,) int64 in 0..len(classes) - 1.
        left_out: files that could not be read and that the user wants left out.
    """

    name: str
    classes: tuple[str, ...]
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    left_out: tuple[Path, ...] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over shapes and values of the four arrays: names the data of a run."""
        sha = hashlib.sha256()
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            sha.update(f"{array.dtype.str}{array.shape}".encode())
            sha.update(array.data)
        return sha.hexdigest()


def hold_out(labels: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """Which images are held out of training: a random share of each class, rounded up.

    Args:
        labels: (n,) int64 classes.
        share: in (0, 1).
        seed: of the choice; a class's depends on nothing but its own images.

    Returns:
        (n,) bool.
    """
    held = np.zeros(len(labels), bool)
    for k in np.unique(labels):
        rows = np.flatnonzero(labels == k)
        chosen = np.random.default_rng([seed, k]).permutation(rows)
        held[chosen[: math.ceil(share * len(rows))]] = True
    return held
