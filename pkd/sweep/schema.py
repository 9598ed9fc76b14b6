"""Schema of sweep.json: names and types of its entries, as far as they are read again."""

from typing import Any

from pkd.runs.schema import (
    Check,
    check_entries,
    is_auc,
    is_count,
    is_number,
    is_text,
    list_of,
    one_of,
)
from pkd.training.structures import PHASE_NAMES, SCHEDULES

AUC = tuple(f"auc_{phase}" for phase in PHASE_NAMES)


def _is_auc_or_none(value: Any) -> bool:
    return value is None or is_auc(value)


def _is_plain(value: Any) -> bool:
    """Whether a value is none, true, false, a finite number, text, or a list of these."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, str)) or is_number(value)


ROW: dict[str, Check] = {
    **dict.fromkeys(("dataset", "student_widths", "class_name", "cell"), is_text),
    "structure": one_of(tuple(SCHEDULES)),
    **dict.fromkeys(("normal_class", "seed"), is_count),
    **dict.fromkeys(AUC, _is_auc_or_none),
}
CURVE: dict[str, Check] = {
    "cell": is_text,
    "phase": one_of(PHASE_NAMES),
    **dict.fromkeys(("auc", "auc_low", "auc_high"), list_of(is_auc)),
}
FAILED: dict[str, Check] = dict.fromkeys(("shard", "cell", "error", "command"), is_text)
CONTENT: dict[str, Check] = dict.fromkeys(
    ("rows", "curves", "failed"), lambda value: isinstance(value, list)
)
OPTIONAL: dict[str, Check] = {  # files of the first version lack them
    "settings": lambda value: isinstance(value, dict) and all(map(is_text, value)),
    "varied": lambda value: isinstance(value, list) and all(map(is_text, value)),
}


def check_sweep(content: Any) -> None:
    """Check the content of sweep.json.

    Raises:
        ValueError: an entry is missing or of another type, or a row has no AUC.
    """
    check_entries(content, CONTENT, OPTIONAL, "it")
    for number, row in enumerate(content["rows"], 1):
        check_entries(row, ROW, {}, f"row {number}")
        if not all(map(_is_plain, row.values())):
            raise ValueError(f"row {number} has a value that is no number or text")
        if all(row[name] is None for name in AUC):
            raise ValueError(f"row {number} has no AUC")
    for curve in content["curves"]:
        check_entries(curve, CURVE, {}, "a curve")
        if not len(curve["auc"]) == len(curve["auc_low"]) == len(curve["auc_high"]):
            raise ValueError("a curve has another number of lowest or highest AUCs")
    for shard in content["failed"]:
        check_entries(shard, FAILED, {}, "a failed shard")
