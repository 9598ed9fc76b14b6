"""Command-line flags for the settings of a training run."""

from argparse import SUPPRESS, ArgumentTypeError
from collections.abc import Callable, Collection
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ActionConfigFile, ArgumentParser
from typing_extensions import override

from pkd.cli.parser import flag
from pkd.training.config import TrainConfig
from pkd.training.settings import PARSERS, parse_numbers, parse_paths
from pkd.utils.errors import ConfigError
from pkd.utils.yaml_files import read_yaml


class InvalidTextError(ArgumentTypeError, ValueError):
    """Invalid text: argparse shows messages of the first base class, jsonargparse of the second."""


@dataclass(frozen=True, repr=False)
class TextType:
    """Argument type of a setting that is written as text.

    Args:
        name: shown in messages.
        parse: conversion from text, or from a YAML value; ValueError for what it cannot convert.
    """

    name: str
    parse: Callable[[Any], Any]

    def __call__(self, value: Any) -> Any:
        """Convert a value; raise `InvalidTextError` if it is invalid."""
        try:
            return None if value is None else self.parse(value)
        except ValueError as error:
            raise InvalidTextError(str(error)) from error

    def __repr__(self) -> str:
        return self.name


def read_settings(path: Path) -> dict[str, Any]:
    """Read a YAML file with settings; ConfigError if it cannot be read or holds something else."""
    try:
        values = read_yaml(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError("config", f"{path} cannot be read: {reason}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError("config", f"{path} must have settings with their values")
    return values


class ConfigFile(ActionConfigFile):
    """The flag of a YAML file with settings, which is checked before jsonargparse reads it."""

    @override
    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: Any = None) -> None:
        read_settings(Path(values))
        super().__call__(parser, cfg, values, option_string)


def add_settings(
    parser: ArgumentParser, only_given: bool = False, lists: Collection[str] = ()
) -> None:
    """Add a flag for every field of TrainConfig.

    Args:
        parser: the parser.
        only_given: leave settings that are not given out of the parsed arguments.
        lists: settings that accept several values, separated by commas.
    """
    docstring = docstring_parser.parse(TrainConfig.__doc__ or "")
    texts = {param.arg_name: param.description for param in docstring.params}
    hints = get_type_hints(TrainConfig)
    for field in fields(TrainConfig):
        assert field.default is not MISSING
        hint, default = hints[field.name], SUPPRESS if only_given else field.default
        argument_type = _list_type if field.name in lists else _argument_type
        options = argument_type(field.name, hint)
        parser.add_argument(flag(field.name), default=default, help=texts[field.name], **options)
        if hint is bool:
            parser.add_argument(
                flag(f"no_{field.name}"),
                dest=field.name,
                action="store_false",
                default=default,  # else store_false sets it to true
                help=f"same as {flag(field.name)} false",
            )


def _list_type(name: str, hint: Any) -> dict[str, Any]:
    """Keyword arguments of `add_argument` for a setting with several values."""
    parse = PARSERS.get(name) or _parse_choice(_required(hint))

    def parse_list(value: Any) -> list[Any]:
        items = value.split(",") if isinstance(value, str) else value  # jsonargparse repeats it
        return [parse(item) for item in items]

    return {"type": TextType(name, parse_list), "metavar": f"{name.upper()},..."}


def _parse_choice(hint: Any) -> Callable[[Any], Any]:
    """Conversion of text that is one of the values of a Literal."""

    def parse(value: Any) -> Any:
        if value not in get_args(hint):
            raise ValueError(f"expected one of {', '.join(get_args(hint))}, got {value!r}")
        return value

    return parse


def _required(hint: Any) -> Any:
    """Type of a setting without None."""
    return get_args(hint)[0] if type(None) in get_args(hint) else hint


def _argument_type(name: str, hint: Any) -> dict[str, Any]:
    """Keyword arguments of `add_argument` for a setting with a type hint."""
    if PARSERS.get(name) is parse_paths:
        return {"type": TextType("text", str), "nargs": "+", "metavar": "RUN_DIR"}
    if name in PARSERS:
        metavar = "X,X,..." if PARSERS[name] is parse_numbers else None
        return {"type": TextType(name, PARSERS[name]), "metavar": metavar}
    if hint is bool:  # --name, --name false, --no-name
        return {"type": bool, "nargs": "?", "const": True}
    required = _required(hint)
    if get_origin(required) is Literal:
        return {"type": TextType("text", str), "choices": get_args(required)}
    return {"type": TextType("text", str) if required is str else hint}
