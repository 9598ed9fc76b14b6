"""Types and ranges of settings, as data."""

import math
from collections.abc import Callable
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import torch

from pkd.models.architecture import IMAGE_SIZES
from pkd.utils.errors import ConfigError


class Rule(NamedTuple):
    """Range of a setting: a condition, and its wording after "must"."""

    holds: Callable[[Any], bool]
    text: str


LARGEST = 2**31 - 1  # of counts; `check_memory` limits seeds, widths and latent


def _positive_in_float32(value: float) -> bool:
    # Adam keeps the rate in float32, where very small and very large numbers are 0 and infinite.
    rate = torch.tensor(float(value), dtype=torch.float32).item()
    return math.isfinite(rate) and rate > 0


def _is_path(value: str) -> bool:
    """Whether a path can be opened at all: it has no null character, and its ~ can be expanded."""
    try:
        Path(value).expanduser()
    except RuntimeError:  # such as ~name of an unknown user
        return False
    return "\0" not in value


COUNTS = (
    *("max_train_images", "stack", "batch_size"),
    *("teacher_epochs", "step1_epochs", "step2_epochs"),
    *("teacher_batch_size", "teacher_max_train_images"),
)
RULES: dict[str, Rule] = {
    **dict.fromkeys(
        COUNTS, Rule(lambda v: 1 <= v <= LARGEST, f"be at least 1, at most {LARGEST:,}")
    ),
    **dict.fromkeys(("seeds", "latent"), Rule(lambda value: value >= 1, "be at least 1")),
    **dict.fromkeys(
        ("teacher_widths", "student_widths"),
        Rule(lambda value: min(value) >= 1, "be three positive integers such as 8-16-64"),
    ),
    "data_dir": Rule(_is_path, "be a path"),
    "normal_class": Rule(
        lambda value: value == "all" or 0 < len(value) == len(set(value)),
        "be 'all' or class numbers, each of them once",
    ),
    **dict.fromkeys(
        ("lr", "teacher_lr", "step2_teacher_lr"),
        Rule(_positive_in_float32, "be positive and finite in float32, e.g. 0.002"),
    ),
    "members": Rule(
        lambda value: (
            0 < len(value) == len(set(value))
            and min(map(min, value)) >= 0
            and max(map(max, value)) <= LARGEST
        ),
        "be models as CLASS:SEED, each of them once, e.g. 0:0,1:0",
    ),
    "teacher": Rule(
        lambda value: len(value) > 0 and all(map(_is_path, value)), "be folders of finished runs"
    ),
    "betas": Rule(lambda value: all(0 <= beta < 1 for beta in value), "be two numbers in [0, 1)"),
    "weights": Rule(
        lambda value: all(math.isfinite(weight) and weight >= 0 for weight in value),
        "be six finite numbers, each at least 0",
    ),
    "fused_weights": Rule(
        lambda value: all(math.isfinite(weight) and weight >= 0 for weight in value),
        "be two finite numbers, each at least 0",
    ),
    "checkpoint_every": Rule(lambda value: value >= 0, "be a number of seconds, at least 0"),
    "image_size": Rule(
        lambda value: value in IMAGE_SIZES, f"be one of {', '.join(map(str, IMAGE_SIZES))}"
    ),
    "channels": Rule(lambda value: value in (1, 3), "be 1 (grey) or 3 (RGB)"),
    # 0 only in run folders from before images were held out, see `TrainConfig.resolved`.
    "held_out": Rule(lambda value: 0 <= value < 1, "lie between 0 and 1, e.g. 0.1"),
    "contamination": Rule(lambda value: 0 < value <= 0.5, "lie in (0, 0.5]"),
}
KINDS: dict[type, tuple[type, str]] = {
    int: (Integral, "be a whole number"),
    float: (Real, "be a number"),
    bool: (bool, "be true or false"),
    str: (str, "be text"),
}


def check_settings(config: Any) -> None:
    """Check the type and range of every field of a dataclass of settings.

    Raises:
        ConfigError: a value cannot be used; it names the field.
    """
    for name, hint in get_type_hints(type(config)).items():
        value, types = getattr(config, name), _alternatives(hint)
        if value is None and NoneType in types:
            continue
        rule = RULES.get(name)
        if not any(_has_type(value, kind) for kind in types):
            raise ConfigError(name, f"is {value!r}, but must {_expected(types, rule)}")
        if rule and not _holds(rule, value):
            raise ConfigError(name, f"is {value!r}, but must {rule.text}")


def _holds(rule: Rule, value: Any) -> bool:
    try:
        return rule.holds(value)
    except OverflowError:  # an integer that is too large for a float
        return False


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """Members of a union; the type itself where it is none."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _has_type(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if get_origin(hint) is tuple:
        items = get_args(hint)
        right_length = items[-1] is ... or (isinstance(value, tuple) and len(value) == len(items))
        return (
            isinstance(value, tuple)
            and right_length
            and all(_has_type(item, items[0]) for item in value)
        )
    if hint not in KINDS:
        return False
    return isinstance(value, KINDS[hint][0]) and (hint is bool or not isinstance(value, bool))


def _expected(types: tuple[Any, ...], rule: Rule | None) -> str:
    """Wording of a type after "must"."""
    if types[0] in KINDS:
        return KINDS[types[0]][1]
    return rule.text if rule else f"be one of {', '.join(get_args(types[0]))}"
