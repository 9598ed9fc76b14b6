"""`pkd evaluate`: score the test split with the networks of a run."""

from pathlib import Path

from jsonargparse import Namespace

from pkd.cli.console import print_auc, print_skipped_files
from pkd.cli.parser import Parser
from pkd.runs.results import auc_summary
from pkd.runs.run import Run
from pkd.runs.run_parts import evaluate
from pkd.utils.errors import CheckpointError, resume_command


def evaluate_parser() -> Parser:
    """Parser of the command."""
    parser = Parser(description="Score the test split by the networks of a run.")
    parser.add_argument("run", type=Path, help="run folder")
    add_run_options(parser)
    return parser


def add_run_options(parser: Parser) -> None:
    """Add the flags that open a run for scoring."""
    parser.add_argument("--data-dir", type=str | None, help="default: the run's")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def run_evaluate(args: Namespace) -> int:
    """Print the AUC of every finished phase; return the exit code."""
    run = Run.open(args.run, args.device, args.data_dir)
    print_skipped_files(run.dataset)
    finished = run.phases[: run.folder.progress.phase]
    if not finished:
        raise CheckpointError(
            f"{args.run} has no finished phase yet: continue it with {resume_command(args.run)}"
        )
    auc = {}
    for phase in finished:
        run.load_phase(phase)
        auc[phase.name] = evaluate(run, phase.network)
    print_auc(auc_summary(run, auc))
    return 0
