"""Arrays of images: layout, pixel range, 8-bit levels and resizing."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from pkd.utils.errors import DataError

CHANNELS = (1, 3)
RESIZE_CHUNK = 3 * 2**20  # pixel values that are resized at a time: 12 MB of float32


def channels_first(images: np.ndarray, image_shape: Sequence[int] | None = None) -> np.ndarray:
    """Return a view of images as (n, C, H, W) with C = 1 or 3.

    Args:
        images: (n, H, W), (n, C, H, W), (n, H, W, C), or flattened: (n, pixels). If both the
            second and the last axis could be channels, the second one is taken.
        image_shape: shape of a flattened image: (H, W), (C, H, W) or (H, W, C); one size may be
            -1.

    Raises:
        DataError: `images` has another shape.
    """
    shape = images.shape
    if len(shape) == 2:
        if image_shape is None:
            raise DataError(
                f"images of shape {shape} are flattened: give their shape as image_shape=(H, W), "
                "(C, H, W) or (H, W, C)"
            )
        try:
            images = images.reshape(len(images), *image_shape)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"rows of {shape[1]} values are not images of image_shape={image_shape}: "
                "give the shape that the images had before they were flattened"
            ) from error
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[1] in CHANNELS:
        return images
    if images.ndim == 4 and images.shape[3] in CHANNELS:
        return np.moveaxis(images, 3, 1)
    raise DataError(
        f"images of shape {shape} cannot be used: give (n, H, W), or (n, C, H, W) or (n, H, W, C) "
        "with 1 channel (grey) or 3 (RGB)"
    )


def pixel_range(images: np.ndarray) -> tuple[float, float]:
    """Return the pixel values of black and white: the range that the images are assumed to span.

    (0, 255) for uint8; otherwise (0, 1) if all values lie in it, else the minimum and maximum.

    Raises:
        DataError: the range is too large or too small to be mapped to 0..255.
    """
    if images.dtype == np.uint8:
        return 0.0, 255.0
    low, high = float(images.min()), float(images.max())
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    if high == low:
        high = max(low + 1.0, math.nextafter(low, math.inf))
    check_span(low, high)
    return low, high


def check_span(black: float, white: float) -> None:
    """Check that `to_uint8` can map the pixel values of black and white to 0 and 255.

    Raises:
        DataError: their difference, or 255 divided by it, is not a finite number of float32.
    """
    largest = float(np.finfo(np.float32).max)
    # products of float32 numbers up to the largest value must be finite too
    if not 255 / largest < white - black <= largest / 255 or max(-black, white) > largest:
        raise DataError(
            f"pixels from {black:.6g} to {white:.6g} cannot be mapped to 0..255: scale them, for "
            "example to [0, 1]"
        )


def to_uint8(images: np.ndarray, black_white: tuple[float, float]) -> np.ndarray:
    """Map pixel values linearly to 0..255, rounded; values outside the range are clipped.

    Args:
        images: numbers of any type and shape.
        black_white: values that become 0 and 255, see `pixel_range`.

    Returns:
        uint8 of the same shape; `images` itself if it needs no change.
    """
    black, white = black_white
    if images.dtype == np.uint8 and (black, white) == (0, 255):
        return images
    values = images.astype(np.result_type(images, np.float32))
    with np.errstate(over="ignore"):  # values far outside the range become 0 or 255
        values -= black
        values *= 255 / (white - black)
    return np.rint(values, out=values).clip(0, 255).astype(np.uint8)


def resize(images: np.ndarray, size: int = 32) -> torch.Tensor:
    """Resize images bilinearly, with rounding. The result is a copy even if the size is unchanged.

    Downscaling uses antialiasing (a triangle filter as wide as the step between output pixels), as
    image libraries do; without it, most pixels of a photo would have no effect.

    Args:
        images: (n, C, H, W) uint8.
        size: new height and width in pixels.

    Returns:
        (n, C, size, size) uint8.
    """
    if images.shape[-2:] == (size, size):
        return torch.from_numpy(images.copy())
    resized = torch.empty((*images.shape[:2], size, size), dtype=torch.uint8)
    chunk = max(1, RESIZE_CHUNK // math.prod(images.shape[1:]))
    for start in range(0, len(images), chunk):
        rows = slice(start, start + chunk)
        values = torch.from_numpy(images[rows].astype(np.float32))
        values = F.interpolate(values, size=(size, size), mode="bilinear", antialias=True)
        resized[rows] = values.round_().clamp_(0, 255)
    return resized
