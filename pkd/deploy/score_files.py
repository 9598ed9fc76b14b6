"""`pkd score`: score, threshold and verdict of image files. Needs no torch for an ONNX file."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from pkd.data.image_files import ImageError, is_colour, read_image, unusable_images
from pkd.deploy.inference import Card, Score
from pkd.utils.errors import PkdError

BATCH = 64


class Row(NamedTuple):
    """What is told of an image."""

    image: str
    score: float
    threshold: float
    verdict: str


def score_files(
    files: Iterable[Path], card: Card, score: Score, bad: list[str] | None = None
) -> Iterator[Row]:
    """Score image files, a batch in memory at a time.

    Args:
        files: grey or colour, of any size; colour for a grey detector is refused, not converted.
        card, score: a detector.
        bad: takes the messages of files that cannot be used, which are left out; None refuses
            them.

    Yields:
        A row for each file, in their order.

    Raises:
        PkdError: at the end, with the names of the files that cannot be used; or no file can be.
    """
    refused, usable = [] if bad is None else bad, False
    remaining = iter(files)
    while batch := list(islice(remaining, BATCH)):
        read = []
        for path in batch:
            try:
                read.append((path, _read(path, card)))
            except ImageError as error:
                refused.append(str(error))
        if read:
            usable = True
            paths, images = zip(*read, strict=True)
            for path, value in zip(paths, score(np.stack(images)).tolist(), strict=True):
                verdict = "normal" if value <= card.threshold else "novel"
                yield Row(str(path), value, card.threshold, verdict)
    if refused and bad is None:
        raise unusable_images(refused)
    if refused and not usable:
        raise PkdError("none of the images can be used: name others")


def _read(path: Path, card: Card) -> np.ndarray:
    colour = card.channels == 3
    if not colour and is_colour(path):
        raise ImageError(f"{path}: it is in colour, but the detector knows grey: convert it to grey")
    return read_image(path, colour, card.image_size)


def write_csv(file: TextIO, rows: Iterable[Row]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(rows)


def write_json(file: TextIO, rows: Iterable[Row]) -> None:
    """One array, an object a line, written as the rows come."""
    file.write("[")
    for k, row in enumerate(rows):
        file.write(("," if k else "") + "\n" + json.dumps(row._asdict()))
    file.write("\n]\n")


WRITERS: dict[str, Callable[[TextIO, Iterable[Row]], None]] = {
    ".csv": write_csv,
    ".json": write_json,
}
