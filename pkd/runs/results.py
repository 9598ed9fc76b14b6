"""What a run came to: the content of results.json."""

import platform
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

import numpy as np

from pkd.models.cost import cost
from pkd.models.stack import Member
from pkd.runs.run import Run
from pkd.scoring.metrics import Verdicts, auc_by_member, threshold
from pkd.training.settings import to_plain
from pkd.utils.device import device_name, in_tf32
from pkd.utils.errors import PkdError


def results_of(run: Run, auc: dict[str, list[float]]) -> dict[str, Any]:
    """What results.json holds, for the AUC of each member after each phase.

    Raises:
        PkdError: a phase's checkpoint is damaged, see `Run.held_out_scores`.
    """
    config, dataset = run.config, run.dataset
    thresholds = {
        phase.name: [
            threshold(scores, config.contamination) for scores in run.held_out_scores(phase)
        ]
        for phase in run.phases
        if phase.name in auc
    }
    return {
        "dataset": config.dataset,
        "data_sha256": dataset.digest,
        "classes": list(dataset.classes),
        "left_out": len(dataset.left_out),
        "channels": run.test_images.shape[1],
        "image_size": config.image_size,
        "config": to_plain(config),
        "members": [
            {
                "normal_class": member.normal_class,
                "class_name": dataset.classes[member.normal_class],
                "seed": member.seed,
                "auc": {phase: values[k] for phase, values in auc.items()},
                "threshold": {phase: values[k] for phase, values in thresholds.items()},
            }
            for k, member in enumerate(run.members)
        ],
        **summarize(auc, run.members),
        "cost": {name: vars(cost(gan.architecture)) for name, gan in run.networks.items()},
        "seconds": {name: round(spent, 1) for name, spent in run.folder.progress.seconds.items()},
        "hardware": device_name(run.device) + ", TF32" * in_tf32(config.precision, run.device),
        "versions": {"python": platform.python_version(), **run.versions},
    }


def summarize(
    auc: dict[str, list[float]], members: Sequence[Member]
) -> dict[str, dict[str, float]]:
    """Mean AUC over classes for each phase, and its spread over seeds where there are several."""
    seeds = sorted({member.seed for member in members})
    by_seed = {
        phase: [mean(v for v, m in zip(values, members, strict=True) if m.seed == s) for s in seeds]
        for phase, values in auc.items()
    }
    summary = {"mean_auc": {phase: mean(values) for phase, values in by_seed.items()}}
    if len(seeds) > 1:
        summary["std_auc"] = {phase: stdev(values) for phase, values in by_seed.items()}
    return summary


def finished_results(run: Run) -> dict[str, Any]:
    """What results.json of a run holds.

    Raises:
        PkdError: there is none yet, it does not fit config.yaml, or it speaks of other images
            than `run` has.
    """
    path = run.folder.path
    results = run.folder.results()
    if results is None:
        raise PkdError(
            f"{path} is not finished, it has no results.json: continue it with pkd train --resume"
        )
    phases = {phase.name for phase in run.phases}
    try:
        members = [
            (m["normal_class"], m["seed"], {*m["auc"]}, {*m["threshold"]})
            for m in results["members"]
        ]
        known = {name: results[name] for name in ("dataset", "config", "mean_auc", "cost")}
        known |= {name: results[name] for name in ("seconds", "hardware", "versions")}
        digest = results["data_sha256"]
    except (KeyError, TypeError) as error:
        raise PkdError(
            f"{path / 'results.json'} is damaged or of another version of pkd, it lacks {error}: "
            "restore it from a copy, or train again in a new folder"
        ) from error
    if members != [(m.normal_class, m.seed, phases, phases) for m in run.members]:
        raise PkdError(
            f"{path / 'results.json'} does not fit config.yaml: restore both from a copy, or train "
            "again in a new folder"
        )
    if digest != run.dataset.digest:
        raise PkdError(
            f"the images of --dataset {run.config.dataset} are not those that {path} was made "
            "with: restore them, or name the folder that has them with --data-dir"
        )
    return known | {"members": results["members"], "data_sha256": digest}


def judge(run: Run, results: dict[str, Any]) -> dict[str, list[Verdicts]]:
    """Phase -> verdicts of each member by the network that the phase judged.

    Args:
        run: finished.
        results: what its results.json holds: AUC and thresholds are taken from there.

    Raises:
        PkdError: a checkpoint is damaged, or lacks the scores of the test split, or they are not
            those that results.json speaks of.
    """
    labels = run.dataset.test_labels
    verdicts = {}
    for phase in run.phases:
        name = f"{phase.name}.safetensors"
        scores = run.folder.load_tensors(name, "test_scores").get("test_scores")
        if scores is None or scores.shape != (len(labels), len(run.members)):
            raise PkdError(
                f"checkpoint {run.folder.checkpoints / name} is damaged or of another version of "
                "pkd, it lacks scores of the test split: restore it from a copy, or train again in "
                "a new folder"
            )
        written = [member["auc"][phase.name] for member in results["members"]]
        if not np.allclose(auc_by_member(scores.numpy(), labels, run.members), written):
            raise PkdError(
                f"checkpoint {run.folder.checkpoints / name} has scores of another AUC than "
                "results.json: restore both from a copy, or train again in a new folder"
            )
        verdicts[phase.name] = [
            Verdicts(
                own,
                labels != member["normal_class"],
                member["threshold"][phase.name],
                auc,
            )
            for own, member, auc in zip(scores.T.numpy(), results["members"], written, strict=True)
        ]
    return verdicts
