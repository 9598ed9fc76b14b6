"""Parser and flags that all commands share. Needs no torch."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from typing_extensions import override

from pkd.utils.errors import PkdError


def flag(name: str) -> str:
    """Command-line flag of a setting."""
    return "--" + name.replace("_", "-")


class Parser(ArgumentParser):
    """ArgumentParser that raises PkdError with one line instead of printing and exiting."""

    def __init__(self, **kwargs: Any):
        super().__init__(print_config="--print-%s", **kwargs)

    @override
    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        with self._unusable_values():
            return super().parse_args(*args, **kwargs)

    @override
    def parse_object(self, *args: Any, **kwargs: Any) -> Any:
        with self._unusable_values():
            return super().parse_object(*args, **kwargs)

    @contextmanager
    def _unusable_values(self) -> Iterator[None]:
        """Report values that jsonargparse does not check: huge integers, nesting, YAML tags."""
        try:
            yield
        except PkdError:
            raise
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, ValueError) as error:
            self.error(f"a value cannot be used: {error}", error)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a PkdError with a shortened message of jsonargparse."""
        message = re.sub(r'Parser key "(\w+)":', lambda m: f"{flag(m[1])}:", message)
        message = re.sub(r"<class '(\w+)'>", r"\1", message).replace("typing.", "")
        # What jsonargparse says where a file has a single value for a flag with several.
        message = message.replace(
            "'str' object does not support item assignment", "expected a list, such as [RUN_DIR]"
        )
        message = " ".join(message.split())
        union = r"Does not validate .* Errors: - Expected an? (\w+) .* Given value: "
        message = re.sub(union, r"expected \1, got ", message)
        command = self.prog.replace("[options] ", "")
        if unknown := re.fullmatch(r"Subcommand '(\w+)' does not accept option '(.+)'", message):
            message, command = f"there is no setting {unknown[2]}", f"{command} {unknown[1]}"
        raise PkdError(f"{message} (see {command} --help)") from ex


def add_model_selection(parser: Parser) -> None:
    """Add the flags that select one of a run's models."""
    parser.add_argument(
        "--network",
        choices=("student", "teacher"),
        help="of a run; default: the student if the run has one",
    )
    parser.add_argument(
        "--normal-class", type=int | None, help="number of the class, if a run has several"
    )
    parser.add_argument("--seed", type=int | None, help="of a run with several; default: 0")


def with_flags(message: str) -> str:
    """Replace the settings in a message, which are in backticks, by their flags."""
    return re.sub(r"`([a-z_0-9]+)`", lambda match: flag(match[1]), message)
