"""Tables of a sweep, formatted as text: the paper's Tables 2, 3 and 4 with our numbers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from pkd.models.paper import PAPER_MEANS
from pkd.report.formats import (
    DATASET_TITLES,
    METHOD_TITLES,
    Cell,
    Table,
    format_count,
)
from pkd.scoring.metrics import Average, average
from pkd.scoring.score import SCORES
from pkd.sweep.read import Method
from pkd.sweep.summary import Comparison, Difference, MethodResult, average_by_class

MISSING = Cell("–")
NOT_RUN = Cell("student-only", "not run")
METHOD_COLUMNS = ("AUC", "to student alone", "time per model", "members")
COARSE = 0.005  # half width of an interval from which an AUC has three decimals instead of four


def decimals(half_width: float | None) -> int:
    """Decimals of an AUC that an interval of this half width supports."""
    return 3 if half_width is not None and half_width > COARSE else 4


def format_auc(value: float, digits: int = 4, sign: str = "-") -> str:
    """Format an AUC or, with `sign` "+", a difference of AUCs, with a true minus sign."""
    return f"{value:{sign}.{digits}f}".replace("-", "−")


def auc_cell(auc: Average, half_width: float | None = None, paper: float | None = None) -> Cell:
    """Format a mean AUC with its spread over seeds and the value of the paper.

    Args:
        auc: the mean.
        half_width: of an interval that limits the decimals; None takes the spread over seeds.
        paper: mean AUC in the paper.
    """
    digits = decimals(auc.std if half_width is None else half_width)
    spread = "" if auc.std is None else f"± {auc.std:.{digits}f}"
    return Cell(format_auc(auc.mean, digits), spread, "" if paper is None else f"paper {paper:.4f}")


def difference_cell(difference: Difference, paper: float | None = None) -> Cell:
    """Format a difference with its 95 % interval and the difference in the paper."""
    digits = decimals(difference.half_width)
    interval = ""
    if difference.low is not None and difference.high is not None:
        low, high = (format_auc(x, digits, "+") for x in (difference.low, difference.high))
        interval = f"[{low}, {high}]"
    printed = "" if paper is None else f"paper {format_auc(paper, 4, '+')}"
    return Cell(format_auc(difference.mean, digits, "+"), interval, printed)


def method_title(method: Method, comparison: Comparison) -> str:
    """Name of a method with the settings in which it differs from most methods of a comparison."""
    settings = [
        _setting_text(name, value)
        for name, value in method.settings.items()
        if name not in comparison.shared or comparison.shared[name] != value
    ]
    return ", ".join([METHOD_TITLES[method.structure], *settings])


def comparison_title(comparison: Comparison) -> str:
    """Name of the data set, widths of the student, and settings that other comparisons differ in.

    Settings that only some methods of the comparison have are in the titles of these methods.
    """
    dataset = DATASET_TITLES.get(comparison.dataset, comparison.dataset)
    settings = [_setting_text(name, value) for name, value in comparison.shared.items()]
    return ", ".join([dataset, comparison.student_widths, *settings])


def _setting_text(name: str, value: Any) -> str:
    return f"{name} {'-'.join(map(str, value)) if isinstance(value, list) else value}"


def method_table(comparisons: Sequence[Comparison]) -> Table:
    """Build Table 3: methods by data sets; the row of the student alone is always there."""
    student_only = METHOD_TITLES["student-only"]
    titles = [method_title(r.method, c) for c in comparisons for r in c.results]
    if not all(comparison.student_only for comparison in comparisons):
        titles.insert(0, student_only)
    rows = []
    for title in dict.fromkeys(titles):
        cells: list[Cell] = []
        for comparison in comparisons:
            results = {method_title(r.method, comparison): r for r in comparison.results}
            if title in results:
                cells += _method_cells(results[title], comparison)
            elif title == student_only and not comparison.student_only:
                cells += [NOT_RUN, *[MISSING] * (len(METHOD_COLUMNS) - 1)]
            else:
                cells += [MISSING] * len(METHOD_COLUMNS)
        rows.append((title, cells))
    groups = [(comparison_title(comparison), len(METHOD_COLUMNS)) for comparison in comparisons]
    return Table(groups, [*METHOD_COLUMNS] * len(comparisons), rows)


def _method_cells(result: MethodResult, comparison: Comparison) -> list[Cell]:
    paired = result.difference
    students = len(result.method.auc)
    if paired is not None:
        to_alone = difference_cell(paired, _paper_difference(result))
    elif result.method.structure == "student-only":
        to_alone = Cell("")
    else:  # several students alone, but none with the same settings
        to_alone = MISSING if comparison.student_only else NOT_RUN
    pairs = f"{paired.pairs} paired" if paired and paired.pairs < students else ""
    return [_student_cell(result), to_alone, _time_cell(result.method), Cell(f"{students}", pairs)]


def _time_cell(method: Method) -> Cell:
    """Format the training time per model, and the teacher's part of it."""
    teacher, student = (method.seconds(network) for network in ("teacher", "student"))
    note = f"(teacher {teacher:,.0f} s)" if teacher else ""
    return Cell(f"{teacher + student:,.0f} s", note)


