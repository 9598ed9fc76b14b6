"""Entry point of `pkd` and `python -m pkd`. Scoring with an ONNX file does not import torch."""

import os
import signal
import sys
from types import FrameType


def main() -> int:
    """Run the command of sys.argv; return the exit code."""
    _open_missing_descriptors()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as for a command in the background
            signal.signal(number, _end)
    if sys.argv[1:2] == ["score"]:
        from pkd.cli.process import guarded
        from pkd.cli.score import run_score, score_parser

        return guarded(lambda: run_score(score_parser(prog="pkd score").parse_args(sys.argv[2:])))
    from pkd.cli import main as cli

    return cli.main()


def _end(number: int, frame: FrameType | None) -> None:
    """End at once, while modules are imported: there is nothing to clean up yet.

    An exception would end in a traceback, or be lost in the import of a library.
    """
    os.write(2, b"pkd: interrupted\n")
    os._exit(128 + number)


def _open_missing_descriptors() -> None:
    """Open those of standard input, output and error that are closed as the null device.

    The next file would get their number otherwise, and the messages of libraries as content.
    """
    descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest free number
    while descriptor <= 2:
        descriptor = os.dup(descriptor)
    os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
