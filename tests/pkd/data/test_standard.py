"""The data sets: readers on small synthetic files, every refusal, download from a loopback home."""

import dataclasses
import gzip
import hashlib
import http.server
import io
import os
import pickle
import socket
import struct
import tarfile
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from pkd.data import standard as datasets
from pkd.data.arrays import resize
from pkd.data.sources import SOURCES
from pkd.utils.errors import PkdError

MNIST_RAW = "MNIST/raw"
BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def idx(array):
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def cifar_bin(images, labels):
    rows = np.concatenate([labels[:, None].astype(np.uint8), images.reshape(len(images), -1)], 1)
    return rows.tobytes()


def cifar_pickle(images, labels):
    batch = {"data": images.reshape(len(images), -1), "labels": labels.tolist()}
    return pickle.dumps(batch, protocol=2)


def cifar_python2_pickle(images, labels):
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


def write(folder, files):
    for name, content in files.items():
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.fixture
def officially(monkeypatch):
    """officially(name, files, **changes): these files' checksums become the registry's."""

    def register(name, files, **changes):
        def part(forms):
            return tuple(
                dataclasses.replace(form, md5=hashlib.md5(files[form.path]).hexdigest())
                if form.path in files
                else form
                for form in forms
            )

        source = SOURCES[name]
        splits = {key: tuple(map(part, getattr(source, key))) for key in ("train", "test")}
        monkeypatch.setitem(SOURCES, name, dataclasses.replace(source, **splits, **changes))

    return register


def random_split(seed, n, shape):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, *shape), dtype=np.uint8), np.arange(n) * 7 % 10


def mnist_files(packed=True):
    files = {}
    for seed, (prefix, n) in enumerate((("train", 23), ("t10k", 11))):
        images, labels = random_split(seed, n, (28, 28))
        files[f"{MNIST_RAW}/{prefix}-images-idx3-ubyte"] = idx(images)
        files[f"{MNIST_RAW}/{prefix}-labels-idx1-ubyte"] = idx(labels)
    if packed:
        files = {f"{name}.gz": gzip.compress(content) for name, content in files.items()}
    return files


def cifar_files(template="cifar-10-batches-bin/{}.bin", encode=cifar_bin):
    return {
        template.format(name): encode(*random_split(seed, 4 + seed, (3, 32, 32)))
        for seed, name in enumerate(BATCHES)
    }


@pytest.fixture
def mnist(tmp_path, officially):
    """An intact data folder; returns it with its files."""
    files = mnist_files()
    write(tmp_path, files)
    officially("mnist", files)
    return tmp_path, files


def refused(name, folder, *words):
    """load refuses, and its message has these words; returned for more looks."""
    with pytest.raises(PkdError) as caught:
        datasets.load(name, folder)
    for word in words:
        assert str(word) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files_round_trip(name, packed, tmp_path, officially):
    raw = {"mnist": MNIST_RAW, "fashion_mnist": "FashionMNIST/raw"}[name]
    files = {path.replace(MNIST_RAW, raw): data for path, data in mnist_files(packed).items()}
    write(tmp_path, files)
    officially(name, files)
    loaded = datasets.load(name, tmp_path)
    for seed, split in enumerate(("train", "test")):
        images, labels = random_split(seed, (23, 11)[seed], (28, 28))
        got_images, got_labels = (
            getattr(loaded, f"{split}_{kind}") for kind in ("images", "labels")
        )
        np.testing.assert_array_equal(got_images, images[:, None], strict=True)
        np.testing.assert_array_equal(got_labels, labels.astype(np.int64), strict=True)
    assert len(loaded.classes) == 10 and loaded.name == name
    assert [row.state for row in datasets.inspect(name, tmp_path)] == ["ok"] * 4


def old_spelling(images, labels):
    return cifar_pickle(images, labels).replace(b"numpy._core", b"numpy.core")


def new_spelling(images, labels):
    return old_spelling(images, labels).replace(b"numpy.core", b"numpy._core")


