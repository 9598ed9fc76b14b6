"""Output, signals and exit codes of a command. Needs no torch.

0: done; 1: a part of the work failed; 2: a mistake of the user; 130: Ctrl-C; 141: the reader of
the output has gone; 143: SIGTERM.
"""

import errno
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console
from rich.text import Text
from typing_extensions import override

from pkd.cli.parser import with_flags
from pkd.utils.errors import PkdError
from pkd.utils.text import visible

# Errors of a write to standard output: no space, a quota, a device that is gone.
OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


class PlainConsole(Console):
    """Console for text from outside: no markup in it, and no control characters but newlines."""

    def __init__(self, **kwargs: Any):
        # a path may contain brackets and colons
        super().__init__(highlight=False, markup=False, emoji=False, **kwargs)

    @override
    def render_str(self, text: str, **kwargs: Any) -> Text:
        return super().render_str("\n".join(map(visible, text.split("\n"))), **kwargs)

    @override
    def on_broken_pipe(self) -> None:
        self.quiet = True
        discard(self.file.fileno())
        # A command that handles the signal ends as soon as its state is saved.
        if signal.getsignal(signal.SIGPIPE) in (signal.SIG_IGN, signal.SIG_DFL):
            raise BrokenPipeError


class TerminatedError(BaseException):
    """SIGTERM: ends the command, and removes its temporary files on the way."""


class _Notices(logging.Handler):
    """Print the notices of the package to standard error."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        console = PlainConsole(stderr=True)
        console.print(f"pkd: {visible(record.getMessage())}", soft_wrap=True)
        if record.exc_info:
            console.print(logging.Formatter().formatException(record.exc_info), soft_wrap=True)


def guarded(command: Callable[[], int]) -> int:
    """Run a command; return its exit code, after a message for errors and signals."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # some terminals cannot show every character
            stream.reconfigure(errors="backslashreplace")
    try:
        with _signals(), _notices():
            if sys.stdout is None:
                raise PkdError("standard output is closed: redirect it, for example to /dev/null")
            try:
                return command()
            finally:
                sys.stdout.flush()
    except PkdError as error:
        message, code = with_flags(str(error)), 2
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    except TerminatedError:
        message, code = "terminated", 143
    except BrokenPipeError:  # the reader of `pkd score ... | head` has closed the pipe
        discard(sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in OUTPUT_ERRORS or error.filename is not None:
            raise
        discard(sys.stdout.fileno())
        message = f"standard output cannot be written ({error.strerror}): redirect it"
        code = 2
    PlainConsole(stderr=True).print(f"pkd: {visible(message)}", soft_wrap=True)
    return code


def discard(descriptor: int) -> None:
    """Send what is written to a file descriptor to the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


@contextmanager
def _signals() -> Iterator[None]:
    """Raise KeyboardInterrupt for SIGINT and TerminatedError for SIGTERM, unless ignored.

    Only the main thread receives signals.
    """

    def terminate(number: int, frame: FrameType | None) -> None:
        raise TerminatedError

    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: terminate}
    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = {
        number: signal.signal(number, handler)
        for number, handler in handlers.items()
        if in_main_thread and signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


@contextmanager
def _notices() -> Iterator[None]:
    handler, logger = _Notices(), logging.getLogger("pkd")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
