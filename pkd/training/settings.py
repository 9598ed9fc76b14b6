"""Settings as text and as plain values: the formats of the command line, of YAML and of JSON."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

from pkd.training.config import ResolvedConfig, TrainConfig
from pkd.training.validation import check_settings
from pkd.utils.errors import RESTORE, CheckpointError, ConfigError


def parse_widths(value: Any) -> tuple[int, int, int]:
    """Three integers written as "a-b-c", or as a list.

    Raises:
        ValueError: `value` is neither.
    """
    parts = value.split("-") if isinstance(value, str) else value
    try:
        first, second, third = map(_integer, parts)
        return first, second, third
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"expected three positive integers such as 8-16-64, got {value!r}"
        ) from error


def parse_classes(value: Any) -> Literal["all"] | tuple[int, ...]:
    """Class numbers written as "all", "K" or "K,K", as a number or as a list.

    Raises:
        ValueError: `value` is none of these.
    """
    if value == "all":
        return "all"
    parts = value.split(",") if isinstance(value, str) else value
    try:
        return tuple(map(_integer, [parts] if isinstance(parts, int) else parts))
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected 'all' or class numbers such as 0,3, got {value!r}") from error


def parse_numbers(value: Any) -> tuple[float, ...]:
    """Numbers written as "0.5,0.999", or as a list.

    Raises:
        ValueError: `value` is neither.
    """
    parts = value.strip("[]()").split(",") if isinstance(value, str) else value
    try:
        return tuple(map(float, parts))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"expected numbers separated by commas, got {value!r}") from error


def parse_members(value: Any) -> tuple[tuple[int, int], ...]:
    """Models written as "CLASS:SEED,CLASS:SEED", or as a list of such pairs.

    Raises:
        ValueError: `value` is neither.
    """
    if isinstance(value, int):  # YAML 1.1 reads 3:1 as a number of base 60
        raise ValueError(f'put the models in quotes, such as "3:1": YAML has read {value}')
    items = value.split(",") if isinstance(value, str) else value
    try:
        pairs = [item.split(":") if isinstance(item, str) else item for item in items]
        return tuple((_integer(normal_class), _integer(seed)) for normal_class, seed in pairs)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected models as CLASS:SEED such as 0:0,1:0, got {value!r}") from error


def parse_paths(value: Any) -> tuple[str, ...]:
    """Paths in a list, or a single one.

    Raises:
        ValueError: `value` is neither.
    """
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
        raise ValueError(f"expected paths, got {value!r}")
    return tuple(items)


def _integer(value: Any) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    if type(value) is int:
        return value
    raise ValueError(f"{value!r} is not a number of digits 0 to 9")


# Settings whose text differs from their value.
PARSERS = {
    "normal_class": parse_classes,
    "members": parse_members,
    "teacher": parse_paths,
    "teacher_widths": parse_widths,
    "student_widths": parse_widths,
    "betas": parse_numbers,
    "weights": parse_numbers,
    "fused_weights": parse_numbers,
}


# Value of a setting in a config.yaml that was written before the setting existed: the behaviour of
# that time. A preset would fill in another value for some of them.
BEFORE = {
    "lr_schedule": "constant",
    "skip_bad": False,
    "image_size": 32,
    "held_out": 0.0,  # nothing was held out
    "contamination": 0.05,
    "graph": True,
    "stack": None,
    "channels": None,
    "precision": "float32",
    "members": None,
    "teacher": None,
    "teacher_lr": None,
    "teacher_batch_size": None,
    "teacher_max_train_images": None,
    "step2_teacher_lr": None,
    "evaluate_on": "test",
    "score": "latent",
    "fused_weights": (1.0, 0.25),
}


def to_plain(config: TrainConfig) -> dict[str, Any]:
    """Settings as plain values for YAML and JSON: widths and classes as text, tuples as lists."""
    plain: dict[str, Any] = {}
    for name, value in asdict(config).items():
        if name.endswith("_widths") and value is not None:
            plain[name] = "-".join(map(str, value))
        elif name == "normal_class" and value != "all":
            plain[name] = ",".join(map(str, value))
        elif name == "members" and value is not None:
            plain[name] = ",".join(f"{normal_class}:{seed}" for normal_class, seed in value)
        else:
            plain[name] = list(value) if isinstance(value, tuple) else value
    return plain


def from_plain(values: Any, source: Path) -> ResolvedConfig:
    """Settings of a run folder's config.yaml.

    Args:
        values: content of the file.
        source: the file.

    Raises:
        CheckpointError: the file is damaged or of a newer version of pkd.
    """
    names = [field.name for field in fields(TrainConfig)]
    try:
        if not isinstance(values, dict):
            raise ValueError("it holds no settings")
        values = BEFORE | values
        unknown = [str(name) for name in values if name not in names]
        if unknown:
            raise ValueError(f"it has an unknown setting {', '.join(unknown)}")
        missing = [name for name in names if name not in values]
        if missing:
            raise ValueError(f"it has no {', '.join(missing)}")
        config = ResolvedConfig(**{name: _parsed(name, value) for name, value in values.items()})
        check_settings(config)
        return config
    except (ConfigError, ValueError) as error:
        raise CheckpointError(
            f"{source} is damaged or of another version of pkd: {error}; {RESTORE}"
        ) from error


def _parsed(name: str, value: Any) -> Any:
    if value is None or name not in PARSERS:
        return value
    try:
        return PARSERS[name](value)
    except ValueError as error:
        raise ConfigError(name, f"is {value!r}: {error}") from error
