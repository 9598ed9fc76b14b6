"""Small files in the formats of the official data files, and their encoders."""

import gzip
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

MNIST_RAW = "MNIST/raw"
BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]

Encoder = Callable[[np.ndarray, np.ndarray], bytes]


def encode_idx(array: np.ndarray) -> bytes:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def encode_binary(images: np.ndarray, labels: np.ndarray) -> bytes:
    rows = np.concatenate([labels[:, None].astype(np.uint8), images.reshape(len(images), -1)], 1)
    return rows.tobytes()


def encode_pickle(images: np.ndarray, labels: np.ndarray) -> bytes:
    """Pickle a batch with the module name of NumPy 2, numpy._core."""
    batch = {"data": images.reshape(len(images), -1), "labels": labels.tolist()}
    return pickle.dumps(batch, protocol=2)


def encode_numpy1_pickle(images: np.ndarray, labels: np.ndarray) -> bytes:
    """Pickle a batch with the module name of NumPy 1, numpy.core."""
    return encode_pickle(images, labels).replace(b"numpy._core", b"numpy.core")


def encode_python2_pickle(images: np.ndarray, labels: np.ndarray) -> bytes:
    """The opcodes of Python 2's cPickle: byte strings, numpy.core, as in the official files."""
    return b"".join(
        [
            b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n",
            b"K\x00\x85U\x01b\x87R(K\x01M" + struct.pack("<H", len(images)) + b"M\x00\x0c\x86",
            b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff",
            b"\xffK\x00tb\x89T" + struct.pack("<i", images.size) + images.tobytes() + b"tb",
            b"U\x06labels](" + b"".join(b"K" + bytes([label]) for label in labels) + b"eu.",
        ]
    )


def random_split(
    seed: int, n: int, shape: tuple[int, ...] = (3, 32, 32)
) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, *shape) uint8 and labels (n,) in 0..9."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, *shape), dtype=np.uint8), np.arange(n) * 7 % 10


def mnist_files(compressed: bool = True) -> dict[str, bytes]:
    """23 training and 11 test images as the files of MNIST: path -> content."""
    files = {}
    for seed, (prefix, n) in enumerate((("train", 23), ("t10k", 11))):
        images, labels = random_split(seed, n, (28, 28))
        files[f"{MNIST_RAW}/{prefix}-images-idx3-ubyte"] = encode_idx(images)
        files[f"{MNIST_RAW}/{prefix}-labels-idx1-ubyte"] = encode_idx(labels)
    if compressed:
        files = {f"{name}.gz": gzip.compress(content) for name, content in files.items()}
    return files


def cifar_files(
    template: str = "cifar-10-batches-bin/{}.bin", encode: Encoder = encode_binary
) -> dict[str, bytes]:
    """Batches of 4 to 9 images as the files of CIFAR-10: path -> content."""
    return {
        template.format(name): encode(*random_split(seed, 4 + seed))
        for seed, name in enumerate(BATCHES)
    }


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
