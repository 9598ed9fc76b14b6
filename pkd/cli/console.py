"""TODO."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pkd.cli.parser import PLAIN
from pkd.runs.callbacks import Reporter
from pkd.training.config import Phase

console = Console(**PLAIN)


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
