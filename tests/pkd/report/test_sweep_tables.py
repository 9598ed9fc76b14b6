"""Tables of sweeps as text: digits, the student alone in every table, settings of methods."""

import pytest
from sweep_file_helpers import cell_rows, write_sweep

from pkd.report.formats import Cell
from pkd.report.sweep_tables import (
    NOT_RUN,
    auc_cell,
    class_table,
    compression_table,
    decimals,
    difference_cell,
    method_table,
    score_table,
)
from pkd.scoring.metrics import Average
from pkd.sweep.read import read_sweeps
from pkd.sweep.summary import Difference, summarize


@pytest.fixture
def comparisons_of(tmp_path):
    """Function that summarizes cells."""
    return lambda *cells: summarize(read_sweeps([write_sweep(tmp_path, *cells)]))


def test_as_many_decimals_as_the_interval_supports():
    assert [decimals(half_width) for half_width in (None, 0.0, 0.005, 0.0051)] == [4, 4, 4, 3]
    assert auc_cell(Average(0.91234, None)) == Cell("0.9123")
    assert auc_cell(Average(0.91234, 0.0012), 0.02, 0.92) == Cell(
        "0.912", "± 0.001", "paper 0.9200"
    )
    assert auc_cell(Average(0.91234, 0.012)) == Cell("0.912", "± 0.012")


def test_differences_have_a_sign_and_their_interval():
    narrow = Difference(-0.00126, -0.0031, 0.0005, 30)
    assert difference_cell(narrow) == Cell("−0.0013", "[−0.0031, +0.0005]")
    wide = Difference(0.0126, -0.0031, 0.0205, 30)
    assert difference_cell(wide, 0.0173) == Cell("+0.013", "[−0.003, +0.021]", "paper +0.0173")
    assert difference_cell(Difference(0.25, None, None, 1)) == Cell("+0.2500")


def test_method_table_has_methods_by_data_sets(comparisons_of):
    cells = [cell_rows(s) for s in ("student-only", "2")] + [
        cell_rows("student-only", widths="2-4-8")
    ]
    comparisons = comparisons_of(*cells)
    table = method_table(comparisons)
    assert table.groups == [("Fashion-MNIST, 1-2-4", 4), ("Fashion-MNIST, 2-4-8", 4)]
    assert table.columns == ["AUC", "to student alone", "time per model", "members"] * 2
    (alone, alone_cells), (distilled, distilled_cells) = table.rows
    assert (alone, distilled) == ("student alone", "KDGAN-2")
    assert alone_cells[0].value == f"{comparisons[0].student_only.auc.mean:.4f}"
    assert alone_cells[0].paper == "paper 0.9120"
    assert alone_cells[1] == Cell("")
    assert alone_cells[3] == Cell("30")
    assert distilled_cells[1].paper == "paper +0.0121"
    assert [cell.value for cell in distilled_cells[4:]] == ["–"] * 4


def test_number_of_pairs_where_members_have_no_partner(comparisons_of):
    comparisons = comparisons_of(cell_rows("student-only", seeds=[0]), cell_rows("2"))
    assert method_table(comparisons).rows[1][1][3] == Cell("30", "10 paired")


def test_no_table_without_the_student_alone(comparisons_of):
    comparisons = comparisons_of(cell_rows("2", dataset="mnist", widths="2-4-8"))
    table = method_table(comparisons)
    assert table.rows[0][0] == "student alone"
    assert table.rows[0][1][0] == NOT_RUN
    assert table.rows[1][1][1] == NOT_RUN
    table = class_table(comparisons[0])
    assert table.columns == ["teacher", "student alone", "KDGAN-2"]
    assert table.footer[0][1][1] == NOT_RUN
    assert table.rows[3][1][1] == Cell("–")
    assert NOT_RUN in compression_table(comparisons).rows[0][1]


def test_no_difference_where_the_reference_is_unclear(comparisons_of):
    cells = [cell_rows("student-only", lr=lr) for lr in (1, 2)] + [cell_rows("2", lr=3)]
    name, row = method_table(comparisons_of(*cells)).rows[2]
    assert name == "KDGAN-2, lr 3"
    assert row[1] == Cell("–")


