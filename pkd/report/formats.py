"""Titles, tables and formats of numbers that the reports of runs and sweeps share."""

from dataclasses import dataclass, field
from typing import NamedTuple

DATASET_TITLES = {
    "digits": "Digits",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
}

# Title of each value of the setting `structure`.
METHOD_TITLES = {
    "teacher-only": "teacher alone",
    "student-only": "student alone",
    **{number: f"KDGAN-{number}" for number in "1234"},
    "progressive-23": "P-KDGAN-II-(2)(3)",
    "progressive-24": "P-KDGAN-II-(2)(4)",
}


class Cell(NamedTuple):
    """A number, its standard deviation over seeds, and the number that the paper reports."""

    value: str
    spread: str = ""
    paper: str = ""


@dataclass(frozen=True)
class Table:
    """A table with named rows.

    Attributes:
        groups: headings above the columns: (title, number of columns).
        columns: titles of the columns.
        rows: (name, cells).
        footer: (name, cells) of the rows below, e.g. of means.
    """

    groups: list[tuple[str, int]]
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    footer: list[tuple[str, list[Cell]]] = field(default_factory=list)


def format_ratio(ratio: float) -> str:
    """Format a ratio, e.g. 0.03×, 24.45×, 712×."""
    return f"{ratio:.0f}×" if ratio >= 100 else f"{ratio:.2f}×"


def format_count(count: float) -> str:
    """Format a count with three digits, e.g. 78.6k, 5.12M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)
