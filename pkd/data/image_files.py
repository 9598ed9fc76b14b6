"""Images as people have them, arrays or files, as uint8 (n, C, H, W). Needs no torch."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pkd.utils.errors import PkdError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")

NAMED = 10  # unreadable files that a message names

_GREY = ("1", "L", "LA", "La", "F")  # Pillow's modes, beside those of 16 bits: "I;16", "I;16B", "I"


class BadImage(PkdError):  # noqa: N818 (it is the image that is bad)
    """An image file that cannot be used; the message says why."""


def image_files(folder: Path) -> list[Path]:
    """Image files of a folder and of the folders in it, in the order of their names.

    They are known by their suffix, see SUFFIXES; hidden files are passed over.
    Raises PkdError: the folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise PkdError(
            f"{error.filename} cannot be read ({error.strerror}): name a folder with images, or "
            "get permission there"
        ) from error

    return sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder, onerror=refuse)
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    )


def unreadable(bad: Sequence[str]) -> PkdError:
    """The refusal of image files, from the messages of their BadImage."""
    more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    return PkdError(
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
    the values of `arrays.resize`.

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
