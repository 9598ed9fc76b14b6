"""`pkd cost`: parameters and FLOPs of the paper's Table 4."""

from jsonargparse import Namespace
from rich.table import Table

from pkd.cli.console import console, print_table
from pkd.cli.parser import Parser
from pkd.models.paper import table4


def cost_parser() -> Parser:
    """Parser of the command."""
    return Parser(description="Parameters and FLOPs as in the paper's Table 4.")


def run_cost(_: Namespace) -> int:
    """Print the table; return the exit code."""
    rows = table4().values()
    table = Table("", *table4(), title="Generators and their compression (Table 4)")
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("student", *("-".join(map(str, row.widths)) for row in rows))
    table.add_row("student's parameters", *(f"{row.student.parameters:,}" for row in rows))
    table.add_row("student's FLOPs", *(f"{row.student.flops:,}" for row in rows))
    table.add_row("teacher's parameters", *(f"{row.teacher.parameters:,}" for row in rows))
    table.add_row("teacher's FLOPs", *(f"{row.teacher.flops:,}" for row in rows), end_section=True)
    ratios = {"as printed": "printed", "paper's counting": "paper_style", "exact": "exact"}
    for label, name in ratios.items():
        for k, quantity in enumerate(("parameters", "FLOPs")):
            figures = (f"{getattr(row, name)[k]:.2f}" for row in rows)
            table.add_row(f"{quantity} ratio, {label}", *figures, end_section=bool(k))
    print_table(table)
    console.print(
        "FLOPs: multiply-adds of the convolutions plus 2 per normalised element. Paper's "
        "counting: the three-channel teacher rounded to 5.12M and 56M for every data set, the "
        "student's parameters in units of 1024 and its FLOPs rounded to 0.01M. Exact: teacher "
        "64-128-256 over student, both with the channels of the data set."
    )
    return 0
