"""Files that are written completely or not at all. Needs no torch."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pkd.utils.errors import OutputError


@contextmanager
def atomic_write(path: Path, overwrite: bool = True) -> Iterator[Path]:
    """Write a file completely or not at all.

    The content survives a power failure: file and folder are synced to the disk. A symbolic link at
    `path` is replaced, not followed.

    Args:
        path: the file to write; its folder must exist.
        overwrite: whether an existing file may be replaced.

    Yields:
        An empty temporary file, `.*.tmp` in the folder of `path`. It is renamed to `path` if the
        body succeeds, and removed after any exception, which leaves `path` unchanged.

    Raises:
        OutputError: `path` cannot be written (any OSError of the body included), is a folder, or
            exists and `overwrite` is false.
    """
    try:
        _check_target(path, overwrite)
        temporary = _create_temporary(path)
        try:
            yield temporary
            _sync(temporary)
            _check_target(path, overwrite)  # the body may have taken minutes
            temporary.replace(path)
            _sync(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink()  # already renamed after a success
    except OSError as error:
        raise OutputError.from_os_error(path, error) from error


def _check_target(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise OutputError(f"{path} is a folder: choose a file in it")
    if not overwrite and os.path.lexists(path):
        raise OutputError(f"{path} exists: choose another path, or replace it with `overwrite`")


def _create_temporary(path: Path) -> Path:
    """Create an empty file beside `path` whose name cannot be predicted; OSError."""
    # part of the name only: `path` may use all of the length that the file system permits
    temporary = path.with_name(f".{path.name[:32]}.{secrets.token_hex(8)}.tmp")
    # O_EXCL follows no symbolic link; the umask turns 0o666 into the mode of ordinary new files
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    return temporary


def _sync(path: Path) -> None:
    """Flush a file or the entries of a folder to the disk; OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
