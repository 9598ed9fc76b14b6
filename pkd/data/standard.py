"""The standard data sets: digits (part of scikit-learn), MNIST, Fashion-MNIST and CIFAR-10.

`load` and `inspect` read local files only; `download` is the only function that uses the network.
"""

import hashlib
import os
import shlex
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pooch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from pkd.data.dataset import Dataset
from pkd.data.formats import Arrays
from pkd.data.sources import DIGIT_CLASSES, SOURCES, Alternatives, OfficialFile, Source
from pkd.utils.errors import DataError, PkdError
from pkd.utils.files import atomic_write, open_regular

DATASETS = ("digits", *SOURCES)

FileState = Literal["ok", "missing", "checksum differs", "unreadable"]


@dataclass(frozen=True)
class FileStatus:
    """State of a file of a data set.

    Attributes:
        file: path relative to the data folder.
        path: path of the file.
        state: result of the verification.
    """

    file: str
    path: Path
    state: FileState


def data_folder(data_dir: Path | str | None = None) -> Path:
    """Return `data_dir` if given, else $PKD_DATA_DIR, else a folder in the user's cache."""
    folder = Path(data_dir or os.environ.get("PKD_DATA_DIR") or pooch.os_cache("pkdgan"))
    try:
        return folder.expanduser()
    except RuntimeError as error:  # such as ~name of an unknown user
        raise DataError(f"{folder}: {error}; write the path of the folder in full") from error


def load(name: str, data_dir: Path | str | None = None) -> Dataset:
    """Load a data set from its official files. Nothing is parsed before its checksum is verified.

    Args:
        name: one of DATASETS.
        data_dir: see `data_folder`.

    Raises:
        DataError: the name is unknown; a file is missing, unreadable or not the official one.
    """
    source = _source(name)
    if source is None:
        return _load_digits()
    folder = data_folder(data_dir)
    train = _load_split(name, source.train, folder)
    test = _load_split(name, source.test, folder)
    return Dataset(name, source.classes, *train, *test)


def inspect(name: str, data_dir: Path | str | None = None) -> list[FileStatus]:
    """Verify the files of a data set.

    Of alternative files, the first one that exists is verified. The list is empty for "digits",
    which needs no files. Arguments as for `load`.

    Raises:
        DataError: the name is unknown.
    """
    source, folder = _source(name), data_folder(data_dir)
    return [_status(files, folder) for files in (*source.train, *source.test)] if source else []


def download(name: str, data_dir: Path | str | None = None) -> list[FileStatus]:
    """Download the missing files of a data set, verify them and return the new state of all files.

    Files are written completely or not at all; existing files are never overwritten. Arguments as
    for `load`.

    Raises:
        DataError: the name is unknown, a wrong file exists already, or a download failed.
    """
    source, folder = _source(name), data_folder(data_dir)
    if source is None:
        return []
    statuses = inspect(name, folder)
    for status in statuses:
        if status.state not in ("ok", "missing"):
            raise DataError(
                f"{status.path}: {status.state}; it is not overwritten. "
                f"Move it away and run `{download_command(name, folder)}` again."
            )
    expected = zip((*source.train, *source.test), statuses, strict=True)
    missing = [files[0] for files, status in expected if status.state == "missing"]
    if missing:
        fetch = _download_archive if source.archive_sha256 else _download_files
        try:
            fetch(source, missing, folder)
        # pooch raises OSError for the connection and the disk, ValueError for a wrong checksum
        except (
            *(PkdError, OSError, ValueError, KeyError, EOFError),
            *(tarfile.TarError, zlib.error),
        ) as error:
            raise DataError(
                f"{name}: download from {source.url} to {folder} failed ({error}). Try again, or "
                f"copy the files there yourself; `pkd data {name}` lists them."
            ) from error
    return inspect(name, folder)


def download_command(name: str, folder: Path) -> str:
    """Return the command that downloads the missing files of a data set into `folder`."""
    return f"pkd data {name} --data-dir {shlex.quote(str(folder))} --download"


