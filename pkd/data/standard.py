"""The data sets: digits (bundled with scikit-learn), MNIST, Fashion-MNIST and CIFAR-10.

Loading reads and verifies local files and never touches the network; only `download` does.
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

import numpy as np
import pooch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from pkd.data.dataset import Dataset
from pkd.data.formats import Arrays, FormatError
from pkd.data.sources import SOURCES, TEN_DIGITS, Form, Part, Source
from pkd.utils.errors import PkdError

DATASETS = ("digits", *SOURCES)

OK, MISSING, DIFFERS, UNREADABLE = "ok", "missing", "checksum differs", "unreadable"


@dataclass(frozen=True)
class FileStatus:
    """One file of a data set: `file` is its name below the data folder, `state` one of "ok",
    "missing", "checksum differs" and "unreadable"."""

    file: str
    path: Path
    state: str

    @property
    def found(self) -> bool:
        return self.state != MISSING


def data_folder(data_dir: Path | str | None = None) -> Path:
    """`data_dir` where given, else $PKD_DATA_DIR, else the user's cache folder."""
    return Path(data_dir or os.environ.get("PKD_DATA_DIR") or pooch.os_cache("pkdgan")).expanduser()


def load(name: str, data_dir: Path | str | None = None) -> Dataset:
    """The data set `name`, one of DATASETS, from its verified official files.

    Raises:
        PkdError: an unknown name; a file that is missing, unreadable, broken or not the official
            one.
    """
    source = _source(name)
    if source is None:
        return _digits()
    folder = data_folder(data_dir)
    train = _load_split(name, source, source.train, folder)
    test = _load_split(name, source, source.test, folder)
    return Dataset(name, source.classes, *train, *test)


def inspect(name: str, data_dir: Path | str | None = None) -> list[FileStatus]:
    """The state of each file of the data set; none for "digits", which comes without files.

    A file may be there in another form (unpacked, or as a Python batch): then that one is told.
    Raises PkdError for an unknown name.
    """
    source, folder = _source(name), data_folder(data_dir)
    return [_part_status(part, folder) for part in source.parts] if source else []


def fetching(name: str, folder: Path) -> str:
    """The command that fetches what is missing of `name` into `folder`."""
    return f"pkd data {name} --data-dir {shlex.quote(str(folder))} --download"


def download(name: str, data_dir: Path | str | None = None) -> list[FileStatus]:
    """Fetch the missing files from their home on the net, verified; returns their new state.

    A file is in place whole or not at all, and one that is there is never overwritten.
    Raises PkdError: an unknown name, a wrong file in the way, a failed download.
    """
    source, folder = _source(name), data_folder(data_dir)
    if source is None:
        return []
    rows = inspect(name, folder)
    for row in rows:
        if row.state not in (OK, MISSING):
            raise PkdError(
                f"{row.path}: {row.state}; it is not overwritten. "
                f"Move it away and run `{fetching(name, folder)}` again."
            )
    missing = [part[0] for part, row in zip(source.parts, rows, strict=True) if not row.found]
    if missing:
        fetch = _fetch_from_archive if source.archive_md5 else _fetch_files
        try:
            fetch(source, missing, folder)
        # pooch: OSError for the connection and the disk, ValueError for a wrong checksum
        except (OSError, ValueError, KeyError, EOFError, tarfile.TarError, zlib.error) as error:
            raise PkdError(
                f"{name}: download from {source.url} to {folder} failed ({error}). Try again, or "
                f"put the files there yourself; `pkd data {name}` lists them."
            ) from error
    return inspect(name, folder)


def _source(name: str) -> Source | None:
    """The files of the data set; None for "digits"."""
    if name not in DATASETS:
        raise PkdError(f"{name!r} is no data set; choose one of {', '.join(DATASETS)}")
    return SOURCES.get(name)


def _digits() -> Dataset:
    """8x8 digits: values 0..16 scaled to 0..255, a fixed stratified fifth of them for the test."""
    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=0
    )
    return Dataset("digits", TEN_DIGITS, train_images, train_labels, test_images, test_labels)


