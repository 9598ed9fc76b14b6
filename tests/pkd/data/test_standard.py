"""The standard data sets: loading, verification and download from a local web server."""

import dataclasses
import hashlib
import http.server
import io
import os
import pickle
import socket
import tarfile
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from data_file_helpers import (
    MNIST_RAW,
    cifar_files,
    encode_binary,
    encode_numpy1_pickle,
    encode_pickle,
    encode_python2_pickle,
    mnist_files,
    random_split,
    write_files,
)

from pkd.data import standard
from pkd.data.sources import SOURCES
from pkd.utils.errors import DataError


@pytest.fixture
def officially(monkeypatch):
    """Return a function that makes `files` the official files of a data set."""

    def register(name, files, **changes):
        def replaced(file):
            if file.path not in files:
                return file
            content = files[file.path]
            sha256 = hashlib.sha256(content).hexdigest()
            return dataclasses.replace(file, size=len(content), sha256=sha256)

        source = SOURCES[name]
        splits = {
            split: tuple(tuple(map(replaced, group)) for group in getattr(source, split))
            for split in ("train", "test")
        }
        monkeypatch.setitem(SOURCES, name, dataclasses.replace(source, **splits, **changes))

    return register


@pytest.fixture
def mnist(tmp_path, officially):
    """An intact data folder; returns it with its files."""
    files = mnist_files()
    write_files(tmp_path, files)
    officially("mnist", files)
    return tmp_path, files


def refused(name, folder, *words):
    """Assert that `load` raises a DataError whose message contains all the words."""
    with pytest.raises(DataError) as caught:
        standard.load(name, folder)
    for word in words:
        assert str(word) in str(caught.value)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files_are_loaded(name, compressed, tmp_path, officially):
    raw = {"mnist": MNIST_RAW, "fashion_mnist": "FashionMNIST/raw"}[name]
    files = {path.replace(MNIST_RAW, raw): data for path, data in mnist_files(compressed).items()}
    write_files(tmp_path, files)
    officially(name, files)
    loaded = standard.load(name, tmp_path)
    for seed, split in enumerate(("train", "test")):
        images, labels = random_split(seed, (23, 11)[seed], (28, 28))
        loaded_images, loaded_labels = (
            getattr(loaded, f"{split}_{kind}") for kind in ("images", "labels")
        )
        np.testing.assert_array_equal(loaded_images, images[:, None], strict=True)
        np.testing.assert_array_equal(loaded_labels, labels.astype(np.int64), strict=True)
    assert len(loaded.classes) == 10
    assert loaded.name == name
    assert [row.state for row in standard.inspect(name, tmp_path)] == ["ok"] * 4


@pytest.mark.parametrize(
    ("template", "encode"),
    [
        ("cifar-10-batches-bin/{}.bin", encode_binary),
        ("cifar-10-batches-py/{}", encode_numpy1_pickle),
        ("cifar-10-batches-py/{}", encode_pickle),
        ("cifar-10-batches-py/{}", encode_python2_pickle),
    ],
)
def test_cifar_batches_are_loaded(template, encode, tmp_path, officially):
    files = cifar_files(template, encode)
    write_files(tmp_path, files)
    officially("cifar10", files)
    loaded = standard.load("cifar10", tmp_path)
    batches = [random_split(seed, 4 + seed) for seed in range(6)]
    train_images, train_labels = (np.concatenate(parts) for parts in zip(*batches[:5], strict=True))
    np.testing.assert_array_equal(loaded.train_images, train_images, strict=True)
    np.testing.assert_array_equal(loaded.train_labels, train_labels, strict=True)
    np.testing.assert_array_equal(loaded.test_images, batches[5][0], strict=True)
    np.testing.assert_array_equal(loaded.test_labels, batches[5][1], strict=True)
    assert [row.state for row in standard.inspect("cifar10", tmp_path)] == ["ok"] * 6


