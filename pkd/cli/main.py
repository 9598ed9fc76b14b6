"""Train, distil and use one-class novelty detectors."""

import torch

from pkd.cli.cost import cost_parser, run_cost
from pkd.cli.data import data_parser, run_data
from pkd.cli.evaluate import evaluate_parser, run_evaluate
from pkd.cli.export import export_parser, run_export
from pkd.cli.parser import Parser
from pkd.cli.process import guarded
from pkd.cli.report import report_parser, run_report
from pkd.cli.score import run_score, score_parser
from pkd.cli.sweep import run_sweep, sweep_parser
from pkd.cli.train import run_train, train_parser
from pkd.utils.errors import PkdError

COMMANDS = {
    "train": (train_parser, run_train),
    "sweep": (sweep_parser, run_sweep),
    "evaluate": (evaluate_parser, run_evaluate),
    "report": (report_parser, run_report),
    "export": (export_parser, run_export),
    "score": (score_parser, run_score),
    "cost": (cost_parser, run_cost),
    "data": (data_parser, run_data),
}


def main(argv: list[str] | None = None) -> int:
    """Run a command; return the exit code, see `pkd.cli.process`."""

    def command() -> int:
        args = build_parser().parse_args(argv)
        _, run = COMMANDS[args.command]
        try:
            return run(args[args.command])
        except torch.OutOfMemoryError as error:
            raise PkdError(
                f"{error}; free GPU memory, choose `device` cpu, or train with a smaller "
                "`batch_size` or `stack`"
            ) from error

    return guarded(command)


def build_parser() -> Parser:
    """Parser with a subcommand for each command."""
    parser = Parser(prog="pkd", description=__doc__)
    subcommands = parser.add_subcommands(dest="command", required=True)
    for name, (make_parser, _) in COMMANDS.items():
        subparser = make_parser()
        subcommands.add_subcommand(name, subparser, help=subparser.description)
    return parser
