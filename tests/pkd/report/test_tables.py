"""Tables and numbers of a report as text."""

import pytest

from pkd.models.architecture import Architecture
from pkd.models.cost import cost
from pkd.report.formats import format_count, format_ratio
from pkd.report.tables import size_table
from pkd.utils.duration import format_duration


@pytest.mark.parametrize(
    ("dataset", "widths", "paper"),
    [
        ("fashion_mnist", (1, 2, 4), [["105.44×", "700.00×"], ["105.45×", "700.00×"]]),
        ("fashion_mnist", (2, 4, 8), []),
        ("digits", (1, 2, 4), []),
    ],
)
def test_compression_with_the_ratios_of_the_paper(dataset, widths, paper):
    widths = {"teacher": (64, 128, 256), "student": widths}
    costs = {name: vars(cost(Architecture(1, of))) for name, of in widths.items()}
    config = {f"{name}_widths": "-".join(map(str, of)) for name, of in widths.items()}
    table = size_table({"dataset": dataset, "config": config, "cost": costs})
    assert [name for name, _ in table.rows] == [
        f"{name} {config[f'{name}_widths']}" for name in costs
    ]
    large, small = (cells[0].value for _, cells in table.rows)
    assert large == f"{costs['teacher']['parameters']:,}"
    ratio = costs["teacher"]["parameters"] / costs["student"]["parameters"]
    (_, exact), *printed = table.footer
    assert exact[0].value == f"{ratio:.2f}×"
    assert small == f"{round(costs['teacher']['parameters'] / ratio):,}"
    assert [[cell.value for cell in cells] for _, cells in printed] == paper


def test_formats_of_numbers():
    assert [format_ratio(r) for r in (0.031, 24.4519, 711.6)] == ["0.03×", "24.45×", "712×"]
    assert [format_count(n) for n in (850, 78_600, 5_121_234, 2e9)] == [
        "850",
        "78.6k",
        "5.12M",
        "2G",
    ]
    assert [format_duration(s) for s in (42.4, 60, 790, 3599, 7500)] == [
        *("42 s", "1 min", "13 min", "1 h 0 min", "2 h 5 min"),
    ]
