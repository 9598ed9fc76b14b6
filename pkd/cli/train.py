"""TODO."""

import shlex
from contextlib import ExitStack
from dataclasses import fields

from jsonargparse import Namespace

from pkd.cli.console import ProgressBar, console, print_auc
from pkd.data.dataset import Dataset
from pkd.runs.callbacks import Interrupted, Several, StopRequest
from pkd.runs.create import start
from pkd.runs.folder import RunFolder
from pkd.runs.pipeline import Schedule
from pkd.runs.run import Run
from pkd.training.config import TrainConfig
from pkd.utils.errors import PkdError


def run_train(args: Namespace) -> int:
    if args.tensorboard:  # an optional package: missed before a folder is begun
        from pkd.runs.tensorboard import TensorBoard
    settings = {field.name: args[field.name] for field in fields(TrainConfig)}
    if args.resume:
        if settings != vars(TrainConfig()) or args.out:
            raise PkdError(
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


def tell_left_out(dataset: Dataset) -> None:
    """Count and name the files that --skip-bad left out."""
    if dataset.skipped_files:
        console.print(f"unreadable files left out: {len(dataset.skipped_files)}")
        for path in dataset.skipped_files:
            console.print(f"  {path}", soft_wrap=True)
