"""`pkd report`: write the HTML report of a run."""

from pathlib import Path

from jsonargparse import Namespace

from pkd.cli.console import console
from pkd.cli.evaluate import add_run_options
from pkd.cli.parser import Parser
from pkd.report.page import write_report
from pkd.runs.run import Run


def report_parser() -> Parser:
    """Parser of the command."""
    parser = Parser(description="Write the results of a finished run as one HTML file.")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--output", type=Path | None, help="default: RUN/report.html")
    add_run_options(parser)
    return parser


def run_report(args: Namespace) -> int:
    """Write the report; return the exit code."""
    output = args.output or args.run / "report.html"
    write_report(Run.open(args.run, args.device, args.data_dir), output)
    console.print(f"report: {output}", soft_wrap=True)
    return 0
