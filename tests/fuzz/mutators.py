"""Seeded mutators of files: bytes, JSON values, YAML text, and files that are no regular files."""

import json
import os
from pathlib import Path
from random import Random
from typing import Any

# Values that have broken programs: types, ranges, sizes, and text that means something elsewhere.
NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400),
    *(0.5, -0.5, 1e308, -1e308, 1e-320, float("nan"), float("inf"), -float("inf")),
    *("", "x", "0", "nan", "../../x", "~nobody9/x", "a\0b", "\x1b[31m", "\ud800", "9" * 300),
    *([], [[]], [0], [None], {}, {"x": 1}, "a" * 10_000, [1] * 1000, "teacher", "student"),
)
YAML = (
    *("null", "~", "true", "1", "-1", "0", "2", "0.5", "1e400", ".nan", ".inf", "-.inf", "0x10"),
    *("9" * 500, "0x" + "f" * 300, "1:1:1", "!!int x", "!!float []", "!!timestamp x", "!!set {}"),
    *("!!python/object/apply:os.system [x]", "&a [*a]", "*a", "[", "{", "'", "- - - -", "[[[]]]"),
    *("{a: {b: [1]}}", "~nobody9/x", '"a\\0b"', '"\\e[31m"', "2020-01-01", "all", "1,2", "1-2-3"),
    *("[1, 2, 3]", "[0.5, 0.9]", "8-16-64", "[null, 1]", "[.inf, 1, 2]", "[" * 5000, "{a: " * 5000),
    *("!!binary x", "<<: {a: 1}", "? [a]", "yes", "no", "=", "1_000", "0o17", "3:0,5:0", '"3:0"'),
)


def change_bytes(content: bytes, choose: Random) -> bytes:
    """One to three changes: flipped bits, other bytes, removed, repeated or zeroed parts."""
    data = bytearray(content)
    for _ in range(choose.choice((1, 1, 1, 2, 3))):
        size = len(data)
        start = choose.randrange(size) if size else 0
        length = min(choose.choice((1, 2, 4, 16, 100, 1000)), size - start)
        change = choose.randrange(8)
        if change <= 2 and size:
            data[start] ^= 1 << choose.randrange(8)
        elif change == 3:
            data[start : start + length] = choose.randbytes(length)
        elif change == 4:
            del data[start : start + length]
        elif change == 5:
            data[start:start] = data[start : start + length] * choose.choice((1, 1, 50))
        elif change == 6:
            data[start : start + length] = bytes((choose.choice((0, 255)),)) * length
        else:
            del data[start:]
    return bytes(data)


def change_file(path: Path, choose: Random) -> None:
    """Change the bytes of a file; now and then replace it by something else."""
    kind = choose.randrange(40)
    if kind > 6:
        path.write_bytes(change_bytes(path.read_bytes(), choose))
        return
    path.unlink()
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    elif kind == 2:
        path.symlink_to(choose.choice(("/dev/zero", "/dev/random", "/dev/null", "/dev/stdin")))
    elif kind == 3:
        path.symlink_to(path.name)  # a loop
    elif kind == 4:
        path.write_bytes(b"")
    elif kind == 5:
        path.write_bytes(choose.randbytes(choose.choice((1, 10, 100_000))))
    # else it is missing


def change_value(value: Any, choose: Random) -> Any:
    """Change one entry somewhere in a JSON value: replace, remove, add or rename it."""
    if isinstance(value, dict) and value and choose.random() < 0.85:
        key = choose.choice(list(value))
        change = choose.randrange(8)
        if change == 0:
            return {k: v for k, v in value.items() if k != key}
        if change == 1:
            return value | {choose.choice(("x", "", "sha256", "phase")): choose.choice(NASTY)}
        if change == 2:
            return {("x" if k == key else k): v for k, v in value.items()}
        return value | {key: change_value(value[key], choose)}
    if isinstance(value, list) and value and choose.random() < 0.85:
        index, change = choose.randrange(len(value)), choose.randrange(6)
        if change == 0:
            return value[:index] + value[index + 1 :]
        if change == 1:
            return [*value, value[index]]
        return [*value[:index], change_value(value[index], choose), *value[index + 1 :]]
    return choose.choice(NASTY)


def change_json(path: Path, choose: Random) -> None:
    """Change a value of a JSON file, or its bytes."""
    if choose.random() < 0.3:
        change_file(path, choose)
    elif choose.random() < 0.05:
        path.write_text("[" * 100_000)
    else:
        path.write_text(json.dumps(change_value(json.loads(path.read_text()), choose), indent=1))


def change_yaml(text: str, choose: Random) -> str:
    """Replace, remove, repeat or add a line of YAML, or change a character."""
    lines = text.splitlines()
    for _ in range(choose.choice((1, 1, 2))):
        index, change = choose.randrange(len(lines)), choose.randrange(12)
        name = lines[index].split(":")[0].strip("- ") or "lr"
        if change <= 6:
            lines[index] = f"{name}: {choose.choice(YAML)}"
        elif change == 7:
            del lines[index]
            lines = lines or ["lr: 1"]
        elif change == 8:
            lines.append(lines[index])
        elif change == 9:
            lines.append(
                choose.choice(("x: 1", "? x", "---", "...", "a: &a [*a]", "\t", "%YAML 9"))
            )
        elif change == 10:
            lines[index] = " " + lines[index]
        else:
            raw = change_bytes("\n".join(lines).encode("utf-8", "surrogateescape"), choose)
            lines = raw.decode("utf-8", "surrogateescape").splitlines() or ["lr: 1"]
    return "\n".join(lines) + "\n"
