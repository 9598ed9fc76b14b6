"""Results of sweeps as pkd sweep writes them, with made-up AUCs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pkd.models.architecture import Architecture
from pkd.models.cost import cost
from pkd.models.paper import PAPER_MEANS, TEACHER_WIDTHS
from pkd.training.structures import SCHEDULES

CLASS_NAMES = {
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "cifar10": (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
}
EPOCHS = {"teacher": 4, "step1": 10, "step2": 2}
# Mean gain of a method over the student alone, for AUCs that can be told apart.
GAINS = {structure: k / 200 for k, structure in enumerate(SCHEDULES)}

Row = dict[str, Any]


def class_names(dataset: str) -> Sequence[str]:
    """Names of the ten classes of a data set."""
    return CLASS_NAMES.get(dataset, [str(k) for k in range(10)])


def sizes(network: str, widths: str, dataset: str) -> dict[str, int]:
    """Columns of a row with the size of a network."""
    channels = 3 if dataset == "cifar10" else 1
    size = cost(Architecture(channels, tuple(map(int, widths.split("-")))))
    return {f"{network}_parameters": size.parameters, f"{network}_flops": size.flops}


def cell_rows(
    structure: str,
    *,
    dataset: str = "fashion_mnist",
    widths: str = "1-2-4",
    classes: Sequence[int] = range(10),
    seeds: Sequence[int] = range(3),
    **settings: Any,
) -> list[Row]:
    """Rows of a cell, one for each class and seed; `settings` are its other columns."""
    schedule = SCHEDULES[structure]
    cell = "_".join([dataset, structure, widths, *map(str, settings.values())])
    rows = []
    for normal_class in classes:
        for seed in seeds:
            rng = np.random.default_rng(
                [normal_class, seed, len(widths), list(SCHEDULES).index(structure)]
            )
            level = PAPER_MEANS["teacher"].get(dataset, 0.9) - 0.1 + 0.01 * normal_class
            noise = rng.normal(0, 0.004, 3)
            auc = {
                "auc_teacher": level + 0.02 + noise[0] / 4,
                "auc_step1": level + GAINS[structure] + noise[1],
                "auc_step2": level + GAINS[structure] + noise[2],
            }
            auc = {k: v if k[4:] in schedule else None for k, v in auc.items()}
            teacher = "teacher" in schedule
            rows.append(
                {
                    **{"dataset": dataset, "structure": structure, "student_widths": widths},
                    **settings,
                    "normal_class": normal_class,
                    "class_name": class_names(dataset)[normal_class],
                    "seed": seed,
                    **auc,
                    "student_steps": 1250 * len(schedule.keys() - {"teacher"}),
                    "seconds_teacher": 31.5 if teacher else None,
                    "seconds_student": 12.25 * len(schedule.keys() - {"teacher"}) or None,
                    "hardware": "a CPU with 2 cores",
                    "cell": cell,
                    "shard": f"{cell}_{seed}",
                    "teacher_sha256": f"{dataset}-{normal_class}-{seed}" if teacher else None,
                    **sizes("student", widths, dataset),
                    **(
                        sizes("teacher", "-".join(map(str, TEACHER_WIDTHS)), dataset)
                        if teacher
                        else {"teacher_parameters": None, "teacher_flops": None}
                    ),
                }
            )
    return rows


def cell_curves(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Curves of the cell that has these rows; they end with the mean AUC of the rows."""
    first = rows[0]
    curves = []
    for phase in SCHEDULES[first["structure"]]:
        last = [row[f"auc_{phase}"] for row in rows]
        shape = 1 - 0.3 * np.exp(-np.arange(1, EPOCHS[phase] + 1) / 2)
        shape /= shape[-1]
        names = ("cell", "dataset", "structure", "student_widths")
        curves.append(
            {name: first[name] for name in names}
            | {
                "phase": phase,
                "network": "teacher" if phase == "teacher" else "student",
                "auc": [round(x, 5) for x in np.mean(last) * shape],
                "auc_low": [round(x, 5) for x in min(last) * shape],
                "auc_high": [round(x, 5) for x in max(last) * shape],
            }
        )
    return curves


def write_sweep(folder: Path, *cells: Sequence[Row], **content: Any) -> Path:
    """Write sweep.json with the rows of cells; `content` replaces its entries."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = {
        "format": 1,
        "rows": [row for rows in cells for row in rows],
        "curves": [curve for rows in cells for curve in cell_curves(rows)],
        "failed": [],
    }
    (folder / "sweep.json").write_text(json.dumps(entries | content), encoding="utf-8")
    return folder
