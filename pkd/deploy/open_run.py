"""TODO."""

import shlex
from pathlib import Path

from pkd.deploy.inference import Card, Score
from pkd.models.cost import cost
from pkd.models.ganomaly import Generator
from pkd.runs.folder import RunFolder
from pkd.scoring.single import Scorer, in_torch
from pkd.training.config import TrainConfig
from pkd.training.settings import from_plain
from pkd.utils.errors import PkdError


def load_stack(
    folder: RunFolder, config: TrainConfig, network: str
) -> tuple[Generator, list[Card]]:
    """The generators of a finished run as the last phase that judged them left them, and a card
    of each.

    Raises:
        PkdError: the run is not finished, damaged, or of another version of pkd.
    """
    results, phases = folder.results(), config.phases()
    if results is None or folder.progress.phase < len(phases):
        raise PkdError(
            f"{folder.path} is not finished: continue it with pkd train --resume "
            f"{shlex.quote(str(folder.path))}"
        )
    phase = [phase.name for phase in phases if phase.network == network][-1]
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
        raise PkdError(
            f"{folder.path / 'results.json'} is damaged or of another version of pkd (it has no "
            f"{error}): train again in a new folder"
        ) from error
    checkpoint, prefix = f"{phase}.safetensors", f"{network}.generator."
    tensors = folder.load_tensors(checkpoint, prefix)
    generator = Generator(config.architecture(network, cards[0].channels), len(cards))
    try:
        generator.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items()})
    except RuntimeError as error:
        raise PkdError(
            f"checkpoint {folder.checkpoints / checkpoint} does not fit config.yaml and "
            "results.json: restore them from a copy, or train again in a new folder"
        ) from error
    return generator.requires_grad_(False).eval(), cards


def choose(cards: list[Card], normal_class: int | None, seed: int | None) -> int:
    """Index of the card of a class and a seed; PkdError if it is not there, or not told."""
    classes = {card.normal_class: card.class_name for card in cards}
    if normal_class is None and len(classes) == 1:
        (normal_class,) = classes
    for k, card in enumerate(cards):
        if (card.normal_class, card.seed) == (normal_class, seed or 0):
            return k
    known = ", ".join(f"{k} {name}" for k, name in classes.items())
    if normal_class not in classes:
        told = "is not given" if normal_class is None else f"{normal_class} is not in this run"
        raise PkdError(f"--normal-class {told}: choose one of {known}")
    seeds = ", ".join(str(s) for s in sorted({card.seed for card in cards}))
    raise PkdError(f"--seed {seed} is not in this run: choose one of {seeds}")


def open_run(
    path: Path, network: str | None, normal_class: int | None, seed: int | None
) -> tuple[Card, Score]:
    """A detector in a run folder; see `deployed.open_onnx`. The student where none is named."""
    folder = RunFolder.open(path)
    config = from_plain(folder.config(), path / "config.yaml")
    generator, cards = load_stack(folder, config, network or "student")
    member = choose(cards, normal_class, seed)
    flops = cost(generator.architecture).flops
    return cards[member], in_torch(Scorer(generator, member), flops=flops)
