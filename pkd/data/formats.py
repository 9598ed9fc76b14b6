"""Parsers of the official data files.

The content of a file reaches a parser only after its checksum has been verified (`standard.load`),
so the parsers do not check the structure again.
"""

import gzip
import pickle
import warnings

import numpy as np

Arrays = dict[str, np.ndarray]  # "images": (n, C, H, W) uint8; "labels": (n,) int64; one or both

GZIP_MAGIC = b"\x1f\x8b"
CIFAR_SHAPE = (3, 32, 32)


def parse_idx(content: bytes) -> Arrays:
    """Parse an idx file of unsigned bytes, plain or compressed with gzip.

    The format: bytes 0, 0, 8 and the number of dimensions; their sizes as big-endian uint32; the
    values in C order. Three dimensions are grey images, one dimension is labels.
    """
    if content.startswith(GZIP_MAGIC):
        content = gzip.decompress(content)
    dimensions = content[3]
    sizes = np.frombuffer(content, ">u4", count=dimensions, offset=4)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(sizes)
    return {"images": values[:, None]} if dimensions == 3 else {"labels": values.astype(np.int64)}


def parse_cifar_binary(content: bytes) -> Arrays:
    """Parse a CIFAR-10 batch of the binary version: rows of one label and 3072 pixel values."""
    rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + np.prod(CIFAR_SHAPE))
    return {
        "images": rows[:, 1:].reshape(-1, *CIFAR_SHAPE),
        "labels": rows[:, 0].astype(np.int64),
    }


def parse_cifar_pickle(content: bytes) -> Arrays:
    """Parse a CIFAR-10 batch of the Python version: a pickled dictionary."""
    with warnings.catch_warnings():
        # NumPy 2.4 deprecates a way to pickle dtypes that these files of 2009 use.
        warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
        # A pickle can run any code. This one cannot be a forgery: its SHA-256 is that of the
        # published file.
        batch = pickle.loads(content, encoding="latin1")
    return {
        "images": batch["data"].reshape(-1, *CIFAR_SHAPE),
        "labels": np.array(batch["labels"], np.int64),
    }
