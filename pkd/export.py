"""`pkd export`: one detector of a run as a single file, image in and novelty score out."""

import io
import json
import logging
import shlex
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace
from rich.console import Console
from torch import Tensor

from pkd.command import PLAIN, Parser, add_choices
from pkd.config import TrainConfig
from pkd.cost import cost
from pkd.datasets import resize
from pkd.deployed import IMAGES, SCORES, Card, Score, open_onnx
from pkd.errors import UserError
from pkd.files import new_file
from pkd.models import Generator
from pkd.parsing import config_from
from pkd.run_data import load_dataset
from pkd.run_folder import RunFolder
from pkd.scorer import Scorer, in_torch
from pkd.scoring import novelty_scores

CHECKED_IMAGES = 128
TOLERANCE = 1e-4  # relative; what is seen lies below 1e-5
OPSET = 18  # of 2022, which every current runtime knows
INPUTS = {"uint8": torch.uint8, "float": torch.float32}


def load_stack(
    folder: RunFolder, config: TrainConfig, network: str
) -> tuple[Generator, list[Card]]:
    """The generators of a finished run as the last phase that judged them left them, and a card
    of each.

    Raises:
        UserError: the run is not finished, damaged, or of another version of pkd.
    """
    results, phases = folder.results(), config.phases()
    if results is None or folder.progress.phase < len(phases):
        raise UserError(
            f"{folder.path} is not finished: continue it with pkd train --resume "
            f"{shlex.quote(str(folder.path))}"
        )
    phase = [phase.name for phase in phases if phase.judged == network][-1]
    try:
        cards = [
            Card(
                network=network,
                dataset=results["dataset"],
                normal_class=member["normal_class"],
                class_name=member["class_name"],
                seed=member["seed"],
                channels=results["channels"],
                image_size=results["image_size"],
                threshold=member["threshold"][phase],
                contamination=config.contamination,
                version=results["versions"]["pkdgan"],
            )
            for member in results["members"]
        ]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder.path / 'results.json'} is damaged or of another version of pkd (it has no "
            f"{error}): train again in a new folder"
        ) from error
    checkpoint, prefix = f"{phase}.safetensors", f"{network}.generator."
    tensors = folder.load_tensors(checkpoint, prefix)
    generator = Generator(config.architecture(network, cards[0].channels), len(cards))
    try:
        generator.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items()})
    except RuntimeError as error:
        raise UserError(
            f"checkpoint {folder.checkpoints / checkpoint} does not fit config.yaml and "
            "results.json: restore them from a copy, or train again in a new folder"
        ) from error
    return generator.requires_grad_(False).eval(), cards


def choose(cards: list[Card], normal_class: int | None, seed: int | None) -> int:
    """Index of the card of a class and a seed; UserError if it is not there, or not told."""
    classes = {card.normal_class: card.class_name for card in cards}
    if normal_class is None and len(classes) == 1:
        (normal_class,) = classes
    for k, card in enumerate(cards):
        if (card.normal_class, card.seed) == (normal_class, seed or 0):
            return k
    known = ", ".join(f"{k} {name}" for k, name in classes.items())
    if normal_class not in classes:
        told = "is not given" if normal_class is None else f"{normal_class} is not in this run"
        raise UserError(f"--normal-class {told}: choose one of {known}")
    seeds = ", ".join(str(s) for s in sorted({card.seed for card in cards}))
    raise UserError(f"--seed {seed} is not in this run: choose one of {seeds}")


def open_run(
    path: Path, network: str | None, normal_class: int | None, seed: int | None
) -> tuple[Card, Score]:
    """A detector in a run folder; see `deployed.open_onnx`. The student where none is named."""
    folder = RunFolder.open(path)
    config = config_from(folder.config(), path / "config.yaml")
    generator, cards = load_stack(folder, config, network or "student")
    member = choose(cards, normal_class, seed)
    flops = cost(generator.architecture).flops
    return cards[member], in_torch(Scorer(generator, member), flops=flops)


def to_onnx(scorer: Scorer, card: Card, dtype: torch.dtype) -> tuple[bytes, Score]:
    """Content of an ONNX file with any batch size, and the same file in ONNX Runtime."""
    try:
        import onnxscript  # noqa: F401 (torch.onnx needs it, and names it less kindly)
    except ImportError as error:
        raise UserError(
            "--format onnx needs onnx, onnxscript and onnxruntime, which are not all installed: "
            "pip install 'pkdgan[export]', or take --format torch"
        ) from error
    with _quiet():
        program = torch.onnx.export(
            scorer,
            (_example(card, dtype),),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[IMAGES],
            output_names=[SCORES],
            dynamic_shapes=_ANY_BATCH,
        )
    model = program.model_proto
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, model.graph):
        del part.metadata_props[:]  # where each node stood in the source: longer than a student
    for key, value in card.metadata().items():
        model.metadata_props.add(key=key, value=value)
    content = model.SerializeToString()
    return content, open_onnx(content)[1]


def to_torch(scorer: Scorer, card: Card, dtype: torch.dtype) -> tuple[bytes, Score]:
    """Content of a .pt2 file with any batch size, and the same file loaded back."""
    with _quiet():
        program = torch.export.export(
            scorer, (_example(card, dtype),), dynamic_shapes=_ANY_BATCH, strict=False
        )
        file = io.BytesIO()
        torch.export.save(program, file, extra_files={"pkd.json": json.dumps(card.metadata())})
    file.seek(0)
    return file.getvalue(), in_torch(torch.export.load(file).module(), dtype)


FORMATS = {"onnx": to_onnx, "torch": to_torch}
_ANY_BATCH = ({0: torch.export.Dim("batch")},)


def _example(card: Card, dtype: torch.dtype) -> Tensor:
    # of two images: a batch of one would be taken for a constant
    return torch.zeros(2, card.channels, card.image_size, card.image_size, dtype=dtype)


@contextmanager
def _quiet() -> Iterator[None]:
    """What exporters say of torchvision and of their own future is nothing to a user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def difference(score: Score, images: np.ndarray, wanted: np.ndarray) -> float:
    """Largest relative difference of scores from `wanted`, over a batch of one and one of the rest.

    Args:
        images: (n, C, H, W) uint8, n at least 2.
        wanted: (n,) scores.
    """
    found = np.concatenate([score(images[:1]), score(images[1:])])
    return float((np.abs(found - wanted) / np.maximum(wanted, np.finfo(np.float32).tiny)).max())


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
    add_choices(parser)
    return parser


def run_export(args: Namespace) -> int:
    console = Console(**PLAIN)
    folder = RunFolder.open(args.run)
    config = config_from(folder.config(), args.run / "config.yaml")
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
            raise UserError(
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
