"""The command line: `pkd train`, `evaluate`, `report`, `export`, `score`, `cost` and `data`."""

import shlex
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ActionConfigFile, Namespace
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pkd import datasets
from pkd.command import PLAIN, Parser, guarded
from pkd.config import Phase, PublishedName, TrainConfig
from pkd.cost import table4
from pkd.errors import UserError
from pkd.export import export_parser, run_export
from pkd.parsing import add_settings
from pkd.report import write_report
from pkd.reporter import Interrupted, Reporter, Several, StopRequest
from pkd.results import results_of
from pkd.run import Run
from pkd.run_folder import RunFolder
from pkd.schedule import Schedule, start
from pkd.score import run_score, score_parser

console = Console(**PLAIN)


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for a user's mistake, 130 after Ctrl-C."""

    def command() -> int:
        parser, commands = build_parser()
        args = parser.parse_args(argv)
        try:
            return commands[args.command](args[args.command])
        except torch.OutOfMemoryError as error:
            raise UserError(f"{error}; choose a smaller --batch-size or --stack") from error

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


def run_train(args: Namespace) -> int:
    if args.tensorboard:  # an optional package: missed before a folder is begun
        from pkd.tensorboard import TensorBoard
    settings = {field.name: args[field.name] for field in fields(TrainConfig)}
    if args.resume:
        if settings != vars(TrainConfig()) or args.out:
            raise UserError(
                "--resume takes every setting from the run folder's config.yaml: give no other flag"
            )
        folder, dataset = RunFolder.resume(args.resume), None
    else:
        folder, dataset = start(TrainConfig(**settings), args.out)
    console.print(f"run folder: {folder.path}", soft_wrap=True)
    try:
        with StopRequest() as stop, ExitStack() as told:
            reporters = [told.enter_context(ProgressBar())]
            if args.tensorboard:
                reporters.append(told.enter_context(TensorBoard(folder.path / "tensorboard")))
            run = Run(folder, dataset)
            tell_left_out(run.dataset)
            results = Schedule(run, Several(*reporters), stop.check).train()
    except Interrupted:
        command = f"pkd train --resume {shlex.quote(str(folder.path))}"
        console.print(f"stopped; continue with: {command}", soft_wrap=True)
        return 130
    finally:
        folder.release()
    print_auc(results)
    console.print(f"run folder: {folder.path}", soft_wrap=True)
    return 0


def tell_left_out(dataset: datasets.Dataset) -> None:
    """Count and name the files that --skip-bad left out."""
    if dataset.left_out:
        console.print(f"unreadable files left out: {len(dataset.left_out)}")
        for path in dataset.left_out:
            console.print(f"  {path}", soft_wrap=True)


class ProgressBar(Reporter):
    """A bar with ETA for each phase, live losses below, and a line for each epoch above."""

    def __enter__(self) -> "ProgressBar":
        self.bar = LossProgress(
            TextColumn("{task.description:7}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("steps, ETA"),
            TimeRemainingColumn(compact=True),
            console=console,
        ).__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self.bar.__exit__(*details)

    def begin(self, phase: Phase, steps: int, done: int) -> None:
        self.task = self.bar.add_task(phase.name, total=steps, completed=done)

    def advance(self, steps: int, losses: dict[str, float]) -> None:
        self.bar.losses = "  ".join(f"{name} {value:.3g}" for name, value in losses.items())
        self.bar.update(self.task, completed=steps)

    def epoch(self, record: dict[str, Any], epochs: int) -> None:
        auc = sum(record["auc"]) / len(record["auc"])
        console.print(
            f"{record['phase']} epoch {record['epoch']}/{epochs}: mean AUC of the "
            f"{record['network']} {auc:.4f} on {record['test_images']} test images",
            soft_wrap=True,
        )

    def note(self, message: str) -> None:
        console.print(message, soft_wrap=True)


class LossProgress(Progress):
    """Progress bars with a line of losses below, where 80 columns have room for all of them."""

    losses = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.losses:
            yield Text(f"losses: {self.losses}")


def print_table(table: Table) -> None:
    """Print in full width: a narrower terminal wraps lines, but no figure is cut."""
    Console(width=max(console.width, 80), file=console.file, **PLAIN).print(table)


def print_auc(results: dict[str, Any]) -> None:
    """Table of AUC by member, phase after phase, with the mean."""
    phases = list(results["mean_auc"])
    table = Table("normal class", "seed", *phases, title=f"AUC, {results['dataset']}, last epoch")
    for member in results["members"]:
        auc = (f"{member['auc'][phase]:.4f}" for phase in phases)
        name = f"{member['normal_class']} {member['class_name']}"
        table.add_row(name, str(member["seed"]), *auc)
    table.add_section()
    for label, key in (("mean", "mean_auc"), ("std over seeds", "std_auc")):
        if key in results:
            table.add_row(label, "", *(f"{results[key][phase]:.4f}" for phase in phases))
    print_table(table)


def run_evaluate(args: Namespace) -> int:
    run = opened(args)
    folder = run.folder
    tell_left_out(run.dataset)
    if not folder.progress.phase:
        resume = f"pkd train --resume {shlex.quote(str(args.run))}"
        raise UserError(f"{args.run} has no finished phase yet: continue it with {resume}")
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
    for label, name in (ratios | {"honest": "honest"}).items():
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
        datasets.download(args.dataset, args.data_dir)
    rows = datasets.inspect(args.dataset, args.data_dir)
    if not rows:
        console.print(f"{args.dataset} comes with scikit-learn: nothing to download")
        return 0
    table = Table("file", "state", title=f"{args.dataset} in {datasets.data_folder(args.data_dir)}")
    for row in rows:
        table.add_row(row.file, row.state)
    print_table(table)
    broken = [str(row.path) for row in rows if row.state not in (datasets.OK, datasets.MISSING)]
    command = datasets.fetching(args.dataset, datasets.data_folder(args.data_dir))
    if broken:
        raise UserError(f"not the official files: {', '.join(broken)}; delete them, then {command}")
    if any(row.state == datasets.MISSING for row in rows):
        raise UserError(f"files are missing, fetch them with: {command}")
    return 0
