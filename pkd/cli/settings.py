"""Command-line flags for the settings of a training run."""

from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser

from pkd.cli.parser import flag
from pkd.training.config import TrainConfig
from pkd.training.settings import PARSERS, parse_numbers, parse_paths


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


def add_settings(parser: ArgumentParser) -> None:
    """Add a flag for every field of TrainConfig."""
    docstring = docstring_parser.parse(TrainConfig.__doc__ or "")
    texts = {param.arg_name: param.description for param in docstring.params}
    hints = get_type_hints(TrainConfig)
    for field in fields(TrainConfig):
        assert field.default is not MISSING
        options = _argument_type(field.name, hints[field.name])
        parser.add_argument(
            flag(field.name), default=field.default, help=texts[field.name], **options
        )
        if hints[field.name] is bool:
            parser.add_argument(
                flag(f"no_{field.name}"),
                dest=field.name,
                action="store_false",
                default=field.default,  # else store_false sets it to true
                help=f"same as {flag(field.name)} false",
            )


def _argument_type(name: str, hint: Any) -> dict[str, Any]:
    """Keyword arguments of `add_argument` for a setting with a type hint."""
    if PARSERS.get(name) is parse_paths:
        return {"type": TextType("text", str), "nargs": "+", "metavar": "RUN_DIR"}
    if name in PARSERS:
        metavar = "X,X,..." if PARSERS[name] is parse_numbers else None
        return {"type": TextType(name, PARSERS[name]), "metavar": metavar}
    if hint is bool:  # --name, --name false, --no-name
        return {"type": bool, "nargs": "?", "const": True}
    required = get_args(hint)[0] if type(None) in get_args(hint) else hint  # without None
    if get_origin(required) is Literal:
        return {"type": TextType("text", str), "choices": get_args(required)}
    return {"type": TextType("text", str) if required is str else hint}
