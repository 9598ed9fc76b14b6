"""SHA-256 of files, and JSON documents that hold their own. Needs no torch."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pkd.utils.files import open_regular

KEY = "sha256"  # of the checksum in a JSON document
PART = 2**20  # bytes that are read at a time
DIGEST = re.compile("[0-9a-f]{64}")


def file_sha256(path: Path) -> str:
    """SHA-256 (hexadecimal) of a regular file, read in parts; OSError if it cannot be read."""
    sha, buffer = hashlib.sha256(), memoryview(bytearray(PART))
    with open_regular(path) as file:
        while size := file.readinto(buffer):  # type: ignore[attr-defined]
            sha.update(buffer[:size])
    return sha.hexdigest()


def sha256(content: bytes) -> str:
    """SHA-256 (hexadecimal) of bytes."""
    return hashlib.sha256(content).hexdigest()


def dump_checked(values: dict[str, Any], indent: int | None = 1) -> str:
    """JSON text of an object, with the SHA-256 of its content as the last entry.

    Args:
        values: the object.
        indent: spaces; None for a single line.
    """
    return json.dumps(values | {KEY: _content_sha256(values)}, indent=indent) + "\n"


def load_checked(text: str, required: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Parse the text of `dump_checked`, or that of a version before there were checksums.

    Args:
        text: JSON.
        required: whether an object must have a checksum, by its other entries.

    Returns:
        The object without the checksum.

    Raises:
        ValueError: the text is no JSON object, or its content has another SHA-256.
    """
    try:
        values = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(values, dict):
        raise ValueError("it is no JSON object")
    checksum = values.pop(KEY, None)
    if (checksum is not None or required(values)) and checksum != _content_sha256(values):
        raise ValueError("its content differs from its SHA-256")
    return values


def _content_sha256(values: dict[str, Any]) -> str:
    """SHA-256 of an object, whatever its white space and the order of its entries."""
    return sha256(json.dumps(values, sort_keys=True).encode())
