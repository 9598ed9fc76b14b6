"""TODO."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from pkd.utils.errors import DataError

RESIZE_VALUES = 3 * 2**20  # float32 of one chunk: 12 MB


def resize(images: np.ndarray, size: int = 32) -> torch.Tensor:
    """Bilinear resize, rounded; a copy where the size is right already.

    A smaller image averages over all pixels of the larger one (a triangle as wide as the step), as
    image libraries do; otherwise most pixels of a photo would not count.

    Args:
        images: (n, C, H, W) uint8.
        size: the new height and width.

    Returns:
        (n, C, size, size) uint8.
    """
    if images.shape[-2:] == (size, size):
        return torch.from_numpy(images.copy())
    out = torch.empty((*images.shape[:2], size, size), dtype=torch.uint8)
    chunk = max(1, RESIZE_VALUES // math.prod(images.shape[1:]))
    for start in range(0, len(images), chunk):
        part = torch.from_numpy(images[start : start + chunk].astype(np.float32))
        scaled = F.interpolate(part, size=(size, size), mode="bilinear", antialias=True)
        out[start : start + chunk] = scaled.round_().clamp_(0, 255)
    return out


CHANNELS = (1, 3)


def channels_first(images: np.ndarray, image_shape: Sequence[int] | None = None) -> np.ndarray:
    """A view of images as (n, C, H, W) with C = 1 or 3.

    Args:
        images: (n, H, W), (n, C, H, W), (n, H, W, C), or flattened, (n, pixels). Where both the
            second and the last axis could be channels, the second is taken.
        image_shape: of a flattened image: (H, W), (C, H, W) or (H, W, C); one size may be -1.

    Raises:
        DataError: another shape.
    """
    shape = images.shape
    if len(shape) == 2:
        if image_shape is None:
            raise DataError(
                f"images of shape {shape} are flattened: tell their shape with image_shape=(H, W), "
                "(C, H, W) or (H, W, C)"
            )
        try:
            images = images.reshape(len(images), *image_shape)
        except ValueError as error:
            raise DataError(
                f"rows of {shape[1]} values are not images of image_shape={tuple(image_shape)}: "
                "give the shape that they were flattened from"
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
    """The values that stand for black and white: what images of this kind are taken to span.

    (0, 255) for uint8; otherwise (0, 1) if all values lie within, else their least and largest.
    """
    if images.dtype == np.uint8:
        return 0.0, 255.0
    low, high = float(images.min()), float(images.max())
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return low, high if high > low else low + 1.0


def to_bytes(images: np.ndarray, span: tuple[float, float]) -> np.ndarray:
    """Images in 256 levels, span[0] as 0 and span[1] as 255; what lies beyond is clipped."""
    low, high = span
    if images.dtype == np.uint8 and (low, high) == (0, 255):
        return images
    values = images.astype(np.result_type(images, np.float32))
    values -= low
    values *= 255 / (high - low)
    return np.rint(values, out=values).clip(0, 255).astype(np.uint8)
