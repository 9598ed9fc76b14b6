"""Data sets in .npz files: arrays, labels, class names and every error."""

import os
import zipfile

import numpy as np
import pytest

from pkd.data.npz import load_npz
from pkd.utils.errors import DataError


def arrays(**changes):
    rng = np.random.default_rng(0)
    train, test = rng.random((2, 10, 9, 9))
    valid = {"train_images": train, "test_images": test, "test_labels": np.arange(10) % 2}
    return {k: v for k, v in (valid | changes).items() if v is not None}


def npz(folder, **changes):
    np.savez(folder / "data.npz", **arrays(**changes))
    return folder / "data.npz"


def test_arrays_are_loaded_as_a_data_set(tmp_path):
    given = arrays()
    data = load_npz(npz(tmp_path))
    assert data.classes == ("0", "1")
    assert data.train_images.shape == data.test_images.shape == (10, 1, 9, 9)
    np.testing.assert_array_equal(data.test_images[:, 0], np.rint(given["test_images"] * 255))
    assert data.train_labels.tolist() == [0] * 10
    np.testing.assert_array_equal(data.test_labels, given["test_labels"])


def test_training_labels_class_names_and_colours_are_optional(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (10, 9, 9, 3), np.uint8)
    changes = {"train_images": images, "test_images": np.moveaxis(images, 3, 1)}
    labels = np.arange(10, dtype=np.uint8) % 3
    names = np.array(["cap", "bottle", "box"])
    data = load_npz(npz(tmp_path, **changes, train_labels=labels, classes=names))
    assert data.classes == ("cap", "bottle", "box")
    assert data.train_labels.tolist() == labels.tolist()
    np.testing.assert_array_equal(data.train_images, data.test_images)


def test_test_images_are_scaled_by_the_pixel_range_of_the_training_images(tmp_path):
    train, test = np.full((2, 4, 8, 8), 4.0)
    train[0, 0, 0], test[0, 0, :2] = 20.0, (12.0, 100.0)
    data = load_npz(npz(tmp_path, train_images=train, test_images=test, test_labels=np.arange(4)))
    assert data.test_images[0, 0, 0, :3].tolist() == [128, 255, 0]


NAN, INF = arrays()["train_images"], arrays()["train_images"]
NAN[3, 1, 1], INF[2, 0, 0] = np.nan, np.inf
REFUSED = {
    "no labels": ({"test_labels": None}, "has no test_labels"),
    "nan": ({"train_images": NAN}, "NaN or infinite"),
    "inf": ({"test_images": INF}, "NaN or infinite"),
    "objects": ({"train_images": np.array([{}])}, "cannot be read"),
    "texts": ({"train_images": np.array(["a"])}, "save them as numbers"),
    "empty": ({"train_images": np.empty((0, 9, 9))}, "no images"),
    "flat": ({"train_images": np.zeros((5, 81))}, "flattened"),
    "channels": ({"train_images": np.zeros((5, 3, 9, 9))}, "3 channels and test images 1"),
    "few labels": ({"test_labels": np.arange(9)}, "must be 10 integers"),
    "negative labels": ({"test_labels": np.arange(10) - 1}, "integers from 0"),
    "real labels": ({"test_labels": np.arange(10) / 2}, "integers from 0"),
    "few names": ({"classes": np.array(["one"])}, "1 names, but the largest label is 1"),
    "one name": ({"classes": np.array("one")}, "must be at most 65,536 names"),
    "real names": ({"classes": np.zeros(2)}, "must be at most 65,536 names"),
    "bytes": ({"classes": np.array([b"a", b"\xff"])}, "no text"),
    "0-d": ({"train_images": np.float64(1)}, "cannot be used"),
    "0-d labels": ({"test_labels": np.int64(1)}, "must be 10 integers"),
    "no width": ({"train_images": np.zeros((5, 9, 0))}, "no images"),
    "labels that would wrap": (
        {"test_labels": np.array([2**64 - 1] * 10, np.uint64)},
        "integers from 0 to 65,535",
    ),
    "a large label": ({"test_labels": np.full(10, 10**8)}, "integers from 0 to 65,535"),
    "span above float64": ({"train_images": np.array([[[-1.7e308, 1.7e308]]])}, "mapped to 0..255"),
    "span above float32": ({"train_images": np.array([[[0, 1e38]]])}, "mapped to 0..255"),
    "span near 0": ({"train_images": np.array([[[-1e-310, 0]]])}, "mapped to 0..255"),
    "records": ({"train_images": np.zeros(3, [("a", "u1")])}, "cannot be read"),
    "empty text": ({"classes": np.zeros(2, "V0")}, "cannot be read"),
}


