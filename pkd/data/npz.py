"""The arrays of an .npz file as a data set.

Only the arrays that are used are read. The sizes in their headers are compared with the sizes in
the archive and with the free memory before anything is unpacked.
"""

import math
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from pkd.data.arrays import channels_first, pixel_range, to_uint8
from pkd.data.dataset import Dataset
from pkd.utils.errors import DataError
from pkd.utils.files import open_regular
from pkd.utils.memory import available_memory

REQUIRED = ("train_images", "test_images", "test_labels")
OPTIONAL = ("train_labels", "classes")

MAX_LABEL = 65_535  # every label below the largest one has a class name
HEADER_BYTES = 16_384  # NumPy refuses longer headers than 10,000 bytes
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # those that NumPy writes
ENCRYPTED = 1  # bit of the flags of a member
COPIES = 3  # of the arrays: as they are in the file, during and after the conversion to 8 bits

_LAYOUT = (
    "save it with numpy.savez(FILE, train_images=..., test_images=..., test_labels=...), label 0 "
    "for the class of train_images, and set `data_dir` to FILE"
)


def load_npz(file: Path) -> Dataset:
    """Load the arrays of an .npz file.

    train_images, test_images: (n, H, W), (n, C, H, W) or (n, H, W, C) numbers; if they are not
        uint8, the `pixel_range` of the training images is mapped to 0..255.
    test_labels: (n,) integers from 0 to 65,535.
    train_labels: (n,) integers from 0 to 65,535; optional, default 0 for all images.
    classes: (k,) class names; optional, default the labels.

    Raises:
        DataError: the file cannot be read, or an array is missing, does not fit the others or is
            larger than the free memory.
    """
    arrays = _read_arrays(file)
    missing = [name for name in REQUIRED if name not in arrays]
    if missing:
        raise DataError(f"{file} has no {', '.join(sorted(missing))}: {_LAYOUT}")
    try:
        return _make_dataset(arrays)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error


def _read_arrays(file: Path) -> dict[str, np.ndarray]:
    try:
        with open_regular(file) as stream:
            if not zipfile.is_zipfile(stream):
                raise ValueError("it has another format")
            with zipfile.ZipFile(stream) as archive:
                members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
                used = {n: members[n] for n in (*REQUIRED, *OPTIONAL) if n in members}
                _check_sizes(used)
                return {name: _read_array(archive, info) for name, info in used.items()}
    except MemoryError as error:
        raise DataError(f"{file} does not fit the free memory: use fewer images") from error
    except Exception as error:  # zipfile, its decompressors and NumPy raise many kinds of errors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{file} cannot be read as an .npz file ({reason}): {_LAYOUT}") from error


def _check_sizes(members: dict[str, zipfile.ZipInfo]) -> None:
    """Raise ValueError if a member cannot be unpacked or all of them do not fit the memory."""
    for name, info in members.items():
        if info.flag_bits & ENCRYPTED:
            raise ValueError(f"{name} is encrypted")
        if info.compress_type not in METHODS:
            raise ValueError(f"{name} is compressed with the unknown method {info.compress_type}")
    total, available = sum(info.file_size for info in members.values()), available_memory()
    if COPIES * total > available:
        raise ValueError(
            f"it needs about {COPIES * total / 2**30:.1f} GiB, but {available / 2**30:.1f} GiB of "
            "memory are free"
        )


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Read an array whose header fits its size; ValueError if it does not."""
    with archive.open(info) as member:
        start = BytesIO(member.read(HEADER_BYTES))
    shape, fortran_order, dtype = _read_header(start)
    if dtype.hasobject or dtype.itemsize == 0 or dtype.names:
        raise ValueError(f"{info.filename} has the type {dtype}")
    if min(shape, default=0) < 0 or start.tell() + math.prod(shape) * dtype.itemsize != (
        info.file_size
    ):
        raise ValueError(f"{info.filename} has {info.file_size:,} bytes, not an array {shape}")
    values = np.frombuffer(archive.read(info), dtype, offset=start.tell())
    return values.reshape(shape, order="F" if fortran_order else "C")


def _read_header(start: BytesIO) -> tuple[tuple[int, ...], bool, Any]:
    """Shape, whether the order is Fortran's, and type, from the start of an .npy file."""
    version = np.lib.format.read_magic(start)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(start)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(start)
    raise ValueError(f"an array has the format version {version}")


def _make_dataset(arrays: dict[str, np.ndarray]) -> Dataset:
    train, test = (_check_images(arrays[f"{split}_images"]) for split in ("train", "test"))
    if train.shape[1] != test.shape[1]:
        raise DataError(
            f"training images have {train.shape[1]} channels and test images {test.shape[1]}: "
            "convert one to the other"
        )
    zeros = np.zeros(len(train), np.int64)
    train_labels = _check_labels(arrays.get("train_labels", zeros), len(train), "train")
    test_labels = _check_labels(arrays["test_labels"], len(test), "test")
    largest = max(int(train_labels.max()), int(test_labels.max()))
    classes = _check_classes(arrays.get("classes", np.arange(largest + 1)), largest)
    black_white = pixel_range(train)
    return Dataset(
        "npz",
        classes,
        to_uint8(train, black_white),
        train_labels,
        to_uint8(test, black_white),
        test_labels,
    )


def _check_images(images: np.ndarray) -> np.ndarray:
    """Return images as (n, C, H, W); DataError if they are not finite numbers."""
    if images.dtype.kind not in "buif":
        raise DataError(f"images of type {images.dtype} cannot be used: save them as numbers")
    if not images.size:
        raise DataError("an array has no images: save at least two for training, two for the test")
    if not np.isfinite(images).all():
        raise DataError("images have NaN or infinite pixels: replace or remove them")
    return channels_first(images)


def _check_labels(labels: np.ndarray, images: int, split: str) -> np.ndarray:
    """Return labels as (n,) int64; DataError if they are not one integer from 0 for each image."""
    if (
        labels.shape != (images,)
        or labels.dtype.kind not in "bui"
        or labels.min() < 0
        or labels.max() > MAX_LABEL
    ):
        raise DataError(
            f"{split}_labels, of shape {labels.shape} and type {labels.dtype}, must be "
            f"{images} integers from 0 to {MAX_LABEL:,}, one for each image"
        )
    return labels.astype(np.int64)


def _check_classes(classes: np.ndarray, largest: int) -> tuple[str, ...]:
    """Return class names; DataError if they are no names, or fewer than there are labels."""
    if classes.ndim != 1 or classes.dtype.kind not in "USbui" or len(classes) > MAX_LABEL + 1:
        raise DataError(
            f"classes, of shape {classes.shape} and type {classes.dtype}, must be at most "
            f"{MAX_LABEL + 1:,} names"
        )
    if len(classes) <= largest:
        raise DataError(f"classes has {len(classes)} names, but the largest label is {largest}")
    try:
        return tuple(map(str, classes.astype(str)))
    except UnicodeError as error:
        raise DataError(f"classes has a name that is no text ({error})") from error
