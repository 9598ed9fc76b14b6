"""Build results.json, load it again, and compute the metrics of a finished run."""

import platform
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

import numpy as np

from pkd.models.cost import cost
from pkd.models.stack import Member
from pkd.runs.run import Run
from pkd.runs.run_parts import load_parts
from pkd.runs.teachers import CHECKPOINT, PREFIX, weights_sha256
from pkd.scoring.metrics import MemberMetrics, auc_by_member, average, threshold
from pkd.scoring.score import SCORES, Parts
from pkd.training.settings import to_plain
from pkd.utils.device import device_name, in_tf32
from pkd.utils.errors import RESTORE, CheckpointError, DataError, resume_command

REPORT_KEYS = (
    *("dataset", "data_sha256", "config", "members", "mean_auc"),
    *("cost", "seconds", "hardware", "versions"),
)


def build_results(run: Run, auc: dict[str, list[float]]) -> dict[str, Any]:
    """Build the content of results.json.

    Args:
        run: the run; the checkpoints of the phases in `auc` must exist.
        auc: phase -> AUC of each member after that phase.

    Raises:
        CheckpointError: the checkpoint of a phase is damaged, see `load_parts`.
    """
    config, dataset = run.config, run.dataset
    seconds = run.folder.progress.seconds
    results = auc_summary(run, auc)
    members = add_thresholds(run, results.pop("members"), load_all_parts(run))
    return {
        "dataset": results.pop("dataset"),
        "data_sha256": dataset.digest,
        "classes": list(dataset.classes),
        "left_out": len(dataset.skipped_files),
        "channels": run.data.channels,
        "image_size": config.image_size,
        "config": to_plain(config),
        "members": _with_teachers(run, members),
        **results,
        "mean_auc_by_score": mean_auc_by_score(members),
        "cost": {name: vars(cost(gan.architecture)) for name, gan in run.networks.items()},
        "checkpoint_sha256": run.folder.progress.checkpoint_sha256,
        "seconds": {phase: round(value, 1) for phase, value in seconds.items()},
        "hardware": device_name(run.device) + ", TF32" * in_tf32(config.precision, run.device),
        "versions": {"python": platform.python_version(), **run.versions},
    }


