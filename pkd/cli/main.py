"""The command line: `pkd train`, `evaluate`, `report`, `export`, `score`, `cost` and `data`."""

import shlex
from collections.abc import Callable
from pathlib import Path

import torch
from jsonargparse import ActionConfigFile, Namespace
from rich.table import Table

from pkd.cli.console import console, print_auc, print_table
from pkd.cli.export import export_parser, run_export
from pkd.cli.parser import Parser, guarded
from pkd.cli.score import run_score, score_parser
from pkd.cli.train import run_train, tell_left_out
from pkd.data import standard
from pkd.models.paper import table4
from pkd.report.page import write_report
from pkd.runs.folder import RunFolder
from pkd.runs.results import results_of
from pkd.runs.run import Run
from pkd.training.config import PublishedName
from pkd.training.settings import add_settings
from pkd.utils.errors import PkdError


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for a user's mistake, 130 after Ctrl-C."""

    def command() -> int:
        parser, commands = build_parser()
        args = parser.parse_args(argv)
        try:
            return commands[args.command](args[args.command])
        except torch.OutOfMemoryError as error:
            raise PkdError(f"{error}; choose a smaller --batch-size or --stack") from error

    return guarded(command)


def build_parser() -> tuple[Parser, dict[str, Callable[[Namespace], int]]]:
    """The parser, and the function of each command."""
    parser = Parser(prog="pkd", description=__doc__)
    subcommands = parser.add_subcommands(dest="command", required=True)

    train = Parser(description="Train teacher and student, score the whole test split.")
    train.add_argument(
        "--config", action=ActionConfigFile, help="YAML file with settings; later flags override it"
    )
    add_settings(train)
    train.add_argument("--out", type=Path | None, help="new folder for this run")
    train.add_argument("--resume", type=Path | None, help="run folder to continue")
    train.add_argument(
        "--tensorboard", action="store_true", help="write live curves to OUT/tensorboard"
    )

    evaluate_parser = Parser(description="Score the test split by the networks of a run.")
    evaluate_parser.add_argument("run", type=Path, help="run folder")
    evaluate_parser.add_argument("--data-dir", type=str | None, help="default: as the run had it")
    evaluate_parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")

    report_parser = Parser(description="Write what a finished run learned as one HTML file.")
    report_parser.add_argument("run", type=Path, help="run folder")
    report_parser.add_argument("--output", type=Path | None, help="default: RUN/report.html")
    report_parser.add_argument("--data-dir", type=str | None, help="default: as the run had it")
    report_parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")

    cost_parser = Parser(description="Parameters and FLOPs as in the paper's Table 4.")

    data_parser = Parser(description="Show, verify and download the files of a data set.")
    data_parser.add_argument("dataset", type=PublishedName)
    data_parser.add_argument("--data-dir", type=Path | None, help="folder of the files")
    data_parser.add_argument("--download", action="store_true", help="fetch missing files")

    table = {
        "train": (train, run_train),
        "evaluate": (evaluate_parser, run_evaluate),
        "report": (report_parser, run_report),
        "export": (export_parser(), run_export),
        "score": (score_parser(), run_score),
        "cost": (cost_parser, run_cost),
        "data": (data_parser, run_data),
    }
    for name, (subparser, _) in table.items():
        subcommands.add_subcommand(name, subparser, help=subparser.description)
    return parser, {name: run for name, (_, run) in table.items()}


def run_evaluate(args: Namespace) -> int:
    run = opened(args)
    folder = run.folder
    tell_left_out(run.dataset)
    if not folder.progress.phase:
        resume = f"pkd train --resume {shlex.quote(str(args.run))}"
        raise PkdError(f"{args.run} has no finished phase yet: continue it with {resume}")
    auc = {}
    for phase in run.phases[: folder.progress.phase]:
        run.load_phase(phase)
        auc[phase.name] = run.evaluate(phase.judged)
    print_auc(results_of(run, auc))
    return 0


def opened(args: Namespace) -> Run:
    """The run of a folder, with its images, on the device that was asked for."""
    moved = {"data_dir": args.data_dir} if args.data_dir else {}
    return Run(RunFolder.open(args.run), device=args.device, **moved)


def run_report(args: Namespace) -> int:
    output = args.output or args.run / "report.html"
    write_report(opened(args), output)
    console.print(f"report: {output}", soft_wrap=True)
    return 0


def run_cost(_: Namespace) -> int:
    rows = table4().values()
    table = Table("", *table4(), title="Generators and their compression (Table 4)")
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("student", *("-".join(map(str, row.widths)) for row in rows))
    table.add_row("student's parameters", *(f"{row.student.parameters:,}" for row in rows))
    table.add_row("student's FLOPs", *(f"{row.student.flops:,}" for row in rows))
    table.add_row("teacher's parameters", *(f"{row.teacher.parameters:,}" for row in rows))
    table.add_row("teacher's FLOPs", *(f"{row.teacher.flops:,}" for row in rows), end_section=True)
    ratios = {"as printed": "printed", "the paper's way": "paper_style"}
    for label, name in (ratios | {"honest": "exact"}).items():
        for k, what in enumerate(("parameters", "FLOPs")):
            figures = (f"{getattr(row, name)[k]:.2f}" for row in rows)
            table.add_row(f"{what} ratio, {label}", *figures, end_section=bool(k))
    print_table(table)
    console.print(
        "FLOPs: multiply-adds of the convolutions plus 2 per normalised element. The paper's way: "
        "counted here, with the three-channel teacher rounded to 5.12M and 56M for every data set, "
        "the student's parameters in units of 1024 and its FLOPs rounded to 0.01M. Honest: teacher "
        "64-128-256 over student, both for the data set's own channels."
    )
    return 0


def run_data(args: Namespace) -> int:
    if args.download:
        standard.download(args.dataset, args.data_dir)
    rows = standard.inspect(args.dataset, args.data_dir)
    if not rows:
        console.print(f"{args.dataset} comes with scikit-learn: nothing to download")
        return 0
    table = Table("file", "state", title=f"{args.dataset} in {standard.data_folder(args.data_dir)}")
    for row in rows:
        table.add_row(row.file, row.state)
    print_table(table)
    broken = [str(row.path) for row in rows if row.state not in ("ok", "missing")]
    command = standard.download_command(args.dataset, standard.data_folder(args.data_dir))
    if broken:
        raise PkdError(f"not the official files: {', '.join(broken)}; delete them, then {command}")
    if any(row.state == "missing" for row in rows):
        raise PkdError(f"files are missing, fetch them with: {command}")
    return 0
