"""Files that are there whole or not at all. Needs no torch."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pkd.utils.errors import PkdError


def settle(temporary: Path, path: Path) -> None:
    """Sync a finished temporary file and rename it to `path`, its neighbour; OSError."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, sync it and rename it to `path`.

    Raises:
        OSError: the disk is full or refuses; `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        settle(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def new_file(path: Path, overwrite: bool) -> Iterator[Path]:
    """An empty temporary file beside `path`, renamed to `path` where the body ends well.

    Raises:
        PkdError: `path` cannot be written, or exists and `overwrite` is not set; it is as it was.
    """
    if path.is_dir():
        raise PkdError(f"{path} is a folder: name a file in it with --output")
    if path.exists() and not overwrite:
        raise PkdError(f"{path} exists: choose another --output, or replace it with --overwrite")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        yield temporary
        settle(temporary, path)
    except OSError as error:
        raise PkdError(
            f"{path} cannot be written ({error.strerror or error}): choose another --output, or "
            "make room and get permission there"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
