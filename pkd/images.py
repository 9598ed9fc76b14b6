"""Images as people have them, arrays or files, as uint8 (n, C, H, W). Needs no torch."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pkd.errors import InputError, UserError

CHANNELS = (1, 3)
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
NAMED = 10  # unreadable files that a message names
_GREY = ("1", "L", "LA", "La", "F")  # Pillow's modes, beside those of 16 bits: "I;16", "I;16B", "I"


class BadImage(UserError):  # noqa: N818 (it is the image that is bad)
    """An image file that cannot be used; the message says why."""


def channels_first(images: np.ndarray, image_shape: Sequence[int] | None = None) -> np.ndarray:
    """A view of images as (n, C, H, W) with C = 1 or 3.

    Args:
        images: (n, H, W), (n, C, H, W), (n, H, W, C), or flattened, (n, pixels). Where both the
            second and the last axis could be channels, the second is taken.
        image_shape: of a flattened image: (H, W), (C, H, W) or (H, W, C); one size may be -1.

    Raises:
        InputError: another shape.
    """
    shape = images.shape
    if len(shape) == 2:
        if image_shape is None:
            raise InputError(
                f"images of shape {shape} are flattened: tell their shape with image_shape=(H, W), "
                "(C, H, W) or (H, W, C)"
            )
        try:
            images = images.reshape(len(images), *image_shape)
        except ValueError as error:
            raise InputError(
                f"rows of {shape[1]} values are not images of image_shape={tuple(image_shape)}: "
                "give the shape that they were flattened from"
            ) from error
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[1] in CHANNELS:
        return images
    if images.ndim == 4 and images.shape[3] in CHANNELS:
        return np.moveaxis(images, 3, 1)
    raise InputError(
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


def image_files(folder: Path) -> list[Path]:
    """Image files of a folder and of the folders in it, in the order of their names.

    They are known by their suffix, see SUFFIXES; hidden files are passed over.
    Raises UserError: the folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(
            f"{error.filename} cannot be read ({error.strerror}): name a folder with images, or "
            "get permission there"
        ) from error

    return sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder, onerror=refuse)
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    )


def unreadable(bad: Sequence[str]) -> UserError:
    """The refusal of image files, from the messages of their BadImage."""
    more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    return UserError(
        f"{len(bad)} image{'s' * (len(bad) > 1)} cannot be used: {'; '.join(bad[:NAMED])}{more}. "
        "Mend or remove them, or leave them out with --skip-bad"
    )


def is_colour(path: Path) -> bool:
    """Whether a file holds colours, by its header; raises BadImage."""
    with _opened(path) as image:
        return image.mode not in _GREY and not image.mode.startswith("I")


def read_image(path: Path, colour: bool, size: int) -> np.ndarray:
    """An image file as uint8 (C, size, size): 3 channels in colour, 1 in grey.

    Turned as its EXIF data say, transparency dropped, 16 bits brought to 8; resized bilinearly with
    the values of `datasets.resize`.

    Raises:
        BadImage: it is broken, too large (more than Pillow's MAX_IMAGE_PIXELS), or of a kind
            without a known range of values.
    """
    with _opened(path) as image:
        planes = _planes(ImageOps.exif_transpose(image), colour)
        resized = [plane.resize((size, size), Image.Resampling.BILINEAR) for plane in planes]
    return np.stack([np.rint(plane).clip(0, 255).astype(np.uint8) for plane in resized])


def _planes(image: Image.Image, colour: bool) -> list[Image.Image]:
    """The channels, each of floats in [0, 255]: resizing must not round before the end."""
    if image.mode == "F":
        raise BadImage("it holds floating-point numbers: save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image, np.float32)
        if values.max() > 65535:
            raise BadImage("it has 32 bits a pixel: save it with 8 or 16 bits")
        return [Image.fromarray(values / 257)] * (3 if colour else 1)
    image = image.convert("RGB" if colour else "L")
    return [plane.convert("F") for plane in image.split()]


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                yield image
    except BadImage as error:
        raise BadImage(f"{path}: {error}") from error
    except Exception as error:  # a broken file makes Pillow's readers raise almost anything
        raise BadImage(f"{path}: {' '.join(str(error).split()) or type(error).__name__}") from error
