"""TODO."""

import gzip
import io
import math
import pickle
import zlib
from collections.abc import Callable

import numpy as np

Arrays = dict[str, np.ndarray]  # "images": (n, C, H, W) uint8 and/or "labels": (n,) int64


class FormatError(Exception):
    """The content of a file is not what its name promises; the message says how."""


def _idx(content: bytes, dims: int) -> np.ndarray:
    """An idx file of unsigned bytes: 0, 0, 8, dims, then big-endian uint32 sizes, then the data."""
    start = 4 + 4 * dims
    if len(content) < start:
        raise FormatError(f"truncated: {len(content)} bytes, the header alone has {start}")
    if content[:4] != bytes([0, 0, 8, dims]):
        raise FormatError(
            f"wrong magic number {content[:4].hex()}, expected {bytes([0, 0, 8, dims]).hex()}"
        )
    sizes = np.frombuffer(content[4:start], ">u4").tolist()
    length, expected = len(content) - start, math.prod(sizes)
    if length < expected:
        raise FormatError(f"truncated: {length} data bytes, the header promises {expected}")
    if length > expected:
        raise FormatError(f"too long: {length} data bytes, the header promises {expected}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)


def idx_images(content: bytes) -> Arrays:
    """Grey images of an idx3 file, (n, 1, H, W). Raises FormatError."""
    return {"images": _idx(content, 3)[:, None]}


def idx_labels(content: bytes) -> Arrays:
    """Labels of an idx1 file, (n,). Raises FormatError."""
    return {"labels": _idx(content, 1).astype(np.int64)}


def gunzipped(content: bytes, decode: Callable[[bytes], Arrays]) -> Arrays:
    """What `decode` reads from the unpacked content. Raises FormatError."""
    try:
        plain = gzip.decompress(content)
    except EOFError as error:
        raise FormatError("truncated: the gzip stream ends early") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise FormatError(f"not a valid gzip file ({error})") from error
    return decode(plain)


_CIFAR_SHAPE = (3, 32, 32)

_CIFAR_PIXELS = math.prod(_CIFAR_SHAPE)


def cifar_bin(content: bytes) -> Arrays:
    """A batch of the binary version. Raises FormatError."""
    row = 1 + _CIFAR_PIXELS
    if not content or len(content) % row:
        raise FormatError(f"truncated: {len(content)} bytes are no whole number of {row}-byte rows")
    rows = np.frombuffer(content, np.uint8).reshape(-1, row)
    return {
        "images": rows[:, 1:].reshape(-1, *_CIFAR_SHAPE),
        "labels": rows[:, 0].astype(np.int64),
    }


class _Inert:
    """Stands in for numpy's classes in a pickle: keeps what it is given and does nothing with it.

    numpy's own would trust the pickle: a forged dtype state makes raw bytes into pointers.
    """

    def __init__(self, *args):
        self.args = args

    def __setstate__(self, state):
        self.state = state


def _latin1(text: str, _encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


_PICKLED = {
    ("numpy", "ndarray"): _Inert,
    ("numpy", "dtype"): _Inert,
    ("numpy.core.multiarray", "_reconstruct"): _Inert,
    ("numpy._core.multiarray", "_reconstruct"): _Inert,
    ("_codecs", "encode"): _latin1,  # how Python 3 writes bytes in Python 2's protocol
}


class _Unpickler(pickle.Unpickler):
    """Admits what a CIFAR-10 batch contains, and nothing else."""

    def find_class(self, module: str, name: str) -> Callable:
        try:
            return _PICKLED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def cifar_pickle(content: bytes) -> Arrays:
    """A batch of the Python version, without running what it says. Raises FormatError."""
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="latin1").load()
        _version, shape, dtype, fortran, raw = batch["data"].state
        raw = raw if isinstance(raw, bytes) else _latin1(raw)
        labels = np.array(batch["labels"], np.int64).reshape(-1)
        stored = (dtype.args[0], shape, fortran, len(raw))
    except Exception as error:  # a broken pickle can raise anything
        raise FormatError(f"not a CIFAR-10 batch ({type(error).__name__}: {error})") from error
    expected = ("u1", (len(labels), _CIFAR_PIXELS), False, len(labels) * _CIFAR_PIXELS)
    if stored != expected:
        raise FormatError(
            f"wrong shape: (type, shape, by columns, bytes) = {stored}, "
            f"expected {expected} for {len(labels)} labels"
        )
    return {"images": np.frombuffer(raw, np.uint8).reshape(-1, *_CIFAR_SHAPE), "labels": labels}