def _load_split(
    name: str, source: Source, parts: Sequence[Part], folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of all the parts, joined in their order."""
    pieces = [_load_part(name, source, part, folder) for part in parts]
    images = np.concatenate([piece["images"] for piece in pieces if "images" in piece])
    labels = np.concatenate([piece["labels"] for piece in pieces if "labels" in piece])
    if len(images) != len(labels):
        files = ", ".join(part[0].path for part in parts)
        raise PkdError(
            f"{name}: {len(images)} images but {len(labels)} labels in {folder} ({files}); "
            f"delete them and run `{fetching(name, folder)}`"
        )
    return images, labels


def _load_part(name: str, source: Source, part: Part, folder: Path) -> Arrays:
    """The arrays of the first form that is there."""
    for form in part:
        content = _content(form, folder)
        if content is not None:
            try:
                return _verified(content, form, source)
            except FormatError as error:
                raise PkdError(f"{folder / form.path}: {error}; {_fresh(name, folder)}") from error
    others = "".join(f" nor {form.path}" for form in part[1:])
    raise PkdError(
        f"{name}: {folder} has no {part[0].path}{others}. "
        f"Get it with `{fetching(name, folder)}`, or name the folder that has it: --data-dir or "
        "PKD_DATA_DIR."
    )


def _verified(content: bytes, form: Form, source: Source) -> Arrays:
    """The arrays of an official file. Structure is looked at first: it tells more than an MD5."""
    arrays = form.decode(content)
    if "images" in arrays and arrays["images"].shape[1:] != source.shape:
        raise FormatError(
            f"wrong shape: images (C, H, W) = {arrays['images'].shape[1:]}, expected {source.shape}"
        )
    labels = arrays.get("labels", np.empty(0))
    wrong = labels[(labels < 0) | (labels >= len(source.classes))]
    if wrong.size:
        raise FormatError(f"label {wrong[0]} is out of range 0..{len(source.classes) - 1}")
    if _md5(content) != form.md5:
        raise FormatError(f"checksum differs: MD5 {_md5(content)}, expected {form.md5}")
    return arrays


def _content(form: Form, folder: Path) -> bytes | None:
    """The file's bytes; None where there is no file. PkdError where it cannot be read."""
    path = folder / form.path
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PkdError(
            f"{path}: cannot be read ({error.strerror}). Make it a readable file, or set "
            "PKD_DATA_DIR to another folder."
        ) from error


def _part_status(part: Part, folder: Path) -> FileStatus:
    rows = [FileStatus(form.path, folder / form.path, _state(form, folder)) for form in part]
    return next((row for row in rows if row.found), rows[0])


def _state(form: Form, folder: Path) -> str:
    try:
        content = _content(form, folder)
    except PkdError:
        return UNREADABLE
    if content is None:
        return MISSING
    return OK if _md5(content) == form.md5 else DIFFERS


def _md5(content: bytes) -> str:
    # the homes of the data publish MD5: it tells a broken file, not a forged one
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _fresh(name: str, folder: Path) -> str:
    return f"delete it and run `{fetching(name, folder)}`"


def _fetch_files(source: Source, forms: Sequence[Form], folder: Path) -> None:
    for form in forms:
        path = folder / form.path
        pooch.retrieve(source.url + path.name, f"md5:{form.md5}", fname=path.name, path=path.parent)


def _fetch_from_archive(source: Source, forms: Sequence[Form], folder: Path) -> None:
    """Only the bytes of the named members are taken: no path from the archive is ever used."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        packed = pooch.retrieve(
            source.url, f"md5:{source.archive_md5}", fname="archive", path=scratch
        )
        with tarfile.open(packed) as archive:
            for form in forms:
                content = archive.extractfile(archive.getmember(form.path)).read()
                if _md5(content) != form.md5:
                    raise ValueError(f"{form.path} in the archive: checksum differs")
                _put(content, folder / form.path, Path(scratch) / "member")


def _put(content: bytes, path: Path, scratch: Path) -> None:
    """Write beside, then move: the file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch.write_bytes(content)
    scratch.replace(path)
