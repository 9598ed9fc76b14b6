"""`pkd report`: write the HTML report of a run or of a sweep."""

from pathlib import Path

from jsonargparse import Namespace

from pkd.cli.console import console
from pkd.cli.evaluate import add_run_options
from pkd.cli.parser import Parser
from pkd.report.page import write_report
from pkd.report.sweep_page import write_sweep_report
from pkd.runs.run import Run
from pkd.sweep.read import is_sweep


def report_parser() -> Parser:
    """Parser of the command."""
    parser = Parser(description="Write the report of a finished run or sweep as one HTML file.")
    parser.add_argument("run", type=Path, help="folder of a run or of a sweep")
    parser.add_argument("--output", type=Path | None, help="default: report.html in the folder")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    add_run_options(parser)
    return parser


def run_report(args: Namespace) -> int:
    """Write the report; return the exit code."""
    if is_sweep(args.run):
        output = write_sweep_report(args.run, args.output, args.overwrite)
    else:
        run = Run.open(args.run, args.device, args.data_dir)
        output = write_report(run, args.output, args.overwrite)
    console.print(f"report: {output}", soft_wrap=True)
    return 0
