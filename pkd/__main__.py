"""Entry point of `pkd` and `python -m pkd`. Scoring with an ONNX file does not import torch."""

import sys

from pkd.cli.parser import guarded


def main() -> int:
    """Run the command of sys.argv; return the exit code."""
    if sys.argv[1:2] == ["score"]:
        from pkd.cli.score import run_score, score_parser

        parser = score_parser(prog="pkd score")
        return guarded(lambda: run_score(parser.parse_args(sys.argv[2:])))
    from pkd.cli import main as cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