@pytest.mark.parametrize(
    ("template", "encode"),
    [
        ("cifar-10-batches-bin/{}.bin", cifar_bin),
        ("cifar-10-batches-py/{}", old_spelling),
        ("cifar-10-batches-py/{}", new_spelling),
        ("cifar-10-batches-py/{}", cifar_python2_pickle),
    ],
)
def test_cifar_batches_round_trip(template, encode, tmp_path, officially):
    files = cifar_files(template, encode)
    write(tmp_path, files)
    officially("cifar10", files)
    loaded = datasets.load("cifar10", tmp_path)
    batches = [random_split(seed, 4 + seed, (3, 32, 32)) for seed in range(6)]
    train_images, train_labels = (np.concatenate(parts) for parts in zip(*batches[:5], strict=True))
    np.testing.assert_array_equal(loaded.train_images, train_images, strict=True)
    np.testing.assert_array_equal(loaded.train_labels, train_labels, strict=True)
    np.testing.assert_array_equal(loaded.test_images, batches[5][0], strict=True)
    np.testing.assert_array_equal(loaded.test_labels, batches[5][1], strict=True)
    assert [row.state for row in datasets.inspect("cifar10", tmp_path)] == ["ok"] * 6


def test_python2_pickle_of_the_test_is_one():
    """The hand-written opcodes are what numpy itself reads."""
    images, labels = random_split(0, 5, (3, 32, 32))
    batch = pickle.loads(cifar_python2_pickle(images, labels), encoding="latin1")
    np.testing.assert_array_equal(batch["data"], images.reshape(5, -1), strict=True)
    assert batch["labels"] == labels.tolist()


def test_digits_are_scaled_and_split_stratified_and_stable():
    digits = datasets.load("digits")
    assert digits.train_images.shape == (1437, 1, 8, 8) and digits.test_images.shape[0] == 360
    assert digits.train_images.dtype == np.uint8 and digits.train_labels.dtype == np.int64
    assert set(np.unique(digits.train_images)) == {int(np.rint(v * 255 / 16)) for v in range(17)}
    everyone = np.bincount(digits.train_labels) + np.bincount(digits.test_labels)
    np.testing.assert_allclose(np.bincount(digits.test_labels), everyone / 5, atol=1)
    assert datasets.load("digits").digest == digits.digest
    assert datasets.inspect("digits") == datasets.download("digits") == []


@pytest.mark.parametrize("field", ["train_images", "train_labels", "test_images", "test_labels"])
def test_digest_follows_the_data(field):
    digits = datasets.load("digits")
    changed = getattr(digits, field).copy()
    changed.flat[-1] += 1
    assert dataclasses.replace(digits, **{field: changed}).digest != digits.digest
    reshaped = getattr(digits, field)[..., None]
    assert dataclasses.replace(digits, **{field: reshaped}).digest != digits.digest
    assert dataclasses.replace(digits, name="other").digest == digits.digest
    assert len(digits.digest) == 64