def test_class_table(comparisons_of):
    rows = [cell_rows(s, dataset="mnist", widths="2-4-8", seeds=[0]) for s in ("student-only", "2")]
    (comparison,) = comparisons_of(*rows)
    table = class_table(comparison)
    assert table.columns == ["teacher", "student alone", "KDGAN-2"]
    assert [name for name, _ in table.rows] == [str(k) for k in range(10)]
    for k, (_, cells) in enumerate(table.rows):
        assert cells[0].value == f"{rows[1][k]['auc_teacher']:.4f}"
        assert cells[1] == Cell(f"{rows[0][k]['auc_step1']:.4f}")
        assert cells[2] == Cell(f"{rows[1][k]['auc_step1']:.4f}")
    assert table.rows[0][1][0].paper == "paper 0.9960"
    ((name, means),) = table.footer
    assert name == "mean"
    assert [cell.paper for cell in means] == ["paper 0.9780", "paper 0.9548", "paper 0.9675"]


def test_compression_table(comparisons_of):
    comparisons = comparisons_of(*(cell_rows(s) for s in ("student-only", "1", "4")))
    table = compression_table(comparisons)
    assert sum(span for _, span in table.groups) == len(table.columns)
    ((name, cells),) = table.rows
    assert name == "Fashion-MNIST, 1-2-4"
    assert len(cells) == len(table.columns)
    assert cells[2].paper == "paper −0.0191"
    assert cells[3].value == "KDGAN-4"
    assert cells[-2:] == [
        Cell("102.92×", "5.12M ÷ 49.7k", "paper 105.45×"),
        Cell("712.36×", "54.4M ÷ 76.4k", "paper 700.00×"),
    ]


def test_student_alone_without_teachers(comparisons_of):
    ((_, cells),) = compression_table(comparisons_of(cell_rows("student-only"))).rows
    values = [cell.value for cell in cells]
    assert values[0] == values[3] == "not run"
    assert values[2] == values[4] == values[-1] == "–"


def test_methods_are_named_with_the_settings_in_which_they_differ(comparisons_of):
    cells = [cell_rows("2", lr=lr, weights=[10, 1], norm="batch") for lr in (0.1, 0.2)]
    titles = [name for name, _ in method_table(comparisons_of(*cells)).rows]
    assert titles == ["student alone", "KDGAN-2, lr 0.1", "KDGAN-2, lr 0.2"]


def test_settings_of_most_methods_are_in_the_title_of_the_comparison(comparisons_of):
    cells = [cell_rows(s, step1_epochs=60) for s in ("student-only", "2")]
    cells += [cell_rows("student-only", step1_epochs=200)]
    cells += [cell_rows("student-only", widths="2-4-8", step1_epochs=30)]
    table = method_table(comparisons_of(*cells))
    assert [title for title, _ in table.groups] == [
        "Fashion-MNIST, 1-2-4, step1_epochs 60",
        "Fashion-MNIST, 2-4-8, step1_epochs 30",
    ]
    names = [name for name, _ in table.rows]
    assert names == ["student alone", "student alone, step1_epochs 200", "KDGAN-2"]


def test_training_time_includes_the_teacher(comparisons_of):
    (comparison,) = comparisons_of(cell_rows("student-only"), cell_rows("2"))
    for result in comparison.results:
        for row in result.method.rows.values():
            row |= {"seconds_teacher": row["auc_teacher"] and 48.6, "seconds_student": 19.0}
    (_, alone), (_, distilled) = method_table([comparison]).rows
    assert alone[2] == Cell("19 s")
    assert distilled[2] == Cell("68 s", "(teacher 49 s)")


def test_auc_by_score_of_teachers_and_students(comparisons_of):
    (comparison,) = comparisons_of(cell_rows("student-only"), cell_rows("2"))
    table = score_table(comparison)
    assert table.columns == ["latent", "reconstruction", "fused"]
    assert [name for name, _ in table.rows] == ["teacher", "student alone", "KDGAN-2"]
    assert {cell for _, cells in table.rows for cell in cells} == {Cell("–")}  # of early versions
    for row in comparison.results[1].method.rows.values():
        row |= {"auc_teacher_fused": 0.9, "auc_step1_latent": 0.7, "auc_step2_latent": 0.8}
    (_, teacher), _, (_, student) = score_table(comparison).rows
    assert [cell.value for cell in teacher] == ["–", "–", "0.9000"]
    assert [cell.value for cell in student] == ["0.8000", "–", "–"]