def _with_teachers(run: Run, members: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add the digest of each member's teacher, which identifies it if a folder is renamed."""
    progress = run.folder.progress
    if "teacher" not in progress.auc:
        return members
    digests = progress.teacher_sha256 or weights_sha256(
        run.folder.load_tensors(CHECKPOINT, PREFIX), len(members)
    )
    return [
        member | {"teacher_sha256": digest} for member, digest in zip(members, digests, strict=True)
    ]


def auc_summary(run: Run, auc: dict[str, list[float]]) -> dict[str, Any]:
    """Name the AUC of each member after each phase, with the means: the table of a run."""
    classes = run.dataset.classes
    members = [
        {
            "normal_class": member.normal_class,
            "class_name": classes[member.normal_class],
            "seed": member.seed,
            "auc": {phase: values[k] for phase, values in auc.items()},
        }
        for k, member in enumerate(run.members)
    ]
    return {
        "dataset": run.config.dataset,
        "evaluate_on": run.config.evaluate_on,
        "members": members,
        **summarize_auc(auc, run.members),
    }


def load_all_parts(run: Run) -> dict[str, Parts]:
    """Load the parts of the scores after each phase; CheckpointError as `load_parts`."""
    return {phase.name: load_parts(run, phase) for phase in run.phases}


def add_thresholds(
    run: Run, members: list[dict[str, Any]], parts: dict[str, Parts]
) -> list[dict[str, Any]]:
    """Add score, threshold and AUC by every score after each phase to members of results.json."""
    rule, share = run.score_rule, run.config.contamination
    scores = {phase: part.fit(rule) for phase, part in parts.items()}
    thresholds = {
        phase: [threshold(values, share) for values in part.held_out_scores(rule)]
        for phase, part in parts.items()
    }
    auc = auc_by_score(run, parts)
    return [
        member
        | {
            "score": {phase: vars(values[k]) for phase, values in scores.items()},
            "threshold": {phase: values[k] for phase, values in thresholds.items()},
            "auc_by_score": {
                score: {phase: values[k] for phase, values in by_phase.items()}
                for score, by_phase in auc.items()
            },
        }
        for k, member in enumerate(members)
    ]


def auc_by_score(run: Run, parts: dict[str, Parts]) -> dict[str, dict[str, list[float]]]:
    """AUC of each member by every score: score -> phase -> AUCs.

    Phases that an earlier version of pkd trained are left out: it kept the latent score alone.
    """
    labels, members, rule = run.dataset.test_labels, run.members, run.score_rule
    complete = {phase: part for phase, part in parts.items() if part.test.shape[2] > 1}
    return {
        name: {
            phase: part.auc(replace(rule, name=name), labels, members)
            for phase, part in complete.items()
        }
        for name in SCORES
    }


def mean_auc_by_score(members: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean over the members of results.json: score -> phase -> AUC."""
    first = members[0]["auc_by_score"]
    return {
        score: {phase: mean(m["auc_by_score"][score][phase] for m in members) for phase in phases}
        for score, phases in first.items()
    }


def summarize_auc(
    auc: dict[str, list[float]], members: Sequence[Member]
) -> dict[str, dict[str, float]]:
    """Compute the mean AUC over classes after each phase, and its spread over seeds.

    Returns:
        "mean_auc": phase -> mean over classes and seeds. "std_auc": phase -> standard deviation
        over seeds of the mean over classes; only if each class has the same seeds, and several.
    """
    averages = {
        phase: average(dict(zip(members, values, strict=True))) for phase, values in auc.items()
    }
    summary = {"mean_auc": {phase: value.mean for phase, value in averages.items()}}
    spreads = {phase: value.std for phase, value in averages.items() if value.std is not None}
    return summary | ({"std_auc": spreads} if spreads else {})


def load_results(run: Run) -> dict[str, Any]:
    """Load what a report needs of results.json, and check that it belongs to the run.

    Returns:
        The entries `REPORT_KEYS`.

    Raises:
        CheckpointError: the run is not finished, or its results.json is damaged or does not fit
            config.yaml.
        DataError: the images of the run have changed since it was trained.
    """
    path = run.folder.path / "results.json"
    results = run.folder.results()
    if results is None:
        raise CheckpointError(
            f"{run.folder.path} is not finished, it has no results.json: continue it with "
            f"{resume_command(run.folder.path)}"
        )
    phases = {phase.name for phase in run.phases}
    try:
        if "threshold" not in results["members"][0]:  # written before there were thresholds
            results["members"] = add_thresholds(run, results["members"], load_all_parts(run))
        members = [
            (m["normal_class"], m["seed"], {*m["auc"]}, {*m["threshold"]})
            for m in results["members"]
        ]
        results = {key: results[key] for key in REPORT_KEYS}
    except (IndexError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged or of another version of pkd, it lacks {error}: {RESTORE}"
        ) from error
    if members != [(m.normal_class, m.seed, phases, phases) for m in run.members]:
        raise CheckpointError(f"{path} does not fit config.yaml: {RESTORE}")
    if results["data_sha256"] != run.dataset.digest:
        raise DataError(
            f"the images of the data set {run.config.dataset} are not those that {run.folder.path} "
            "was trained with: restore them, or set `data_dir` to the folder that has them"
        )
    return results


def member_metrics(run: Run, results: dict[str, Any]) -> dict[str, list[MemberMetrics]]:
    """Compute the metrics of each member after each phase, from the scores of its checkpoints.

    Args:
        run: a finished run.
        results: its `load_results`; AUC and thresholds are taken from there.

    Returns:
        Phase -> metrics of the M members, of the network that is evaluated in that phase.

    Raises:
        CheckpointError: a checkpoint is damaged, or has scores with another AUC than results.json.
    """
    labels, members = run.dataset.test_labels, results["members"]
    metrics = {}
    for phase in run.phases:
        scores = load_parts(run, phase).test_scores(run.score_rule)
        auc = [member["auc"][phase.name] for member in members]
        if not np.allclose(auc_by_member(scores, labels, run.members), auc):
            raise CheckpointError(
                f"the scores in checkpoint {run.folder.checkpoints / phase.name}.safetensors have "
                f"another AUC than results.json: {RESTORE}"
            )
        metrics[phase.name] = [
            MemberMetrics(
                y_true=labels != member["normal_class"],
                y_score=scores[:, k],
                threshold=member["threshold"][phase.name],
                auc=auc[k],
            )
            for k, member in enumerate(members)
        ]
    return metrics
