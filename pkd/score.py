"""`pkd score`: score, threshold and verdict of image files. Needs no torch for an ONNX file."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from jsonargparse import Namespace
from rich.console import Console
from rich.progress import track

from pkd.command import PLAIN, Parser, add_choices
from pkd.deployed import Card, Score, open_onnx
from pkd.errors import UserError, flag
from pkd.files import new_file
from pkd.images import BadImage, image_files, is_colour, read_image, unreadable

BATCH = 64
CHOICES = ("network", "normal_class", "seed")  # which of a run's detectors


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
        UserError: at the end, with the names of the files that cannot be used; or no file can be.
    """
    refused, usable = [] if bad is None else bad, False
    remaining = iter(files)
    while batch := list(islice(remaining, BATCH)):
        read = []
        for path in batch:
            try:
                read.append((path, _read(path, card)))
            except BadImage as error:
                refused.append(str(error))
        if read:
            usable = True
            paths, images = zip(*read, strict=True)
            for path, value in zip(paths, score(np.stack(images)).tolist(), strict=True):
                verdict = "normal" if value <= card.threshold else "novel"
                yield Row(str(path), value, card.threshold, verdict)
    if refused and bad is None:
        raise unreadable(refused)
    if refused and not usable:
        raise UserError("none of the images can be used: name others")


def _read(path: Path, card: Card) -> np.ndarray:
    colour = card.channels == 3
    if not colour and is_colour(path):
        raise BadImage(f"{path}: it is in colour, but the detector knows grey: convert it to grey")
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


def score_parser(**kwargs: Any) -> Parser:
    parser = Parser(
        description="Score images by a run's student or an exported one: higher is more novel.",
        **kwargs,
    )
    parser.add_argument("detector", type=Path, help="run folder, or ONNX file of pkd export")
    parser.add_argument("images", type=Path, nargs="+", help="image files, or folders of them")
    parser.add_argument(
        "--output", type=Path | None, help="FILE.csv or FILE.json; default: CSV is printed"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace --output if it exists")
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave images out that cannot be used"
    )
    add_choices(parser)
    return parser


def run_score(args: Namespace) -> int:
    write = _writer(args.output)
    card, score = _open(args)
    files = [file for path in args.images for file in _files(path)]
    bad = [] if args.skip_bad else None
    errors = Console(stderr=True, **PLAIN)
    # printed rows are progress enough on a terminal
    quiet = args.output is None and sys.stdout.isatty()
    watched = track(files, "scoring", console=errors, disable=quiet)
    rows = score_files(watched, card, score, bad)
    try:
        if args.output is None:
            write(sys.stdout, rows)
        else:
            with (
                new_file(args.output, args.overwrite) as temporary,
                temporary.open("w", encoding="utf-8", errors="surrogateescape") as file,
            ):
                write(file, rows)
    finally:
        if bad:
            errors.print(f"images left out: {len(bad)}")
            for message in bad:
                errors.print(f"  {message}", soft_wrap=True)
    return 0


def _open(args: Namespace) -> tuple[Card, Score]:
    if args.detector.is_dir():
        from pkd.export import open_run  # brings torch

        return open_run(args.detector, *(args[name] for name in CHOICES))
    given = [flag(name) for name in CHOICES if args[name] is not None]
    if given:
        raise UserError(
            f"{args.detector} is a file with one detector: {', '.join(given)} chooses among those "
            "of a run folder; leave it out"
        )
    return open_onnx(args.detector)


def _files(path: Path) -> list[Path]:
    """The images of a folder, or the file itself."""
    if not path.is_dir():
        return [path]
    files = image_files(path)
    if not files:
        raise UserError(f"{path} holds no images: name a folder with images, or image files")
    return files


def _writer(output: Path | None) -> Callable[[TextIO, Iterable[Row]], None]:
    suffix = ".csv" if output is None else output.suffix.lower()
    if suffix not in WRITERS:
        raise UserError(f"--output {output} must end in {' or '.join(WRITERS)}")
    return WRITERS[suffix]
