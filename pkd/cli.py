"""The command line: `pkd train`, `pkd evaluate`, `pkd cost`, `pkd data`."""

from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import docstring_parser
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pkd import datasets
from pkd.config import DatasetName, Phase, TrainConfig
from pkd.cost import table4
from pkd.errors import UserError
from pkd.runs import RunFolder
from pkd.schedule import Interrupted, Reporter, Run, StopRequest, start

console = Console(highlight=False)


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for a user's mistake, 130 after Ctrl-C."""
    parser, commands = build_parser()
    args = parser.parse_args(argv)
    try:
        return commands[args.command](args[args.command])
    except UserError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"pkd: {error}", markup=False)
        return 2


def build_parser() -> tuple[ArgumentParser, dict[str, Any]]:
    """The parser, and the function of each command."""
    parser = ArgumentParser(prog="pkd", description=__doc__)
    subcommands = parser.add_subcommands(dest="command", required=True)

    train = ArgumentParser(description="Train teacher and student, score the whole test split.")
    train.add_argument("--config", action=ActionConfigFile, help="YAML file with settings")
    hints = get_type_hints(TrainConfig)
    texts = {p.arg_name: p.description for p in docstring_parser.parse(TrainConfig.__doc__).params}
    for field in fields(TrainConfig):
        flag = "--" + field.name.replace("_", "-")
        train.add_argument(
            flag, type=hints[field.name], default=field.default, help=texts[field.name]
        )
    train.add_argument("--out", type=Path | None, help="new folder for this run")
    train.add_argument("--resume", type=Path | None, help="run folder to continue")

    evaluate_parser = ArgumentParser(description="Score the test split by the networks of a run.")
    evaluate_parser.add_argument("run", type=Path, help="run folder")

    cost_parser = ArgumentParser(description="Parameters and FLOPs as in the paper's Table 4.")

    data_parser = ArgumentParser(description="Show, verify and download the files of a data set.")
    data_parser.add_argument("dataset", type=DatasetName)
    data_parser.add_argument("--data-dir", type=Path | None)
    data_parser.add_argument("--download", action="store_true", help="fetch missing files")

    commands = {"train": run_train, "evaluate": run_evaluate, "cost": run_cost, "data": run_data}
    parsers = (train, evaluate_parser, cost_parser, data_parser)
    for name, subparser in zip(commands, parsers, strict=True):
        subcommands.add_subcommand(name, subparser)
    return parser, commands


def run_train(args: Namespace) -> int:
    settings = {field.name: args[field.name] for field in fields(TrainConfig)}
    if args.resume:
        if settings != vars(TrainConfig()) or args.out:
            raise UserError(
                "--resume takes every setting from the run folder's config.yaml: give no other flag"
            )
        folder = RunFolder.open(args.resume)
        folder.lock()
    else:
        folder = start(TrainConfig(**settings), args.out)
    console.print(f"run folder: {folder.path}", soft_wrap=True)
    try:
        with StopRequest() as stop, ProgressBar() as bar:
            run = Run(folder, bar, stop.check)
            results = run.train()
    except Interrupted:
        console.print(f"stopped; continue with: pkd train --resume {folder.path}", soft_wrap=True)
        return 130
    finally:
        folder.release()
    print_auc(results)
    console.print(f"run folder: {folder.path}", soft_wrap=True)
    return 0


class ProgressBar(Reporter):
    """Progress bar with ETA and live losses; an epoch a line where nobody watches a terminal."""

    def __enter__(self) -> "ProgressBar":
        columns = (
            TextColumn("{task.description:8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps, ETA"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[losses]}"),
        )
        self.bar = Progress(*columns, console=console).__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self.bar.__exit__(*details)

    def begin(self, phase: Phase, steps: int, done: int) -> None:
        self.task = self.bar.add_task(phase.name, total=steps, completed=done, losses="")

    def advance(self, steps: int, losses: dict[str, float]) -> None:
        shown = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
        self.bar.update(self.task, completed=steps, losses=shown)

    def epoch(self, record: dict[str, Any], epochs: int) -> None:
        auc = sum(record["auc"]) / len(record["auc"])
        console.print(
            f"{record['phase']} epoch {record['epoch']}/{epochs}: mean AUC of the "
            f"{record['network']} {auc:.4f} on {record['test_images']} test images",
            soft_wrap=True,
        )


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
    console.print(table)


def run_evaluate(args: Namespace) -> int:
    folder = RunFolder.open(args.run)
    run = Run(folder)
    if not folder.progress.phase:
        raise UserError(
            f"{args.run} has no finished phase yet: continue it with pkd train --resume {args.run}"
        )
    auc = {}
    for phase in run.phases[: folder.progress.phase]:
        run.load_phase(phase)
        auc[phase.name] = run.evaluate(phase.judged)
    print_auc(run.results(auc))
    return 0


def run_cost(_: Namespace) -> int:
    rows = table4()
    teacher = rows["cifar10"].teacher
    console.print(
        f"teacher 64-128-256, 3 channels: {teacher.parameters / 1e6:.2f}M parameters, "
        f"{teacher.flops / 1e6:.1f}M FLOPs"
    )
    table = Table(
        "student",
        "params",
        "FLOPs",
        *(f"{count} ratio:\n{what}" for count in ("paper's", "our", "honest") for what in "PF"),
        title="Compression of the generators (Table 4): P parameters, F FLOPs",
    )
    for name, row in rows.items():
        table.add_row(
            f"{name} {'-'.join(map(str, row.widths))}",
            f"{row.student.parameters:,}",
            f"{row.student.flops:,}",
            *(f"{ratio:.2f}" for pair in (row.printed, row.paper_style) for ratio in pair),
            f"{row.honest[0]:.2f}",
            f"{row.honest[1]:.1f}",
        )
    console.print(table)
    console.print(
        "paper's: as printed; our: counted here the paper's way (3-channel teacher "
        "rounded to\n5.12M and 56M, student's parameters in units of 1024, FLOPs rounded to 0.01M); "
        "honest: teacher over\nstudent, both for the data set's own channels."
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
    console.print(table)
    if any(row.state == datasets.MISSING for row in rows):
        console.print(f"fetch what is missing with: pkd data {args.dataset} --download")
    return 0 if all(row.state == datasets.OK for row in rows) else 1