def test_digits_are_scaled_and_split_stratified_and_stable():
    digits = standard.load("digits")
    assert digits.train_images.shape == (1437, 1, 8, 8)
    assert digits.test_images.shape[0] == 360
    assert digits.train_images.dtype == np.uint8
    assert digits.train_labels.dtype == np.int64
    assert set(np.unique(digits.train_images)) == {int(np.rint(v * 255 / 16)) for v in range(17)}
    totals = np.bincount(digits.train_labels) + np.bincount(digits.test_labels)
    np.testing.assert_allclose(np.bincount(digits.test_labels), totals / 5, atol=1)
    assert standard.load("digits").digest == digits.digest
    assert standard.inspect("digits") == standard.download("digits") == []


def test_load_never_uses_the_network(mnist, monkeypatch):
    def no_network(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    folder, files = mnist
    standard.load("mnist", folder)
    (folder / next(iter(files))).unlink()
    refused("mnist", folder, "--download")


def test_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("PKD_DATA_DIR", str(tmp_path))
    assert standard.data_folder(None) == tmp_path
    assert standard.data_folder(Path("here")) == Path("here")
    assert standard.data_folder("~/here") == Path.home() / "here"
    monkeypatch.setenv("PKD_DATA_DIR", "")
    assert standard.data_folder(None).name == "pkdgan"
    assert standard.data_folder(None).is_absolute()


def test_the_environment_variable_sets_the_folder(mnist, monkeypatch):
    monkeypatch.setenv("PKD_DATA_DIR", str(mnist[0]))
    assert len(standard.load("mnist").train_labels) == 23


@pytest.mark.parametrize("function", [standard.load, standard.inspect, standard.download])
def test_unknown_name(function):
    with pytest.raises(DataError, match=r"'svhn'.*digits, mnist, fashion_mnist, cifar10"):
        function("svhn")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_missing_files(name, tmp_path):
    words = [
        tmp_path,
        *(file.path for file in SOURCES[name].train[0]),
        f"pkd data {name} --data-dir {tmp_path} --download",
        "PKD_DATA_DIR",
    ]
    refused(name, tmp_path, *words)
    assert {status.state for status in standard.inspect(name, tmp_path)} == {"missing"}


def test_checksum_differs(mnist):
    folder, files = mnist
    path = f"{MNIST_RAW}/t10k-labels-idx1-ubyte.gz"
    content = files[path][:-1] + b"x"
    write_files(folder, {path: content})
    checksums = (hashlib.sha256(c).hexdigest() for c in (content, files[path]))
    refused("mnist", folder, folder / path, "checksum differs", *checksums, "delete it")
    states = {
        status.file: (status.state, status.path) for status in standard.inspect("mnist", folder)
    }
    assert states.pop(path) == ("checksum differs", folder / path)
    assert {state for state, _ in states.values()} == {"ok"}


IMAGES, LABELS = f"{MNIST_RAW}/train-images-idx3-ubyte", f"{MNIST_RAW}/train-labels-idx1-ubyte"
BIN, PY = "cifar-10-batches-bin/data_batch_2.bin", "cifar-10-batches-py/data_batch_2"
LAYOUTS = {
    IMAGES: ("mnist", mnist_files(compressed=False)),
    f"{LABELS}.gz": ("mnist", mnist_files()),
    BIN: ("cifar10", cifar_files()),
    PY: ("cifar10", cifar_files("cifar-10-batches-py/{}", encode_pickle)),
}
DAMAGES = {
    "empty": (lambda content: b"", "truncated: 0 of"),
    "cut": (lambda content: content[:-1], "truncated"),
    "page": (lambda content: b"<html>not found</html>", "truncated: 22 of"),
    "longer": (lambda content: content + b"x", "too long:"),
    "first byte": (lambda content: b"x" + content[1:], "SHA-256 is"),
    "last byte": (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "SHA-256 is"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("path", LAYOUTS)
def test_a_damaged_file_is_reported_with_the_remedy(path, damage, tmp_path, officially):
    name, files = LAYOUTS[path]
    officially(name, files)
    change, words = DAMAGES[damage]
    write_files(tmp_path, files | {path: change(files[path])})
    remedy = f"delete it and run `pkd data {name} --data-dir {tmp_path} --download`"
    refused(name, tmp_path, f"{tmp_path / path}: checksum differs ({words}", remedy)
    states = {status.file: status.state for status in standard.inspect(name, tmp_path)}
    assert states.pop(path) == "checksum differs"
    assert set(states.values()) == {"ok"}


class Malice:
    """Pickles as a call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_forged_pickle_is_never_unpickled(protocol, tmp_path, officially):
    trace = tmp_path / "executed"
    files = cifar_files("cifar-10-batches-py/{}", encode_pickle)
    officially("cifar10", files)
    payload = {"data": Malice(os.mkdir, str(trace)), "labels": []}
    forged = pickle.dumps(payload, protocol)
    forged += bytes(len(files[PY]) - len(forged))  # the official size
    write_files(tmp_path, files | {PY: forged})
    refused("cifar10", tmp_path, tmp_path / PY, "checksum differs (SHA-256 is")
    assert not trace.exists()
    pickle.loads(forged)
    assert trace.exists()


def test_a_folder_with_the_name_of_a_file(mnist):
    folder, files = mnist
    path = folder / next(iter(files))
    path.unlink()
    path.mkdir()
    refused("mnist", folder, path, "cannot be read")
    assert standard.inspect("mnist", folder)[0].state == "unreadable"
    with pytest.raises(DataError, match="unreadable; it is not overwritten"):
        standard.download("mnist", folder)


def test_a_file_with_the_name_of_the_data_folder(tmp_path):
    (tmp_path / "file").write_text("")
    refused("mnist", tmp_path / "file", "cannot be read")


def test_a_file_without_permission(mnist, monkeypatch):
    folder, _ = mnist

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))  # root has every permission

    monkeypatch.setattr("pkd.data.standard.open_regular", denied)
    refused("mnist", folder, IMAGES, "Permission denied")


def test_a_fifo_is_refused_at_once(mnist):
    folder, files = mnist
    path = folder / next(iter(files))
    path.unlink()
    os.mkfifo(path)
    refused("mnist", folder, path, "it is a FIFO")


def test_of_a_file_that_is_too_long_little_is_read_and_nothing_unpacked(mnist, monkeypatch):
    folder, files = mnist
    path = folder / next(iter(files))
    monkeypatch.setattr("gzip.decompress", lambda _: pytest.fail("it was unpacked"))
    with path.open("r+b") as file:
        file.truncate(2**40)  # sparse: more than any memory holds
    refused("mnist", folder, path, "too long")


def test_the_home_folder_of_an_unknown_user_is_refused(monkeypatch):
    with pytest.raises(DataError, match=r"~nobody9/x: .*in full"):
        standard.data_folder("~nobody9/x")
    monkeypatch.setenv("PKD_DATA_DIR", "~nobody9")
    refused("mnist", None, "~nobody9")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A local web server: (its folder, its URL, the requested paths)."""
    folder, requests = tmp_path / "home", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            requests.append(self.path)

    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "127.0.0.1")
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/", requests
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def mnist_home(home, officially):
    folder, url, requests = home
    files = mnist_files()
    write_files(folder, {Path(path).name: content for path, content in files.items()})
    officially("mnist", files, url=url)
    return folder, files, requests


def files_in(folder):
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def test_download_fetches_only_what_is_missing(mnist_home, tmp_path, officially):
    _, files, requests = mnist_home
    data = tmp_path / "data"
    plain = mnist_files(compressed=False)[LABELS]
    compressed = f"{IMAGES}.gz"
    officially("mnist", files | {LABELS: plain})
    write_files(
        data, {compressed: files[compressed], LABELS: plain}
    )  # one as published, one uncompressed
    before = (data / compressed).stat().st_mtime_ns
    rows = standard.download("mnist", data)
    assert [row.state for row in rows] == ["ok"] * 4
    assert (data / compressed).stat().st_mtime_ns == before
    assert sorted(requests) == ["/t10k-images-idx3-ubyte.gz", "/t10k-labels-idx1-ubyte.gz"]
    assert files_in(data) == files.keys() - {f"{LABELS}.gz"} | {LABELS}
    assert len(standard.load("mnist", data).train_labels) == 23
    standard.download("mnist", data)
    assert len(requests) == 2


def test_download_never_overwrites_a_file(mnist_home, tmp_path):
    _, files, requests = mnist_home
    path = tmp_path / "data" / next(iter(files))
    write_files(tmp_path / "data", {next(iter(files)): b"mine"})
    with pytest.raises(
        DataError, match=r"checksum differs; it is not overwritten.*Move it away"
    ) as e:
        standard.download("mnist", tmp_path / "data")
    assert str(path) in str(e.value)
    assert path.read_bytes() == b"mine"
    assert requests == []


@pytest.mark.parametrize("failure", ["wrong bytes", "cut short", "404", "no server"])
def test_a_failed_download_leaves_no_files(failure, mnist_home, tmp_path, officially):
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
    with pytest.raises(DataError, match=r"mnist: download from http://127.* failed .*Try again"):
        standard.download("mnist", tmp_path / "data")
    assert files_in(tmp_path / "data") == set()


def test_download_into_a_file_fails(mnist_home, tmp_path):
    (tmp_path / "MNIST").write_text("")
    with pytest.raises(DataError, match="unreadable"):
        standard.download("mnist", tmp_path)


def tar(files):
    compressed = io.BytesIO()
    with tarfile.open(fileobj=compressed, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return compressed.getvalue()


@pytest.fixture
def cifar_home(home, officially):
    """Return serve(files, content): `files` become official, `content` the archive that is sent."""
    folder, url, requests = home

    def serve(files, content):
        write_files(folder, {"cifar.tar.gz": content})
        sha256 = hashlib.sha256(content).hexdigest()
        officially("cifar10", files, url=f"{url}cifar.tar.gz", archive_sha256=sha256)
        return requests

    return serve


def test_download_extracts_only_the_batches_from_the_archive(cifar_home, tmp_path):
    files = cifar_files()
    data = tmp_path / "data"
    requests = cifar_home(files, tar(files | {"../escaped": b"x", f"{tmp_path}/absolute": b"x"}))
    write_files(data, {BIN: files[BIN]})
    before = (data / BIN).stat().st_mtime_ns
    assert [row.state for row in standard.download("cifar10", data)] == ["ok"] * 6
    assert (data / BIN).stat().st_mtime_ns == before
    assert files_in(data) == files.keys()
    assert {path.name for path in data.iterdir()} == {"cifar-10-batches-bin"}
    assert not (tmp_path / "escaped").exists()
    assert not (tmp_path / "absolute").exists()
    assert len(standard.load("cifar10", data).train_labels) == 30
    standard.download("cifar10", data)
    assert requests == ["/cifar.tar.gz"]


@pytest.mark.parametrize("failure", ["no archive", "cut short", "member missing", "member differs"])
def test_a_failed_archive_leaves_no_wrong_file(failure, cifar_home, tmp_path):
    files = cifar_files()
    content = {
        "no archive": b"<html>moved</html>",
        "cut short": tar(files)[:-2000],
        "member missing": tar({path: files[path] for path in files if path != BIN}),
        "member differs": tar(files | {BIN: b"other"}),
    }[failure]
    cifar_home(files, content)
    with pytest.raises(DataError, match="cifar10: download from"):
        standard.download("cifar10", tmp_path / "data")
    assert {row.state for row in standard.inspect("cifar10", tmp_path / "data")} <= {
        "ok",
        "missing",
    }
    assert files_in(tmp_path / "data") <= files.keys() - {BIN}
