"""Settings from the command line, from YAML and from run folders: every mistake a PkdError."""

from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser

from pkd.cli.parser import Parser
from pkd.training.config import TrainConfig
from pkd.utils.errors import PkdError, flag


@dataclass(frozen=True, repr=False)
class Numbers:
    """Reads `count` numbers: "0.5,0.999", or a list in YAML."""

    count: int

    def __call__(self, value: Any) -> tuple[float, ...]:
        parts = value.strip("[]()").split(",") if isinstance(value, str) else value
        try:
            numbers = tuple(map(float, parts))
        except (TypeError, ValueError) as error:
            raise ValueError(f"expected {self}, got {value!r}") from error
        if len(numbers) != self.count:
            raise ValueError(f"expected {self}, got {value!r}")
        return numbers

    def __repr__(self) -> str:
        return f"{self.count} numbers with commas"


class AnyText:
    """Reads a string, also where YAML has a number or a list (`normal_class: 3`, `[1, 5]`)."""

    def __call__(self, value: Any) -> str | None:
        if isinstance(value, list):
            return ",".join(map(str, value))
        return None if value is None else str(value)

    def __repr__(self) -> str:
        return "text"


def add_settings(parser: ArgumentParser) -> None:
    """Give `parser` a flag for every field of TrainConfig."""
    hints = get_type_hints(TrainConfig)
    texts = {p.arg_name: p.description for p in docstring_parser.parse(TrainConfig.__doc__).params}
    for field in fields(TrainConfig):
        hint = hints[field.name]
        kind = {"type": hint}
        if type(None) in get_args(hint):
            hint = get_args(hint)[0]  # what it is when it is not left to the preset
        if get_origin(hint) is tuple:
            kind = {"type": Numbers(len(get_args(hint))), "metavar": "X,X,..."}
        elif get_origin(hint) is Literal:
            kind = {"type": AnyText(), "choices": get_args(hint)}
        elif hint is str:
            kind = {"type": AnyText()}
        elif hint is bool:  # --name, --name false, --no-name
            kind = {"type": bool, "nargs": "?", "const": True}
        text = texts[field.name]
        add = partial(parser.add_argument, default=field.default)
        add(flag(field.name), help=text, **kind)
        if hint is bool:
            same = f"same as {flag(field.name)} false"
            add(flag(f"no_{field.name}"), dest=field.name, action="store_false", help=same)


def config_from(values: Any, source: Path) -> TrainConfig:
    """The configuration that `source`, a run's config.yaml, holds.

    Raises:
        PkdError: it is damaged, or of another version of pkd.
    """
    parser = Parser()
    add_settings(parser)
    try:
        if not isinstance(values, dict):
            raise PkdError("it holds no settings")
        missing = [field.name for field in fields(TrainConfig) if field.name not in values]
        if missing:
            raise PkdError(f"it has no {', '.join(missing)}")
        return TrainConfig(**vars(parser.parse_object(values))).resolved()
    except PkdError as error:
        raise PkdError(
            f"{source} is damaged or of another version of pkd: {error}; "
            "mend it, or train again in a new folder"
        ) from error
