"""TODO."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace
from rich.console import Console
from torch import Tensor

from pkd.cli.parser import PLAIN, Parser, add_model_selection
from pkd.data.arrays import resize
from pkd.deploy.export import FORMATS, TOLERANCE, difference
from pkd.deploy.open_run import choose, load_stack
from pkd.runs.data import load_dataset
from pkd.runs.folder import RunFolder
from pkd.scoring.novelty import novelty_scores
from pkd.scoring.single import Scorer
from pkd.training.config import TrainConfig
from pkd.training.settings import from_plain
from pkd.utils.errors import PkdError
from pkd.utils.files import new_file

CHECKED_IMAGES = 128

INPUTS = {"uint8": torch.uint8, "float": torch.float32}


def export_parser(**kwargs: Any) -> Parser:
    parser = Parser(description="Write a run's student as one file, checked.", **kwargs)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace --output if it exists")
    parser.add_argument(
        "--format", choices=tuple(FORMATS), default="onnx", help="ONNX, or torch.export's .pt2"
    )
    parser.add_argument(
        "--input", choices=tuple(INPUTS), default="uint8", help="type of the pixels in [0, 255]"
    )
    parser.add_argument(
        "--data-dir", type=str | None, help="of the images of the check; default: as the run had it"
    )
    add_model_selection(parser)
    return parser


def run_export(args: Namespace) -> int:
    console = Console(**PLAIN)
    folder = RunFolder.open(args.run)
    config = from_plain(folder.config(), args.run / "config.yaml")
    generator, cards = load_stack(folder, config, args.network or "student")
    member = choose(cards, args.normal_class, args.seed)
    card = cards[member]
    with new_file(args.output, args.overwrite) as temporary:
        images = _check_images(replace(config, data_dir=args.data_dir or config.data_dir))
        wanted = novelty_scores(generator, images, len(cards))[:, member]
        scorer = Scorer(generator, member)
        content, score = FORMATS[args.format](scorer, card, INPUTS[args.input])
        apart = difference(score, images.numpy(), wanted)
        if not apart <= TOLERANCE:
            raise PkdError(
                f"the exported {card.network} scores images differently from the run's, by "
                f"{apart:.1e} relatively (at most {TOLERANCE:.0e}): nothing was written; try "
                "other versions of onnx and onnxruntime, or the other --format"
            )
        temporary.write_bytes(content)
    console.print(
        f"{args.output}: {card.network} of class {card.normal_class} {card.class_name}, seed "
        f"{card.seed}, {len(content):,} bytes, threshold {card.threshold:.6g}",
        soft_wrap=True,
    )
    console.print(
        f"scores of {len(images)} test images differ from the run's by at most {apart:.1e} "
        "relatively",
        soft_wrap=True,
    )
    return 0


def _check_images(config: TrainConfig) -> Tensor:
    """(n, C, H, W) uint8 from all over the test split of a run."""
    images = load_dataset(config).test_images
    chosen = np.linspace(0, len(images) - 1, min(CHECKED_IMAGES, len(images))).round().astype(int)
    return resize(images[chosen], config.image_size)
