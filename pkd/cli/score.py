"""TODO."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

from jsonargparse import Namespace
from rich.console import Console
from rich.progress import track

from pkd.cli.parser import PLAIN, Parser, add_choices
from pkd.data.image_files import find_images
from pkd.deploy.inference import Card, Score, open_onnx
from pkd.deploy.score_files import WRITERS, Row, score_files
from pkd.utils.errors import PkdError, flag
from pkd.utils.files import new_file

CHOICES = ("network", "normal_class", "seed")  # which of a run's detectors


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
        from pkd.deploy.open_run import open_run

        return open_run(args.detector, *(args[name] for name in CHOICES))
    given = [flag(name) for name in CHOICES if args[name] is not None]
    if given:
        raise PkdError(
            f"{args.detector} is a file with one detector: {', '.join(given)} chooses among those "
            "of a run folder; leave it out"
        )
    return open_onnx(args.detector)


def _files(path: Path) -> list[Path]:
    """The images of a folder, or the file itself."""
    if not path.is_dir():
        return [path]
    files = find_images(path)
    if not files:
        raise PkdError(f"{path} holds no images: name a folder with images, or image files")
    return files


def _writer(output: Path | None) -> Callable[[TextIO, Iterable[Row]], None]:
    suffix = ".csv" if output is None else output.suffix.lower()
    if suffix not in WRITERS:
        raise PkdError(f"--output {output} must end in {' or '.join(WRITERS)}")
    return WRITERS[suffix]
