"""`pkd score`: print or write the novelty scores of image files. Needs no torch for ONNX files."""

import sys
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from rich.progress import track

from pkd.cli.parser import Parser, add_model_selection
from pkd.cli.process import PlainConsole
from pkd.deploy.score_files import list_images, open_detector, score_files, writer_for
from pkd.utils.files import atomic_write
from pkd.utils.text import visible


def score_parser(**kwargs: Any) -> Parser:
    """Parser of the command; `kwargs` go to ArgumentParser."""
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
    parser.add_argument("--skip-bad", action="store_true", help="skip images that cannot be used")
    add_model_selection(parser)
    return parser


def run_score(args: Namespace) -> int:
    """Print or write the scores; return the exit code."""
    write = writer_for(args.output)
    info, score = open_detector(args.detector, args.network, args.normal_class, args.seed)
    files = list_images(args.images)
    skipped: list[str] = []
    console = PlainConsole(stderr=True)
    # on a terminal the printed rows already show the progress
    no_bar = args.output is None and sys.stdout.isatty()
    tracked = track(files, "scoring", console=console, disable=no_bar)
    rows = score_files(tracked, info, score, skipped.append if args.skip_bad else None)
    try:
        if args.output is None:
            if sys.stdout.isatty():
                rows = (row._replace(image=visible(row.image)) for row in rows)
            write(sys.stdout, rows)
        else:
            with (
                atomic_write(args.output, args.overwrite) as temporary,
                temporary.open("w", encoding="utf-8", errors="surrogateescape") as file,
            ):
                write(file, rows)
    finally:
        if skipped:
            console.print(f"images left out: {len(skipped)}")
            for message in skipped:
                console.print(f"  {message}", soft_wrap=True)
    return 0
