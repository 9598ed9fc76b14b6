"""Output on the terminal: tables, and the progress of a training run."""

import signal
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from pkd.cli.process import PlainConsole
from pkd.data.dataset import Dataset
from pkd.training.callbacks import Callback
from pkd.training.structures import Phase

console = PlainConsole()


class ProgressBar(Callback):
    """Show a progress bar for each phase, losses below it, and a line for each epoch above it."""

    def __init__(self) -> None:
        self.bar = LossProgress(
            TextColumn("{task.description:7}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("steps, ETA"),
            TimeRemainingColumn(compact=True),
            console=console,
        )

    def __enter__(self) -> "ProgressBar":
        self.bar.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bar.__exit__(kind, error, traceback)

    @override
    def on_phase_start(self, phase: Phase, steps: int, steps_done: int) -> None:
        self.task = self.bar.add_task(phase.name, total=steps, completed=steps_done)

    @override
    def on_train_steps_end(self, steps_done: int, losses: dict[str, float]) -> None:
        self.bar.losses = "  ".join(f"{name} {value:.3g}" for name, value in losses.items())
        self.bar.update(self.task, completed=steps_done)

    @override
    def on_epoch_end(self, record: dict[str, Any], epochs: int) -> None:
        auc = sum(record["auc"]) / len(record["auc"])
        self.on_message(
            f"{record['phase']} epoch {record['epoch']}/{epochs}: mean AUC of the "
            f"{record['network']} {auc:.4f} on {record['test_images']} test images"
        )

    @override
    def on_message(self, message: str) -> None:
        console.print(message, soft_wrap=True)


class LossProgress(Progress):
    """Progress bars with a line of losses below, where they fit into 80 columns."""

    losses = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Bars, then the losses."""
        yield self.make_tasks_table(self.tasks)
        if self.losses:
            yield Text(f"losses: {self.losses}")


def print_table(table: Table) -> None:
    """Print in full width: a narrower terminal wraps lines, but no number is cut."""
    PlainConsole(width=max(console.width, 80), file=console.file).print(table)


def print_auc(results: dict[str, Any]) -> None:
    """Print the AUC of each member after each phase, and the mean."""
    phases = list(results["mean_auc"])
    images = "development images, " if results["evaluate_on"] == "development" else ""
    title = f"AUC, {results['dataset']}, {images}last epoch"
    table = Table("normal class", "seed", *phases, title=title, min_width=len(title))
    for member in results["members"]:
        auc = (f"{member['auc'][phase]:.4f}" for phase in phases)
        name = f"{member['normal_class']} {member['class_name']}"
        table.add_row(name, str(member["seed"]), *auc)
    table.add_section()
    for label, key in (("mean", "mean_auc"), ("std over seeds", "std_auc")):
        if key in results:
            table.add_row(label, "", *(f"{results[key][phase]:.4f}" for phase in phases))
    for score, auc in results.get("mean_auc_by_score", {}).items():
        if auc:
            cells = (f"{auc[phase]:.4f}" if phase in auc else "" for phase in phases)
            table.add_row(f"mean, {score}", "", *cells)
    print_table(table)


def print_skipped_files(dataset: Dataset) -> None:
    """Print the number and the names of the files that --skip-bad left out."""
    if dataset.skipped_files:
        console.print(f"unreadable files left out: {len(dataset.skipped_files)}")
        for path in dataset.skipped_files:
            console.print(f"  {path}", soft_wrap=True)


def print_stopped(command: str, signal_number: int | None) -> int:
    """Print the command that continues after a signal, and return the exit code."""
    nobody_reads = signal_number == signal.SIGPIPE
    output = PlainConsole(stderr=True) if nobody_reads else console
    output.print(f"stopped; continue with: {command}", soft_wrap=True)
    return 128 + (signal_number or signal.SIGINT)
