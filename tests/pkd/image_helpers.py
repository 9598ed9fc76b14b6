"""Synthetic image files in MVTec's layout."""

from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, side: int = 20, colour: bool = False, novel: bool = False) -> Image.Image:
    """Draw a bright square on noise, or a stripe if `novel`."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (side, side, 3) if colour else (side, side), dtype=np.uint8)
    area = (slice(None), slice(2, 5)) if novel else (slice(5, 14), slice(5, 14))
    pixels[area] += 150
    return Image.fromarray(pixels)


def save(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def product_photos(folder: Path, train: int = 12, test: int = 4) -> Path:
    """Write a small data set of grey images in the layout of `pkd train --dataset folder`."""
    for k in range(train):
        save(picture(k), folder / "train" / "good" / f"{k:03}.png")
    for k in range(test):
        save(picture(100 + k), folder / "test" / "good" / f"{k:03}.png")
        save(picture(200 + k, novel=True), folder / "test" / "scratch" / f"{k:03}.png")
    return folder
