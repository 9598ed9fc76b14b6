"""Cells of the ladder: one structure, one student and one stack size each, and their order."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import torch

from bench.ladder.contenders import BASE, COMPILE, CONTENDERS
from bench.ladder.training_setup import TrainingSetup
from pkd.models.paper import PAPER_STUDENTS, TEACHER_WIDTHS
from pkd.training.structures import KDGAN, STUDENT, TEACHER

STRUCTURES = {
    "student alone": STUDENT,
    "KDGAN-2": KDGAN[2],
    "KDGAN-3": KDGAN[3],
    "teacher": TEACHER,
}

STUDENTS = {
    "-".join(map(str, widths)): (channels, widths)
    for channels, widths, *_ in PAPER_STUDENTS.values()
}

LARGE, SMALL = "8-16-64", "1-2-4"

STACKS = (1, 10, 30, 128)

CPU_STACKS = (1, 10, 30)


@dataclass(frozen=True)
class Settings:
    """Settings that all cells share.

    Attributes:
        device: device of all contenders.
        teacher_widths: channels of the teacher's layers.
        images: images of each class; the steps repeat them.
        repeats: timings of each contender in a cell.
        seconds: duration of one timing.
        threads: CPU threads of torch.
    """

    device: torch.device
    teacher_widths: tuple[int, int, int] = TEACHER_WIDTHS
    images: int = 50
    repeats: int = 5
    seconds: float = 0.25
    threads: int = 1


@dataclass(frozen=True)
class Cell:
    """A training whose contenders are compared.

    Attributes:
        structure: key of `STRUCTURES`.
        student: key of `STUDENTS`.
        stack: number of models.
        contenders: keys of `CONTENDERS`; if empty, all that apply except torch.compile, which takes
            long.
    """

    structure: str
    student: str
    stack: int
    contenders: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """A text that identifies the cell."""
        compiled = [name for name in self.contenders if name in COMPILE]
        network = "teacher" if self.structure == "teacher" else f"{self.structure}, {self.student}"
        return ", ".join([network, f"M = {self.stack}", *compiled])

    def names(self, device: torch.device) -> list[str]:
        """Return the contenders that take part on this device, the plain loop first."""
        return [
            name
            for name, entry in CONTENDERS.items()
            if entry.applies(STRUCTURES[self.structure], self.stack, device)
            and (name in self.contenders if self.contenders else name not in COMPILE)
        ]

    def training_setup(self, settings: Settings) -> TrainingSetup:
        """Return networks and images of the cell."""
        channels, widths = STUDENTS[self.student]
        structure = STRUCTURES[self.structure]
        return TrainingSetup(
            settings.teacher_widths, widths, settings.images, settings.device, channels, structure
        )


def plan(device: torch.device) -> list[Cell]:
    """Return all cells for a device; those with targets come first."""
    with_targets = [
        *(Cell("KDGAN-2", LARGE, stack) for stack in (1, 30)),
        *(Cell("KDGAN-2", SMALL, stack) for stack in (128, 1)),
        Cell("teacher", LARGE, 1),
        *_compile_cells(),
    ]
    others = [
        Cell("student alone", student, stack) for student in (LARGE, SMALL) for stack in (1, 30)
    ]
    others += [
        Cell(structure, student, stack)
        for structure, student in product(("KDGAN-2", "KDGAN-3"), (LARGE, SMALL, "2-4-8"))
        for stack in STACKS
    ]
    others += [Cell("teacher", LARGE, stack) for stack in STACKS]
    return [cell for cell in dict.fromkeys(with_targets + others) if _fits(cell, device)]


def _compile_cells() -> Iterable[Cell]:
    """One cell for each mode of torch.compile, so that slow compilation delays no other cell."""
    for structure, mode in product(("KDGAN-2", "teacher"), COMPILE):
        yield Cell(structure, LARGE, 1, (BASE, "pkd, eager", "pkd, one graph", mode))


def _fits(cell: Cell, device: torch.device) -> bool:
    """Whether the device can train the cell in reasonable time; a CPU trains no teacher stacks."""
    if device.type == "cuda":
        return True
    trains_teachers = STRUCTURES[cell.structure].teacher and cell.stack > 1
    modes = {name for name in cell.contenders if name in COMPILE}
    return cell.stack in CPU_STACKS and not trains_teachers and modes <= {*cell.names(device)}
