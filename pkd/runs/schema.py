"""Schema of the files of a run: names and types of the entries of metrics.jsonl and results.json.

A name that a schema lacks is accepted: a later version may have written the file.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from pkd.training.structures import NETWORKS, PHASE_NAMES, Phase
from pkd.utils.checksums import DIGEST

Check = Callable[[Any], bool]


def is_count(value: Any) -> bool:
    """Whether a value is an integer of at least 0."""
    return type(value) is int and value >= 0


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # false for NaN


def is_auc(value: Any) -> bool:
    """Whether a value is a number in [0, 1]."""
    return is_number(value) and 0 <= value <= 1


def is_text(value: Any) -> bool:
    """Whether a value is text."""
    return isinstance(value, str)


def is_sha256(value: Any) -> bool:
    """Whether a value is a hexadecimal SHA-256."""
    return isinstance(value, str) and DIGEST.fullmatch(value) is not None


def one_of(names: Sequence[str]) -> Check:
    """Check that a value is one of some names."""
    return lambda value: value in names if isinstance(value, str) else False


def list_of(check: Check) -> Check:
    """Check that a value is a list of values that pass a check, and not empty."""
    return lambda value: isinstance(value, list) and len(value) > 0 and all(map(check, value))


def by_name(name: Check, check: Check) -> Check:
    """Check that a value is an object whose names and values pass a check each."""
    return lambda value: (
        isinstance(value, dict) and all(map(name, value)) and all(map(check, value.values()))
    )


PHASE, NETWORK = one_of(PHASE_NAMES), one_of(NETWORKS)
BY_PHASE_AUC = by_name(PHASE, is_auc)

RECORD: dict[str, Check] = {
    "phase": PHASE,
    "epoch": is_count,
    "network": NETWORK,
    "auc": list_of(is_auc),
    "test_images": is_count,
    "losses": by_name(NETWORK, by_name(is_text, list_of(is_number))),
}
MEMBER: dict[str, Check] = {
    "normal_class": is_count,
    "class_name": is_text,
    "seed": is_count,
    "auc": BY_PHASE_AUC,
}
# Entries that files of earlier versions lack.
OPTIONAL_OF_MEMBER: dict[str, Check] = {
    "threshold": by_name(PHASE, is_number),
    "score": by_name(PHASE, by_name(is_text, is_number)),
    "auc_by_score": by_name(is_text, BY_PHASE_AUC),
    "teacher_sha256": is_sha256,
}
RESULTS: dict[str, Check] = {
    "dataset": is_text,
    "data_sha256": is_sha256,
    "config": lambda value: isinstance(value, dict),
    "members": lambda value: isinstance(value, list) and len(value) > 0,
    "mean_auc": BY_PHASE_AUC,
    "cost": by_name(NETWORK, by_name(is_text, is_count)),
    "seconds": by_name(PHASE, is_number),
    "hardware": is_text,
    "versions": by_name(is_text, is_text),
}
OPTIONAL_OF_RESULTS: dict[str, Check] = {
    "classes": list_of(is_text),
    "left_out": is_count,
    "channels": lambda value: value in (1, 3),
    "image_size": is_count,
    "evaluate_on": one_of(("test", "development")),
    "mean_auc_by_score": by_name(is_text, BY_PHASE_AUC),
    "std_auc": by_name(PHASE, is_number),
    "checkpoint_sha256": by_name(is_text, is_sha256),
}


def check_metrics(records: Any) -> None:
    """Check the records of metrics.jsonl; ValueError if an entry is missing or of another type."""
    for number, record in enumerate(records, 1):
        check_entries(record, RECORD, {}, f"line {number}")
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
    check_entries(results, RESULTS, OPTIONAL_OF_RESULTS, "it")
    for number, member in enumerate(results["members"]):
        check_entries(member, MEMBER, OPTIONAL_OF_MEMBER, f"member {number}")


def check_entries(
    values: Any, required: dict[str, Check], optional: dict[str, Check], name: str
) -> None:
    """Check the entries of an object.

    Args:
        values: the object.
        required: name -> check of its value.
        optional: the same for names that may be missing.
        name: of the object, for messages.

    Raises:
        ValueError: it is no object, lacks an entry, or a value fails its check.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{name} is no object")
    missing = [key for key in required if key not in values]
    if missing:
        raise ValueError(f"{name} lacks {', '.join(missing)}")
    for key, check in (required | optional).items():
        if key in values and not check(values[key]):
            raise ValueError(f"{name} has {key} {repr(values[key])[:80]}")
