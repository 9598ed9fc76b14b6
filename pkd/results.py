"""What a run came to: the content of results.json."""

import platform
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from pkd.cost import cost
from pkd.hardware import device_name, in_tf32
from pkd.run import Run
from pkd.thresholds import threshold
from pkd.training_set import Member


def results_of(run: Run, auc: dict[str, list[float]]) -> dict[str, Any]:
    """What results.json holds, for the AUC of each member after each phase.

    Raises:
        UserError: a phase's checkpoint is damaged, see `Run.held_out_scores`.
    """
    config, dataset = run.config, run.dataset
    thresholds = {
        phase: [threshold(own, config.contamination) for own in run.held_out_scores(phase)]
        for phase in auc
    }
    return {
        "dataset": config.dataset,
        "data_sha256": dataset.digest,
        "classes": list(dataset.classes),
        "left_out": len(dataset.left_out),
        "channels": run.test_images.shape[1],
        "image_size": config.image_size,
        "config": config.as_dict(),
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
