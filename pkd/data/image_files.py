"""Image files: find them in a folder, read them as uint8 arrays. Needs no torch."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pkd.utils.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")

NAMED_FILES = 10  # files that an error message lists

# Pillow's grey modes of up to 8 bits, and float. Modes of 16 and 32 bits start with "I".
GREY_MODES = ("1", "L", "LA", "La", "F")


class ImageError(DataError):
    """An image file that cannot be used; the message starts with its path."""


def find_images(folder: Path) -> list[Path]:
    """Find the image files in a folder and its subfolders, sorted by path.

    A file is an image if its suffix is in SUFFIXES, in lower or upper case; hidden files are
    ignored.

    Raises:
        DataError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise DataError(
            f"{error.filename} cannot be read ({error.strerror}): choose a folder with images, or "
            "get permission to read it"
        ) from error

    return sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder, onerror=refuse)
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    )


def unusable_images(messages: Sequence[str]) -> DataError:
    """The error for several image files that cannot be used.

    Args:
        messages: the message of each ImageError.
    """
    more = f"; and {len(messages) - NAMED_FILES} more" if len(messages) > NAMED_FILES else ""
    return DataError(
        f"{len(messages)} image{'s' * (len(messages) > 1)} cannot be used: "
        f"{'; '.join(messages[:NAMED_FILES])}{more}. Repair or remove them, or skip them with "
        "`skip_bad`"
    )


def is_colour(path: Path) -> bool:
    """Whether the header of an image file declares colours; raises ImageError."""
    with _open_image(path) as image:
        return image.mode not in GREY_MODES and not image.mode.startswith("I")


def read_image(path: Path, colour: bool, size: int) -> np.ndarray:
    """Read an image file.

    The EXIF orientation is applied, transparency is dropped, 16-bit pixels are reduced to 8 bits.
    The image is resized bilinearly, to the same values as by `arrays.resize`.

    Args:
        path: the file.
        colour: whether to convert the image to RGB (true) or to grey (false).
        size: new height and width in pixels.

    Returns:
        (C, size, size) uint8; C is 3 with `colour`, else 1.

    Raises:
        ImageError: the file is damaged, is too large (more pixels than Pillow's
            MAX_IMAGE_PIXELS), or has a pixel format without a known range of values.
    """
    with _open_image(path) as image:
        channels = _split_channels(ImageOps.exif_transpose(image), colour)
        resized = [channel.resize((size, size), Image.Resampling.BILINEAR) for channel in channels]
    return np.stack([np.rint(np.asarray(plane)).clip(0, 255).astype(np.uint8) for plane in resized])


def _split_channels(image: Image.Image, colour: bool) -> list[Image.Image]:
    """Channels as float images in [0, 255]: resizing must not round before its last step."""
    if image.mode == "F":
        raise ImageError("the image has floating-point pixels: save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image, np.float32)
        if values.max() > 65535:
            raise ImageError("the image has 32 bits per pixel: save it with 8 or 16 bits")
        return [Image.fromarray(values / 257)] * (3 if colour else 1)
    image = image.convert("RGB" if colour else "L")
    return [channel.convert("F") for channel in image.split()]


@contextmanager
def _open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image file. Any error of the body becomes an ImageError that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                yield image
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    except Exception as error:  # Pillow's readers raise many kinds of errors for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{path}: {reason}") from error