@pytest.mark.parametrize(("changes", "words"), REFUSED.values(), ids=REFUSED)
def test_invalid_arrays_are_refused(changes, words, tmp_path):
    with pytest.raises(DataError, match=r"data\.npz.*" + words):
        load_npz(npz(tmp_path, **changes))


@pytest.mark.parametrize("content", [None, b"", b"text", "cut", "npy"])
def test_a_file_of_another_format_is_refused(content, tmp_path):
    path = npz(tmp_path)
    if content is None:
        path.unlink()
    elif content == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif content == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        path.write_bytes(content)
    with pytest.raises(
        DataError, match=r"data\.npz cannot be read as an \.npz file .*numpy\.savez"
    ) as caught:
        load_npz(path)
    assert "pickle" not in str(caught.value)


def member(header: bytes, values: bytes = b"") -> bytes:
    """An .npy file with any header."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + values


def npy_header(shape: str, dtype: str = "|u1") -> bytes:
    return f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()


def archive(path, train: bytes, method: int = zipfile.ZIP_DEFLATED):
    """The file of `npz` with other bytes as train_images.npy."""
    npz(path.parent)
    with zipfile.ZipFile(path) as old:
        contents = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(path, "w", method) as new:
        for name, content in (contents | {"train_images.npy": train}).items():
            new.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "train",
    [
        member(npy_header("(10**9,)")),
        member(npy_header("(1000000000000, 9, 9)")),
        member(npy_header("(-1, -9, 9)"), bytes(81)),
        member(npy_header("(10, 9, 9)"), bytes(809)),
        member(npy_header("(10, 9, 9)"), bytes(811)),
        member(npy_header("(10, 9, 9)", "|O"), bytes(810)),
        member(npy_header("(9" * 4000), bytes(810)),
        member(b"(" * 9000, bytes(810)),
        member(b"'" + b"\n" * 20),
        member(b"\xff" * 40),
        b"\x93NUMPY\x03\x00" + bytes(40),
        b"\x93NUMPY",
        b"",
    ],
)
def test_headers_that_do_not_fit_their_array_are_refused(train, tmp_path):
    path = archive(tmp_path / "data.npz", train)
    with pytest.raises(DataError, match=r"data\.npz cannot be read as an \.npz file"):
        load_npz(path)


def test_an_archive_larger_than_the_free_memory_is_not_unpacked(tmp_path, monkeypatch):
    path = archive(tmp_path / "data.npz", member(npy_header("(1000, 100, 100)"), bytes(10**7)))
    assert path.stat().st_size < 10**5
    monkeypatch.setattr("pkd.data.npz.available_memory", lambda: 10**7)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(DataError, match="GiB of memory are free"):
        load_npz(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_numpy_does_not_write_are_refused(method, tmp_path):
    path = archive(tmp_path / "data.npz", member(npy_header("(1, 9, 9)"), bytes(81)), method)
    with pytest.raises(DataError, match=r"cannot be read .*unknown method"):
        load_npz(path)


def test_an_encrypted_archive_is_refused(tmp_path):
    path = npz(tmp_path)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="encrypted"):
        load_npz(path)


def test_a_fifo_is_refused(tmp_path):
    os.mkfifo(tmp_path / "data.npz")
    with pytest.raises(DataError, match="it is a FIFO"):
        load_npz(tmp_path / "data.npz")


def test_arrays_that_are_not_used_are_not_read(tmp_path):
    path = npz(tmp_path, notes=np.array([{}]))
    assert load_npz(path).classes == ("0", "1")
