"""`pkd train`: train teacher and student, then score the test split."""

from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from pkd.cli.console import (
    ProgressBar,
    console,
    print_auc,
    print_skipped_files,
    print_stopped,
)
from pkd.cli.parser import Parser
from pkd.cli.settings import ConfigFile, add_settings
from pkd.runs.pipeline import train
from pkd.runs.run import Run
from pkd.runs.stop_on_signal import StopOnSignal
from pkd.training.callbacks import Callback, CallbackList, TrainingInterrupted
from pkd.training.config import TrainConfig
from pkd.utils.errors import PkdError, resume_command


def train_parser() -> Parser:
    """Parser of the command."""
    parser = Parser(description="Train teacher and student, score the whole test split.")
    parser.add_argument(
        "--config", action=ConfigFile, help="YAML file with settings; later flags override it"
    )
    add_settings(parser)
    parser.add_argument("--out", type=Path | None, help="new folder for this run")
    parser.add_argument("--resume", type=Path | None, help="run folder to continue")
    parser.add_argument(
        "--tensorboard", action="store_true", help="write live curves to OUT/tensorboard"
    )
    return parser


def run_train(args: Namespace) -> int:
    """Train a new run, or continue one; return the exit code."""
    if args.tensorboard:  # an optional package: if missing, fail before a folder is made
        from pkd.runs.tensorboard import TensorBoard
    run, signals = _open_run(args), StopOnSignal()
    console.print(f"run folder: {run.folder.path}", soft_wrap=True)
    try:
        with ExitStack() as stack:
            callbacks: list[Callback] = [
                stack.enter_context(signals),
                stack.enter_context(ProgressBar()),
            ]
            if args.tensorboard:
                folder = run.folder.path / "tensorboard"
                callbacks.append(stack.enter_context(TensorBoard(folder)))
            print_skipped_files(run.dataset)
            results = train(run, CallbackList(callbacks))
    except TrainingInterrupted:
        return print_stopped(resume_command(run.folder.path), signals.number)
    finally:
        run.folder.release()
    print_auc({"evaluate_on": "test"} | results)  # files of earlier versions lack it
    console.print(f"run folder: {run.folder.path}", soft_wrap=True)
    return 0


def _open_run(args: Namespace) -> Run:
    """The run to continue, or a new one with the settings of the command line."""
    settings: dict[str, Any] = {field.name: args[field.name] for field in fields(TrainConfig)}
    settings["teacher"] = settings["teacher"] and tuple(settings["teacher"])  # parsed as a list
    if not args.resume:
        return Run.create(TrainConfig(**settings), args.out)
    if settings != vars(TrainConfig()) or args.out:
        raise PkdError(
            "`resume` takes every setting from the run folder's config.yaml: give no other flag"
        )
    return Run.resume(args.resume)
