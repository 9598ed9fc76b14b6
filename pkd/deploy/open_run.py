"""Detectors of a finished run: weights, metadata and threshold, read from the run folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pkd.deploy.inference import DetectorInfo, ScoreFunction
from pkd.models.cost import cost
from pkd.models.ganomaly import Generator
from pkd.models.stack import Member
from pkd.runs.folder import RunFolder
from pkd.runs.results import add_thresholds, load_all_parts
from pkd.runs.run import Run
from pkd.runs.teachers import Teachers
from pkd.scoring.score import LATENT, Score
from pkd.scoring.single import Scorer, score_function
from pkd.training.config import ResolvedConfig
from pkd.training.settings import from_plain
from pkd.utils.errors import RESTORE, CheckpointError, ConfigError, resume_command


class RunDetector(NamedTuple):
    """One detector of a finished run.

    Attributes:
        config: settings of the run.
        generator: the stack that holds the detector, in evaluation mode on the CPU.
        stack: number of models in the stack.
        member: index of the detector in the stack.
        info: metadata of the detector.
        score: its novelty score.
    """

    config: ResolvedConfig
    generator: Generator
    stack: int
    member: int
    info: DetectorInfo
    score: Score

    def scorer(self) -> Scorer:
        """The detector alone, without the rest of its stack."""
        return Scorer(self.generator, self.member, self.score)


def load_detector(
    path: Path,
    network: str | None = None,
    normal_class: int | None = None,
    seed: int | None = None,
) -> RunDetector:
    """Load one detector of a finished run, from the last phase that evaluated its network.

    Args:
        path: run folder.
        network: "student" or "teacher"; None is the student, or the teacher of a teacher-only run.
        normal_class: may be None if the run has one normal class only.
        seed: None is 0.

    Raises:
        CheckpointError: the run is not finished, damaged, or of another version of pkd.
        DataError: the run has no thresholds and its data set, which they need, cannot be used.
        ConfigError: the run has no such network, or no detector of this class and seed.
    """
    folder = RunFolder.open(path)
    config = from_plain(folder.config(), path / "config.yaml")
    results, phases = folder.results(), config.phases()
    if results is None or folder.progress.phase < len(phases):
        raise CheckpointError(f"{path} is not finished: continue it with {resume_command(path)}")
    network = network or config.networks[-1]
    if network not in config.networks:
        raise ConfigError(
            "network",
            f"{network} is not in {path}, whose structure is {config.structure}: choose "
            f"{config.networks[-1]}",
        )
    phase = [phase.name for phase in phases if phase.network == network][-1]
    try:
        if not config.held_out:  # results.json was written before there were thresholds
            run = Run.open(path, device="cpu")
            results["members"] = add_thresholds(run, results["members"], load_all_parts(run))
            results |= {"channels": run.data.channels, "image_size": config.image_size}
        scores = [_score(member, phase) for member in results["members"]]
        infos = _infos(results, network, phase, config, scores)
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path / 'results.json'} is damaged or of another version of pkd (it has no {error}): "
            f"{RESTORE}"
        ) from error
    member = select_member(infos, normal_class, seed)
    prefix = f"{network}.generator."
    if phase == "teacher" and config.teacher:
        tensors = _teachers_of_other_runs(folder, config, results)
    else:
        tensors = folder.load_tensors(f"{phase}.safetensors", prefix)
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    with torch.device("meta"):  # takes no memory, whatever sizes config.yaml has
        generator = Generator(config.architecture(network, infos[0].channels), len(infos))
    try:
        generator.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"checkpoint {folder.checkpoints / phase}.safetensors does not fit config.yaml and "
            f"results.json: {RESTORE}"
        ) from error
    generator.requires_grad_(False).eval()
    return RunDetector(config, generator, len(infos), member, infos[member], scores[member])


def _teachers_of_other_runs(
    folder: RunFolder, config: ResolvedConfig, results: dict[str, Any]
) -> dict[str, Tensor]:
    """Weights of the teachers that a run took; ConfigError or CheckpointError as `Teachers`."""
    members = [Member(member["normal_class"], member["seed"]) for member in results["members"]]
    teachers = Teachers(config, results["data_sha256"], members, beside=folder.path)
    return teachers.tensors(folder.progress.teacher_sha256)


def _score(member: dict[str, Any], phase: str) -> Score:
    """Score of a member after a phase; early versions had the latent score alone."""
    return Score(**member["score"][phase]) if "score" in member else LATENT


def _infos(
    results: dict[str, Any],
    network: str,
    phase: str,
    config: ResolvedConfig,
    scores: Sequence[Score],
) -> list[DetectorInfo]:
    """Metadata of each member of a run; KeyError or TypeError if results.json is damaged."""
    return [
        DetectorInfo(
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
            score="latent" if score == LATENT else config.score,
        )
        for member, score in zip(results["members"], scores, strict=True)
    ]


def select_member(infos: Sequence[DetectorInfo], normal_class: int | None, seed: int | None) -> int:
    """Index of the detector of a normal class and a seed; ConfigError if it does not exist."""
    classes = {info.normal_class: info.class_name for info in infos}
    if normal_class is None and len(classes) == 1:
        (normal_class,) = classes
    for k, info in enumerate(infos):
        if (info.normal_class, info.seed) == (normal_class, seed or 0):
            return k
    if normal_class not in classes:
        choices = ", ".join(f"{k} {name}" for k, name in classes.items())
        problem = "is not given" if normal_class is None else f"{normal_class} is not in this run"
        raise ConfigError("normal_class", f"{problem}: choose one of {choices}")
    seeds = ", ".join(str(seed) for seed in sorted({info.seed for info in infos}))
    raise ConfigError("seed", f"{seed} is not in this run: choose one of {seeds}")


def open_run(
    path: Path,
    network: str | None = None,
    normal_class: int | None = None,
    seed: int | None = None,
) -> tuple[DetectorInfo, ScoreFunction]:
    """Load one detector of a finished run to score in PyTorch; see `load_detector`."""
    detector = load_detector(path, network, normal_class, seed)
    flops = cost(detector.generator.architecture).flops
    return detector.info, score_function(detector.scorer(), flops=flops)