def _paper_difference(result: MethodResult) -> float | None:
    """Difference of a method to the student alone in the paper."""
    if result.paper is None:
        return None
    return result.paper - PAPER_MEANS["student-only"][result.method.dataset]


def class_table(comparison: Comparison) -> Table:
    """Build Table 2: AUC by normal class, of the teachers and of each method's students."""
    columns = _class_columns(comparison)
    rows = [
        (name, [column.by_class.get(normal_class, MISSING) for column in columns])
        for normal_class, name in comparison.classes.items()
    ]
    footer = [("mean", [column.mean for column in columns])] if len(rows) > 1 else []
    return Table([], [column.title for column in columns], rows, footer)


class _ClassColumn(NamedTuple):
    """A column of Table 2: its title, the cell of each class, and the cell of the mean."""

    title: str
    by_class: dict[int, Cell]
    mean: Cell


def _class_columns(comparison: Comparison) -> list[_ClassColumn]:
    columns = []
    if comparison.teacher_auc:
        of_teachers = {
            normal_class: auc_cell(auc, None, comparison.teacher_class_paper(normal_class))
            for normal_class, auc in average_by_class(comparison.teacher_auc).items()
        }
        columns.append(_ClassColumn("teacher", of_teachers, _teacher_cell(comparison)))
    if not comparison.student_only:
        columns.append(_ClassColumn(METHOD_TITLES["student-only"], {}, NOT_RUN))
    for result in comparison.results:
        cells = {k: auc_cell(auc) for k, auc in average_by_class(result.method.auc).items()}
        title = method_title(result.method, comparison)
        columns.append(_ClassColumn(title, cells, _student_cell(result)))
    return columns


def score_table(comparison: Comparison) -> Table:
    """Build the table of mean AUCs by each score, of the teachers and of each method's students."""
    rows = [
        (method_title(result.method, comparison), _score_cells(result.method, "student"))
        for result in comparison.results
    ]
    if comparison.teachers is not None:
        rows.insert(0, ("teacher", _score_cells(comparison.teachers, "teacher")))
    return Table([], [*SCORES], rows)


def _score_cells(method: Method, network: str) -> list[Cell]:
    every = [method.auc_by(score, network) for score in SCORES]
    return [auc_cell(average(auc)) if auc else MISSING for auc in every]


def compression_table(comparisons: Sequence[Comparison]) -> Table:
    """Build Table 4: AUC of teacher and students, differences to the teacher, and size ratios."""
    groups = [("teacher", 1), ("student alone", 2), ("best distilled", 3), ("teacher ÷ student", 2)]
    columns = [
        *("AUC", "AUC", "to teacher", "method", "AUC", "to teacher"),
        *("parameters", "multiply-adds"),
    ]
    rows = [
        (
            comparison_title(comparison),
            [
                _teacher_cell(comparison),
                *_student_cells(comparison, comparison.student_only, NOT_RUN),
                *_best_cells(comparison),
                *_ratio_cells(comparison),
            ],
        )
        for comparison in comparisons
    ]
    return Table(groups, columns, rows)


def _teacher_cell(comparison: Comparison) -> Cell:
    if not comparison.teacher_auc:
        return Cell("not run")
    return auc_cell(average(comparison.teacher_auc), None, comparison.teacher_paper)


def _student_cell(result: MethodResult) -> Cell:
    half_width = result.difference.half_width if result.difference else None
    return auc_cell(result.auc, half_width, result.paper)


def _best_cells(comparison: Comparison) -> list[Cell]:
    best = comparison.best
    name = Cell(method_title(best.method, comparison)) if best else Cell("not run")
    return [name, *_student_cells(comparison, best, MISSING)]


def _student_cells(
    comparison: Comparison, result: MethodResult | None, missing: Cell
) -> list[Cell]:
    """AUC of a student and its difference to the teacher; `missing` where it was not run."""
    if result is None:
        return [missing, MISSING]
    drop = comparison.drop(result)
    if drop is None:
        return [_student_cell(result), MISSING]
    papers = result.paper, comparison.teacher_paper
    paper = None if papers[0] is None or papers[1] is None else papers[0] - papers[1]
    return [_student_cell(result), difference_cell(drop, paper)]


def _ratio_cells(comparison: Comparison) -> list[Cell]:
    teacher, student = comparison.teacher_size, comparison.student_size
    if teacher is None or student is None:
        return [MISSING, MISSING]
    paper = comparison.compression_paper
    printed = [f"paper {ratio:.2f}×" for ratio in paper.printed] if paper else ["", ""]
    return [
        Cell(f"{large / small:.2f}×", f"{format_count(large)} ÷ {format_count(small)}", text)
        for large, small, text in zip(teacher, student, printed, strict=True)
    ]
