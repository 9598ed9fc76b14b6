"""Schema of the files of a run: names and types of the entries of metrics.jsonl and results.json.

A name that a schema lacks is accepted: a later version may have written the file.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from pkd.training.structures import NETWORKS, PHASE_NAMES, Phase
from pkd.utils.checksums import DIGEST

Check = Callable[[Any], bool]


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_auc(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and DIGEST.fullmatch(value) is not None


def _one_of(names: Sequence[str]) -> Check:
    return lambda value: value in names if isinstance(value, str) else False


def _list(check: Check) -> Check:
    return lambda value: isinstance(value, list) and len(value) > 0 and all(map(check, value))


def _by(name: Check, check: Check) -> Check:
    """Objects whose names and values pass a check."""
    return lambda value: (
        isinstance(value, dict) and all(map(name, value)) and all(map(check, value.values()))
    )


PHASE, NETWORK = _one_of(PHASE_NAMES), _one_of(NETWORKS)
BY_PHASE_AUC = _by(PHASE, _is_auc)

RECORD: dict[str, Check] = {
    "phase": PHASE,
    "epoch": _is_count,
    "network": NETWORK,
    "auc": _list(_is_auc),
    "test_images": _is_count,
    "losses": _by(NETWORK, _by(_is_text, _list(_is_number))),
}
MEMBER: dict[str, Check] = {
    "normal_class": _is_count,
    "class_name": _is_text,
    "seed": _is_count,
    "auc": BY_PHASE_AUC,
}
# Entries that files of earlier versions lack.
OPTIONAL_OF_MEMBER: dict[str, Check] = {
    "threshold": _by(PHASE, _is_number),
    "score": _by(PHASE, _by(_is_text, _is_number)),
    "auc_by_score": _by(_is_text, BY_PHASE_AUC),
    "teacher_sha256": _is_sha256,
}
RESULTS: dict[str, Check] = {
    "dataset": _is_text,
    "data_sha256": _is_sha256,
    "config": lambda value: isinstance(value, dict),
    "members": lambda value: isinstance(value, list) and len(value) > 0,
    "mean_auc": BY_PHASE_AUC,
    "cost": _by(NETWORK, _by(_is_text, _is_count)),
    "seconds": _by(PHASE, _is_number),
    "hardware": _is_text,
    "versions": _by(_is_text, _is_text),
}
OPTIONAL_OF_RESULTS: dict[str, Check] = {
    "classes": _list(_is_text),
    "left_out": _is_count,
    "channels": lambda value: value in (1, 3),
    "image_size": _is_count,
    "evaluate_on": _one_of(("test", "development")),
    "mean_auc_by_score": _by(_is_text, BY_PHASE_AUC),
    "std_auc": _by(PHASE, _is_number),
    "checkpoint_sha256": _by(_is_text, _is_sha256),
}


def check_metrics(records: Any) -> None:
    """Check the records of metrics.jsonl; ValueError if an entry is missing or of another type."""
    for number, record in enumerate(records, 1):
        _check(record, RECORD, {}, f"line {number}")
        if any(
            len(values) != len(record["auc"])
            for losses in record["losses"].values()
            for values in losses.values()
        ):
            raise ValueError(f"line {number} has losses of another number of models than its auc")


def check_epochs(records: Sequence[Any], phases: Sequence[Phase], models: int) -> None:
    """Check that the first records are those of all epochs of some phases, with all models.

    Args:
        records: of metrics.jsonl, which have passed `check_metrics`.
        phases: finished phases, in order.
        models: of the run.

    Raises:
        ValueError: an epoch or a model is missing.
    """
    expected = [(phase.name, k + 1, models) for phase in phases for k in range(phase.epochs)]
    actual = [(record["phase"], record["epoch"], len(record["auc"])) for record in records]
    if actual[: len(expected)] != expected:
        raise ValueError("metrics.jsonl lacks an epoch or a model of a finished phase")


def check_results(results: Any) -> None:
    """Check the content of results.json; ValueError if an entry is missing or of another type."""
    _check(results, RESULTS, OPTIONAL_OF_RESULTS, "it")
    for number, member in enumerate(results["members"]):
        _check(member, MEMBER, OPTIONAL_OF_MEMBER, f"member {number}")


def _check(values: Any, required: dict[str, Check], optional: dict[str, Check], name: str) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{name} is no object")
    for key in required:
        if key not in values:
            raise ValueError(f"{name} lacks {key}")
    for key, check in (required | optional).items():
        if key in values and not check(values[key]):
            raise ValueError(f"{name} has {key} with a value that cannot be used")