def _source(name: str) -> Source | None:
    """Return the source of a data set, None for "digits"; DataError if the name is unknown."""
    if name not in DATASETS:
        raise DataError(f"{name!r} is no data set; choose one of {', '.join(DATASETS)}")
    return SOURCES.get(name)


def _load_digits() -> Dataset:
    """Load the 8x8 digits: 0..16 scaled to 0..255, a fixed stratified fifth as the test split."""
    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=0
    )
    return Dataset("digits", DIGIT_CLASSES, train_images, train_labels, test_images, test_labels)


def _load_split(
    name: str, split: Sequence[Alternatives], folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Load images (n, C, H, W) and labels (n,) of all files of a split, in their order."""
    contents = [_load_file(name, alternatives, folder) for alternatives in split]
    images = np.concatenate([arrays["images"] for arrays in contents if "images" in arrays])
    labels = np.concatenate([arrays["labels"] for arrays in contents if "labels" in arrays])
    return images, labels


def _load_file(name: str, alternatives: Alternatives, folder: Path) -> Arrays:
    """Verify and parse the first of the alternative files that exists; DataError as for `load`."""
    for file in alternatives:
        content = _read(file, folder)
        if content is None:
            continue
        if not _is_official(content, file):
            raise DataError(
                f"{folder / file.path}: checksum differs ({_difference(content, file)}); delete it "
                f"and run `{download_command(name, folder)}`"
            )
        return file.parse(content)
    paths = " or ".join(file.path for file in alternatives)
    raise DataError(
        f"{name}: {folder} does not contain {paths}. Get it with "
        f"`{download_command(name, folder)}`, or set `data_dir` or PKD_DATA_DIR to the folder that "
        "contains it."
    )


def _read(file: OfficialFile, folder: Path) -> bytes | None:
    """Return the content, None if the file does not exist; DataError if it cannot be read.

    Of a file that is too long, only one byte more than the official file has is read.
    """
    path = folder / file.path
    try:
        with open_regular(path) as stream:
            return stream.read(file.size + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}). Make it a readable file, or set "
            "PKD_DATA_DIR to another folder."
        ) from error


def _is_official(content: bytes, file: OfficialFile) -> bool:
    return _sha256(content) == file.sha256


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _difference(content: bytes, file: OfficialFile) -> str:
    if len(content) < file.size:
        return f"truncated: {len(content)} of {file.size} bytes"
    if len(content) > file.size:
        return f"too long: expected {file.size} bytes"
    return f"SHA-256 is {_sha256(content)}, expected {file.sha256}"


def _status(alternatives: Alternatives, folder: Path) -> FileStatus:
    """Return the status of the first of the alternative files that exists."""
    for file in alternatives:
        state = _state(file, folder)
        if state != "missing":
            return FileStatus(file.path, folder / file.path, state)
    return FileStatus(alternatives[0].path, folder / alternatives[0].path, "missing")


def _state(file: OfficialFile, folder: Path) -> FileState:
    try:
        content = _read(file, folder)
    except DataError:
        return "unreadable"
    if content is None:
        return "missing"
    return "ok" if _is_official(content, file) else "checksum differs"


def _download_files(source: Source, files: Sequence[OfficialFile], folder: Path) -> None:
    for file in files:
        path = folder / file.path
        url = source.url + path.name
        pooch.retrieve(url, f"sha256:{file.sha256}", fname=path.name, path=path.parent)


def _download_archive(source: Source, files: Sequence[OfficialFile], folder: Path) -> None:
    """Download the archive and copy the content of `files`; no path in the archive is used."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        known_hash = f"sha256:{source.archive_sha256}"
        archive_path = pooch.retrieve(source.url, known_hash, fname="archive", path=scratch)
        with tarfile.open(archive_path) as archive:
            for file in files:
                member = archive.extractfile(file.path)
                content = member.read() if member else b""
                if not _is_official(content, file):
                    raise ValueError(f"{file.path} in the archive: checksum differs")
                path = folder / file.path
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(path, overwrite=False) as temporary:
                    temporary.write_bytes(content)
