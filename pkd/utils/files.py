"""Files: only regular ones are read, and they are written completely or not at all.

Needs no torch.
"""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import BinaryIO

from pkd.utils.errors import OutputError

KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: Path, limit: int | None = None) -> BinaryIO:
    """Open a regular file for reading.

    FIFOs, sockets and devices are refused at once: reading one could wait or go on forever.

    Args:
        path: the file.
        limit: largest size in bytes; None for any.

    Raises:
        OSError: the file cannot be opened, is no regular file, or is larger than the limit.
    """
    # O_NONBLOCK: opening a FIFO waits for no writer. It has no effect on regular files.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        status = os.fstat(descriptor)
        kind = stat.S_IFMT(status.st_mode)
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
        if not stat.S_ISREG(kind):
            reason = f"it is {KINDS.get(kind, 'no regular file')}, not a file"
            raise OSError(errno.EINVAL, reason, str(path))
        if limit is not None and status.st_size > limit:
            reason = f"it has {status.st_size:,} bytes, more than {limit:,}"
            raise OSError(errno.EFBIG, reason, str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """Read a regular file; arguments and errors as `open_regular`."""
    with open_regular(path, limit) as file:
        return file.read()


def read_text(path: Path, limit: int | None = None) -> str:
    """Read a regular file in UTF-8; as `read_bytes`, and UnicodeDecodeError, a ValueError."""
    return read_bytes(path, limit).decode()


def unused_folder(name: str) -> Path:
    """Make the default folder of a new run or sweep: runs/NAME-TIME, with a number if it exists.

    Raises:
        OutputError: the folder cannot be made.
    """
    first = Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    try:
        first.parent.mkdir(exist_ok=True)
        return next(filter(_is_made, _numbered(first)))
    except OSError as error:
        raise OutputError.from_os_error(first, error) from error


def _numbered(path: Path) -> Iterator[Path]:
    """The path, then the path with 2, 3, ... after its name."""
    yield path
    for number in count(2):
        yield path.with_name(f"{path.name}-{number}")


def _is_made(folder: Path) -> bool:
    """Make a folder; return whether it is new."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


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
