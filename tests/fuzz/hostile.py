"""Hostile images and .npz files: other formats, bombs, and headers that do not fit the content."""

import io
import struct
import zipfile
import zlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests.fuzz.mutators import change_bytes

FOREIGN = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) print\nshowpage\n",
    b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00"
    b"\x00\x02\x02D\x01\x00;",
    b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    b"%PDF-1.4\n", b"P6 1000000 1000000 255\n", b"\x00\x00\x01\x00\x01\x00", b"8BPS\x00\x01",
    b"icns\x00\x00\x00\x10", b"BLP1" + bytes(200), b"#define x_width 9\n#define x_height 9\n",
)  # fmt: skip


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(
        ">I", zlib.crc32(name + content)
    )  # fmt: skip


def png(width: int, height: int, kind: int, depth: int, data: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", data), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def bomb(choose: Random) -> bytes:
    """A small PNG of very many pixels, or with a long text."""
    width, height = choose.choice(
        ((1, 89_000_000), (89_000_000, 1), (50_000, 50_000), (2**31 - 1, 2**31 - 1), (0, 1),
         (1, 32_768), (9_400, 9_400))
    )  # fmt: skip
    if choose.random() < 0.2:
        text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))
        image = png(1, 1, 0, 8, zlib.compress(b"\0\0"))
        return image[:33] + text + image[33:]
    size = min(height * (width + 1), 10**7)
    return png(width, height, choose.choice((0, 2, 6)), 8, zlib.compress(bytes(size), 1))


def other_size(content: bytes, choose: Random) -> bytes:
    """An image whose header has another size, type or offset."""
    data = bytearray(content)
    number = choose.choice((0, 1, 2**15, 2**16 - 1, 2**31, 2**32 - 1))
    data[choose.randrange(8, 40) :][:4] = struct.pack("<I", number)
    position = choose.randrange(4, min(60, len(data) - 4))
    data[position : position + 4] = struct.pack(choose.choice("<>") + "I", number)
    if data.startswith(b"\x89PNG"):  # a checksum that fits
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def change_npz(path: Path, choose: Random) -> None:
    """Other types, shapes, values, compression or headers."""
    with np.load(path) as loaded:
        arrays: dict[str, Any] = dict(loaded)
    name = choose.choice(list(arrays))
    change = choose.randrange(9)
    array = arrays[name]
    if change == 0:
        del arrays[name]
    elif change == 1 and array.dtype.kind != "U":
        with np.errstate(all="ignore"):
            arrays[name] = (array * choose.choice((1, 200, -1, 2**62, 1e38, 1.7e308))).astype(
                choose.choice("?bBhHiIlLqQefdgSU")
            )
    elif change == 2:
        arrays[name] = array.reshape(choose.choice(((-1,), (1, *array.shape), (*array.shape, 1))))
    elif change == 3:
        arrays[name] = choose.choice(
            (np.float64(1), np.zeros(0), np.zeros((5, 0, 8)), np.array("x"))
        )
    elif change == 4:
        arrays["test_labels"] = np.array(
            [choose.choice((0, 1, 2**64 - 1, 2**63, 10**8, 65_535)) for _ in range(5)], np.uint64
        )
    elif change == 5 and array.dtype.kind == "f":
        array.flat[choose.randrange(array.size)] = choose.choice(
            (np.nan, np.inf, 1.7e308, -1.7e308, 1e-320, -1e38, 3.4e38)
        )
    elif change == 6:
        arrays[name] = array.astype(">f8") if array.dtype.kind == "f" else np.asfortranarray(array)
    method = choose.choice((0, 8, 8, 8, 12, 14))
    with zipfile.ZipFile(path, "w", method) as archive:
        for key, value in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.asanyarray(value), allow_pickle=False)
            content = buffer.getvalue()
            if key == name and change == 7:
                content = content[:10] + change_bytes(content[10:128], choose) + content[128:]
            if key == name and change == 8:
                content = content.replace(b"'shape': (", b"'shape': (9999999, ", 1)
                content = content + bytes(choose.choice((0, 10**6, 10**8)))
            archive.writestr(f"{key}.npy", content)
