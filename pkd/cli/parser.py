"""What all commands share: their parser, and what becomes of a mistake. Needs no torch."""

import os
import re
import sys
from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console

from pkd.utils.errors import PkdError, flag

PLAIN = {"highlight": False, "markup": False, "emoji": False}  # paths may look like anything


class Parser(ArgumentParser):
    """ArgumentParser that raises PkdError, in one line, where others print and exit."""

    def __init__(self, **kwargs: Any):
        super().__init__(print_config="--print-%s", **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> None:
        message = re.sub(r'Parser key "(\w+)":', lambda m: f"{flag(m[1])}:", message)
        message = re.sub(r"<class '(\w+)'>", r"\1", message).replace("typing.", "")
        message = " ".join(message.split())
        union = r"Does not validate .* Errors: - Expected an? (\w+) .* Given value: "
        message = re.sub(union, r"expected \1, got ", message)
        command = self.prog.replace("[options] ", "")
        if unknown := re.fullmatch(r"Subcommand '(\w+)' does not accept option '(.+)'", message):
            message, command = f"there is no setting {unknown[2]}", f"{command} {unknown[1]}"
        raise PkdError(f"{message} (see {command} --help)") from ex


def add_choices(parser: Parser) -> None:
    """Flags that tell which of a run's detectors is meant."""
    parser.add_argument(
        "--network", choices=("student", "teacher"), help="of a run; default: student"
    )
    parser.add_argument(
        "--normal-class", type=int | None, help="number of a run's class, where it has several"
    )
    parser.add_argument("--seed", type=int | None, help="of a run with several; default: 0")


def guarded(command: Callable[[], int]) -> int:
    """Run a command; returns its exit code, 2 for a user's mistake, 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal need not know every letter
            stream.reconfigure(errors="backslashreplace")
    try:
        return command()
    except PkdError as error:
        message, code = str(error), 2
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    except BrokenPipeError:  # `pkd score ... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    Console(stderr=True, **PLAIN).print(f"pkd: {message}", soft_wrap=True)
    return code
