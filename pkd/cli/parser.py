"""Parser and error handling that all commands share. Needs no torch."""

import os
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from rich.console import Console

from pkd.utils.errors import PkdError

# No markup: a path may contain brackets and colons.
PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}


def flag(name: str) -> str:
    """Command-line flag of a setting."""
    return "--" + name.replace("_", "-")


class Parser(ArgumentParser):
    """ArgumentParser that raises PkdError with one line instead of printing and exiting."""

    def __init__(self, **kwargs: Any):
        super().__init__(print_config="--print-%s", **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a PkdError with a shortened message of jsonargparse."""
        message = re.sub(r'Parser key "(\w+)":', lambda m: f"{flag(m[1])}:", message)
        message = re.sub(r"<class '(\w+)'>", r"\1", message).replace("typing.", "")
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


def guarded(command: Callable[[], int]) -> int:
    """Run a command; return its exit code, 2 for a user's mistake, 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # some terminals cannot show every character
            stream.reconfigure(errors="backslashreplace")
    try:
        return command()
    except PkdError as error:
        message, code = with_flags(str(error)), 2
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    except BrokenPipeError:  # the reader of `pkd score ... | head` has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    Console(stderr=True, **PLAIN).print(f"pkd: {message}", soft_wrap=True)
    return code


def with_flags(message: str) -> str:
    """Replace the settings in a message, which are in backticks, by their flags."""
    return re.sub(r"`([a-z_0-9]+)`", lambda match: flag(match[1]), message)