def test_load_never_touches_the_network(mnist, monkeypatch):
    def no_network(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "socket", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    folder, files = mnist
    datasets.load("mnist", folder)
    (folder / next(iter(files))).unlink()
    refused("mnist", folder, "--download")


def test_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("PKD_DATA_DIR", str(tmp_path))
    assert datasets.data_folder(None) == tmp_path
    assert datasets.data_folder(Path("here")) == Path("here")
    assert datasets.data_folder("~/here") == Path.home() / "here"
    monkeypatch.setenv("PKD_DATA_DIR", "")
    assert datasets.data_folder(None).name == "pkdgan"
    assert datasets.data_folder(None).is_absolute()


def test_the_environment_names_the_folder(mnist, monkeypatch):
    monkeypatch.setenv("PKD_DATA_DIR", str(mnist[0]))
    assert len(datasets.load("mnist").train_labels) == 23


@pytest.mark.parametrize("function", [datasets.load, datasets.inspect, datasets.download])
def test_unknown_name(function):
    with pytest.raises(PkdError, match=r"'svhn'.*digits, mnist, fashion_mnist, cifar10"):
        function("svhn")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_missing_files(name, tmp_path):
    first = SOURCES[name].parts[0]
    words = [
        tmp_path,
        *(form.path for form in first),
        f"pkd data {name} --data-dir {tmp_path} --download",
        "PKD_DATA_DIR",
    ]
    refused(name, tmp_path, *words)
    assert {row.state for row in datasets.inspect(name, tmp_path)} == {"missing"}
    assert not any(row.found for row in datasets.inspect(name, tmp_path))


def test_checksum_differs(mnist):
    folder, files = mnist
    path = f"{MNIST_RAW}/t10k-labels-idx1-ubyte.gz"
    other = gzip.compress(idx(np.zeros(11)))
    write(folder, {path: other})
    found, expected = (hashlib.md5(content).hexdigest() for content in (other, files[path]))
    refused("mnist", folder, folder / path, "checksum", found, expected, "delete it", "--download")
    states = {
        row.file: (row.found, row.state, row.path) for row in datasets.inspect("mnist", folder)
    }
    assert states.pop(path) == (True, "checksum differs", folder / path)
    assert {state for _, state, _ in states.values()} == {"ok"}


IMAGES, LABELS = f"{MNIST_RAW}/train-images-idx3-ubyte", f"{MNIST_RAW}/train-labels-idx1-ubyte"
BIN, PY = "cifar-10-batches-bin/data_batch_2.bin", "cifar-10-batches-py/data_batch_2"
FIVE = random_split(0, 5, (3, 32, 32))

BROKEN = {
    "idx header cut": (IMAGES, lambda: idx(np.zeros((5, 28, 28)))[:10], "truncated"),
    "idx data cut": (IMAGES, lambda: idx(np.zeros((5, 28, 28)))[:-1], "truncated"),
    "idx empty": (LABELS, lambda: b"", "truncated"),
    "idx too long": (LABELS, lambda: idx(np.zeros(5)) + b"x", "too long"),
    "idx magic": (IMAGES, lambda: b"\x89PNG" + bytes(100), "magic number 89504e47"),
    "labels for images": (IMAGES, lambda: idx(np.zeros(50)), "magic number 00000801"),
    "image size": (IMAGES, lambda: idx(np.zeros((5, 28, 27))), "(1, 28, 27), expected (1, 28, 28)"),
    "label 10": (LABELS, lambda: idx(np.array([1, 10])), "label 10 is out of range 0..9"),
    "gz cut": (f"{IMAGES}.gz", lambda: gzip.compress(os.urandom(999))[:-100], "truncated"),
    "gz empty": (f"{IMAGES}.gz", lambda: b"", "truncated"),
    "gz header": (f"{IMAGES}.gz", lambda: b"<html>no</html>", "not a valid gzip file"),
    "gz body": (
        f"{IMAGES}.gz",
        lambda: gzip.compress(bytes(999))[:10] + b"\xff" * 50,
        "not a valid gzip file",
    ),
    "gz crc": (
        f"{IMAGES}.gz",
        lambda: gzip.compress(bytes(999))[:-8] + bytes(8),
        "not a valid gzip file",
    ),
    "bin cut": (BIN, lambda: cifar_bin(*FIVE)[:-1], "truncated"),
    "bin empty": (BIN, lambda: b"", "truncated"),
    "bin label": (BIN, lambda: cifar_bin(FIVE[0], FIVE[1] + 200), "label 200 is out of range"),
    "py cut": (PY, lambda: cifar_pickle(*FIVE)[:-10], "not a CIFAR-10 batch"),
    "py empty": (PY, lambda: b"", "not a CIFAR-10 batch"),
    "py text": (PY, lambda: b"<html>no</html>", "not a CIFAR-10 batch"),
    "py no batch": (PY, lambda: pickle.dumps([1]), "not a CIFAR-10 batch"),
    "py label": (PY, lambda: cifar_pickle(FIVE[0], FIVE[1] - 1), "label -1 is out of range"),
    "py counts": (PY, lambda: cifar_pickle(FIVE[0], FIVE[1][:4]), "wrong shape"),
    "py labels": (PY, lambda: cifar_pickle(FIVE[0], np.int64(3)), "wrong shape"),
    "py shape": (PY, lambda: cifar_pickle(FIVE[0][:, :1], FIVE[1]), "wrong shape"),
    "py type": (PY, lambda: cifar_pickle(FIVE[0].astype("i2"), FIVE[1]), "wrong shape"),
    "py order": (
        PY,
        lambda: pickle.dumps(
            {"data": np.asfortranarray(FIVE[0].reshape(5, -1)), "labels": [0] * 5}, protocol=2
        ),
        "wrong shape",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_file(case, tmp_path, officially):
    """The message tells the structure, even where the registry calls the broken file official."""
    path, content, words = BROKEN[case]
    name = "mnist" if path.startswith("MNIST") else "cifar10"
    template = "cifar-10-batches-bin/{}.bin" if path == BIN else "cifar-10-batches-py/{}"
    encode = cifar_bin if path == BIN else cifar_pickle
    files = mnist_files(path.endswith(".gz")) if name == "mnist" else cifar_files(template, encode)
    files[path] = content()
    write(tmp_path, files)
    remedy = f"delete it and run `pkd data {name} --data-dir {tmp_path} --download`"
    officially(name, files)
    refused(name, tmp_path, tmp_path / path, words, remedy)


def test_images_and_labels_of_different_number(tmp_path, officially):
    files = mnist_files(packed=False) | {LABELS: idx(np.zeros(22))}
    write(tmp_path, files)
    officially("mnist", files)
    refused("mnist", tmp_path, "23 images but 22 labels", tmp_path, "train-labels-idx1-ubyte")


class Malice:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_malicious_pickle_does_not_run(protocol, tmp_path, officially):
    trace = tmp_path / "ran"
    evil = [
        Malice(os.mkdir, str(trace)),
        Malice(eval, f"__import__('os').mkdir({str(trace)!r})"),
        Malice(np.fromfile, str(tmp_path)),
    ]
    for payload in evil:
        files = cifar_files("cifar-10-batches-py/{}", cifar_pickle)
        files[PY] = pickle.dumps({"data": payload, "labels": []}, protocol)
        write(tmp_path, files)
        officially("cifar10", files)
        refused("cifar10", tmp_path, tmp_path / PY, "it asks for")
    assert not trace.exists()


def test_forged_dtype_in_a_pickle_stays_inert(tmp_path, officially):
    """Raw bytes declared to be an array of objects: numpy's own classes would follow the pointers.

    The object type's flags are zeroed, which is what makes numpy take the bytes at their word.
    """
    forged = cifar_python2_pickle(*FIVE).replace(b"U\x02u1", b"U\x02O8")
    files = cifar_files("cifar-10-batches-py/{}", cifar_pickle) | {PY: forged}
    write(tmp_path, files)
    officially("cifar10", files)
    refused("cifar10", tmp_path, "wrong shape", "'O8'")


def test_a_folder_in_place_of_a_file(mnist):
    folder, files = mnist
    path = folder / next(iter(files))
    path.unlink()
    path.mkdir()
    refused("mnist", folder, path, "cannot be read")
    assert datasets.inspect("mnist", folder)[0].state == "unreadable"
    with pytest.raises(PkdError, match="unreadable; it is not overwritten"):
        datasets.download("mnist", folder)


def test_a_file_in_place_of_the_data_folder(tmp_path):
    (tmp_path / "file").write_text("")
    refused("mnist", tmp_path / "file", "cannot be read")


def test_a_file_without_permission(mnist, monkeypatch):
    folder, _ = mnist

    def denied(self):
        raise PermissionError(13, "Permission denied", str(self))  # root would not be denied

    monkeypatch.setattr(Path, "read_bytes", denied)
    refused("mnist", folder, IMAGES, "Permission denied")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A data set's home on the loopback: (its folder, its URL, the paths asked for)."""
    folder, asked = tmp_path / "home", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "127.0.0.1")
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/", asked
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def mnist_home(home, officially):
    folder, url, asked = home
    files = mnist_files()
    write(folder, {Path(path).name: content for path, content in files.items()})
    officially("mnist", files, url=url)
    return folder, files, asked


def below(folder):
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def test_download_fetches_only_what_is_missing(mnist_home, tmp_path, officially):
    _, files, asked = mnist_home
    data = tmp_path / "data"
    plain = mnist_files(packed=False)[LABELS]
    packed = f"{IMAGES}.gz"
    officially("mnist", files | {LABELS: plain})
    write(data, {packed: files[packed], LABELS: plain})  # one as published, one unpacked
    before = (data / packed).stat().st_mtime_ns
    rows = datasets.download("mnist", data)
    assert [row.state for row in rows] == ["ok"] * 4
    assert (data / packed).stat().st_mtime_ns == before
    assert sorted(asked) == ["/t10k-images-idx3-ubyte.gz", "/t10k-labels-idx1-ubyte.gz"]
    assert below(data) == files.keys() - {f"{LABELS}.gz"} | {LABELS}
    assert len(datasets.load("mnist", data).train_labels) == 23
    datasets.download("mnist", data)
    assert len(asked) == 2


def test_download_refuses_to_overwrite(mnist_home, tmp_path):
    _, files, asked = mnist_home
    path = tmp_path / "data" / next(iter(files))
    write(tmp_path / "data", {next(iter(files)): b"mine"})
    with pytest.raises(
        PkdError, match=r"checksum differs; it is not overwritten.*Move it away"
    ) as e:
        datasets.download("mnist", tmp_path / "data")
    assert str(path) in str(e.value)
    assert path.read_bytes() == b"mine" and asked == []


@pytest.mark.parametrize("failure", ["wrong bytes", "cut short", "404", "no server"])
def test_failed_download_leaves_nothing_behind(failure, mnist_home, tmp_path, officially):
    folder, files, _ = mnist_home
    first = folder / Path(next(iter(files))).name
    if failure == "wrong bytes":
        first.write_bytes(b"<html>moved</html>")
    elif failure == "cut short":
        first.write_bytes(first.read_bytes()[:-1])
    elif failure == "404":
        first.unlink()
    else:
        with socket.create_server(("127.0.0.1", 0)) as unused:
            port = unused.getsockname()[1]
        officially("mnist", files, url=f"http://127.0.0.1:{port}/")
    with pytest.raises(PkdError, match=r"mnist: download from http://127.* failed .*Try again"):
        datasets.download("mnist", tmp_path / "data")
    assert below(tmp_path / "data") == set()


def test_download_into_a_place_that_is_no_folder(mnist_home, tmp_path):
    (tmp_path / "MNIST").write_text("")
    with pytest.raises(PkdError, match="unreadable"):
        datasets.download("mnist", tmp_path)


def tar(files):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


@pytest.fixture
def cifar_home(home, officially):
    """serve(files, content): `files` are official, the home serves `content` as their archive."""
    folder, url, asked = home

    def serve(files, content):
        write(folder, {"cifar.tar.gz": content})
        md5 = hashlib.md5(content).hexdigest()
        officially("cifar10", files, url=f"{url}cifar.tar.gz", archive_md5=md5)
        return asked

    return serve


def test_download_takes_only_the_batches_from_the_archive(cifar_home, tmp_path):
    files = cifar_files()
    data = tmp_path / "data"
    asked = cifar_home(files, tar(files | {"../escaped": b"x", f"{tmp_path}/absolute": b"x"}))
    write(data, {BIN: files[BIN]})
    before = (data / BIN).stat().st_mtime_ns
    assert [row.state for row in datasets.download("cifar10", data)] == ["ok"] * 6
    assert (data / BIN).stat().st_mtime_ns == before
    assert below(data) == files.keys()
    assert {path.name for path in data.iterdir()} == {"cifar-10-batches-bin"}
    assert not (tmp_path / "escaped").exists() and not (tmp_path / "absolute").exists()
    assert len(datasets.load("cifar10", data).train_labels) == 30
    datasets.download("cifar10", data)
    assert asked == ["/cifar.tar.gz"]


@pytest.mark.parametrize("failure", ["no archive", "cut short", "member missing", "member differs"])
def test_failed_archive_leaves_no_wrong_file(failure, cifar_home, tmp_path):
    files = cifar_files()
    content = {
        "no archive": b"<html>moved</html>",
        "cut short": tar(files)[:-2000],
        "member missing": tar({path: files[path] for path in files if path != BIN}),
        "member differs": tar(files | {BIN: b"other"}),
    }[failure]
    cifar_home(files, content)
    with pytest.raises(PkdError, match="cifar10: download from"):
        datasets.download("cifar10", tmp_path / "data")
    assert {row.state for row in datasets.inspect("cifar10", tmp_path / "data")} <= {
        "ok",
        "missing",
    }
    assert below(tmp_path / "data") <= files.keys() - {BIN}


def bilinear_pixel(image, row, col, size):
    """One output pixel in float64, from the definition with half-pixel centres.

    Every input pixel counts by a triangle about the place that is looked up, one pixel of the
    coarser of the two grids wide to each side.
    """

    def weights(i, n):
        step = n / size
        w = np.maximum(0, 1 - abs(np.arange(n) + 0.5 - (i + 0.5) * step) / max(step, 1))
        return w / w.sum()

    return weights(row, image.shape[0]) @ image.astype(float) @ weights(col, image.shape[1])


@pytest.mark.parametrize(("side", "size"), [(28, 32), (8, 32), (32, 28), (7, 13), (99, 16)])
def test_resize_is_bilinear_and_rounded(side, size):
    images, _ = random_split(3, 3, (2, side, side))
    resized = resize(images, size)
    assert resized.shape == (3, 2, size, size) and resized.dtype == torch.uint8
    places = [(0, 0), (0, size - 1), (1, 2), (size // 2, size // 3), (size - 1, size - 1)]
    for row, col in places:
        exact = bilinear_pixel(images[2, 1], row, col, size)
        assert abs(int(resized[2, 1, row, col]) - exact) <= 0.5 + 1e-3


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
def test_resize_keeps_a_constant_image(value):
    images = np.full((2, 3, 28, 28), value, np.uint8)
    assert (resize(images) == value).all()


def test_resize_keeps_the_range_of_hard_edges():
    board = np.indices((28, 28)).sum(0)[None, None] % 2 * 255
    resized = resize(board.astype(np.uint8))
    assert resized.min() >= 0 and resized.max() <= 255 and 100 < resized.float().mean() < 155


def test_resize_to_the_same_size_is_an_unshared_copy():
    images, _ = random_split(4, 2, (3, 32, 32))
    resized = resize(images)
    np.testing.assert_array_equal(resized.numpy(), images, strict=True)
    resized[:] = 0
    assert images.any()


def test_resize_in_chunks_is_resize_one_by_one():
    images, _ = random_split(5, 2050, (1, 8, 8))
    resized = resize(images[::-1], 16)  # and a view with negative strides
    for i in (0, 1023, 1024, 2047, 2048, 2049):
        assert torch.equal(resized[i : i + 1], resize(images[::-1][i : i + 1], 16))
    assert resize(images[:0]).shape == (0, 1, 32, 32)


@pytest.mark.parametrize(
    ("name", "train", "test", "shape"),
    [
        ("mnist", 60000, 10000, (1, 28, 28)),
        ("fashion_mnist", 60000, 10000, (1, 28, 28)),
        ("cifar10", 50000, 10000, (3, 32, 32)),
    ],
)
def test_the_real_files(name, train, test, shape):
    if not os.environ.get("PKD_DATA_DIR"):
        pytest.skip("PKD_DATA_DIR is not set")
    if not all(row.found for row in datasets.inspect(name)):
        pytest.skip(f"PKD_DATA_DIR has no {name}")
    real = datasets.load(name)
    assert real.train_images.shape == (train, *shape) and real.test_images.shape == (test, *shape)
    assert real.train_labels.shape == (train,) and set(real.test_labels) == set(range(10))


def test_the_registry_is_complete():
    assert (*SOURCES,) == ("mnist", "fashion_mnist", "cifar10") == datasets.DATASETS[1:]
    forms = [form for source in SOURCES.values() for part in source.parts for form in part]
    assert len({form.md5 for form in forms}) == len({form.path for form in forms}) == len(forms)
    assert all(len(bytes.fromhex(form.md5)) == 16 for form in forms)
    assert all(len(set(source.classes)) == 10 for source in SOURCES.values())
