"""Image files: find them in a folder, read them as uint8 arrays. Needs no torch.

Only the formats of `FORMATS` are decoded, whatever the suffix: others can start programs. The size
in the header is compared with the limits before the pixels are unpacked.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pkd.utils.errors import DataError, PkdError
from pkd.utils.files import open_regular

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")

# Largest number of pixels of an image, and of its width and height: names of environment variables
# and their defaults. An image within them takes at most about 1 GB and a few seconds.
MAX_PIXELS, MAX_SIDE = ("PKD_MAX_PIXELS", 89_478_485), ("PKD_MAX_SIDE", 32_768)

NAMED_FILES = 10  # files that an error message lists

# Pillow's grey modes of up to 8 bits, and float. Modes of 16 and 32 bits start with "I".
GREY_MODES = ("1", "L", "LA", "La", "F")


class ImageError(DataError):
    """An image file that cannot be used; the message starts with its path."""


def find_images(folder: Path) -> list[Path]:
    """Find the image files in a folder and its subfolders, sorted by path.

    A file is an image if its suffix is in SUFFIXES, in lower or upper case; hidden files are
    ignored. Symbolic links to folders are followed; a folder that several links lead to, or a link
    to a folder above it, is read once.

    Raises:
        DataError: a folder cannot be read.
    """
    try:
        return list(_walk(folder, set()))
    except OSError as error:
        raise DataError(
            f"{error.filename} cannot be read ({error.strerror}): choose a folder with images, or "
            "get permission to read it"
        ) from error


def _walk(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Image files below a folder, sorted by path; OSError if a folder cannot be read.

    Args:
        folder: the folder.
        seen: folders, as device and inode, that are not read again.
    """
    status = folder.stat()
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    for name in sorted(path.name for path in folder.iterdir()):
        path = folder / name
        if path.is_dir():
            yield from _walk(path, seen)
        elif name.lower().endswith(SUFFIXES) and not name.startswith("."):
            yield path


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
        ImageError: the file is damaged, has another format than `FORMATS`, exceeds `MAX_PIXELS`
            or `MAX_SIDE`, or has a pixel format without a known range of values.
    """
    with _open_image(path) as image:
        upright, is_tiff = ImageOps.exif_transpose(image), image.format == "TIFF"
        channels = _split_channels(upright, colour, is_tiff)
        resized = [channel.resize((size, size), Image.Resampling.BILINEAR) for channel in channels]
    return np.stack([np.rint(np.asarray(plane)).clip(0, 255).astype(np.uint8) for plane in resized])


def _split_channels(image: Image.Image, colour: bool, is_tiff: bool) -> Iterable[Image.Image]:
    """Channels as float images in [0, 255]: resizing must not round before its last step."""
    if image.mode == "F":
        raise ImageError("the image has floating-point pixels: save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image, np.float32)
        # "I" is also the mode of 16-bit PNG files in earlier versions of Pillow
        if (is_tiff and image.mode == "I") or values.min() < 0 or values.max() > 65535:
            raise ImageError(
                "the image has 32 bits per pixel, or signed ones: save it with 8 or 16 bits"
            )
        return [Image.fromarray(values / 257)] * (3 if colour else 1)
    image = image.convert("RGB" if colour else "L")
    # one after the other: a float channel takes as much memory as all of an RGB image
    return (image.getchannel(k).convert("F") for k in range(len(image.getbands())))


@contextmanager
def _open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image file. Any error of the body becomes an ImageError that names the file."""
    pixels, side = _limit(*MAX_PIXELS), _limit(*MAX_SIDE)
    try:
        with (
            open_regular(path) as file,
            _without_pillow_limit(),
            Image.open(file, formats=FORMATS) as image,
        ):
            if image.width * image.height > pixels or max(image.size) > side:
                raise ImageError(
                    f"it has {image.width:,} x {image.height:,} pixels, more than {pixels:,} in "
                    f"all or {side:,} in a row or column: make it smaller, or set "
                    f"{MAX_PIXELS[0]} and {MAX_SIDE[0]}"
                )
            yield image
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: it is no image in {', '.join(FORMATS)} format") from error
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise ImageError(f"{path}: {reason}") from error
    except Exception as error:  # Pillow's readers raise many kinds of errors for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{path}: {reason}") from error


def _limit(name: str, default: int) -> int:
    """A limit from the environment; PkdError if it is no positive integer."""
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) > 0):
        raise PkdError(f"the environment variable {name} is {text!r}: set a positive integer")
    return int(text)


@contextmanager
def _without_pillow_limit() -> Iterator[None]:
    """Lift Pillow's own limit on pixels, which knows neither sides nor the environment."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
