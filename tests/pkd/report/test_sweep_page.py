"""`pkd report` of a sweep: content of the page, its chart, and files that are kept."""

import re
from functools import partial

import pytest
from matplotlib.figure import Figure
from sweep_file_helpers import cell_rows, write_sweep

from pkd.cli.main import main
from pkd.report.svg import render_svg
from pkd.report.sweep_page import draw_methods, method_lines, summary_tiles, teacher_level
from pkd.runs.plots import COLOURS
from pkd.sweep.read import read_sweeps
from pkd.sweep.summary import summarize

HOSTILE = """<img src=x onerror=alert(1)>&'"{{ 7 * 7 }}"""
NOT_RUN = "<td>student-only<small>not run</small></td>"
STRUCTURES = ("student-only", "2", "progressive-23")


@pytest.fixture
def sweep(tmp_path):
    """A sweep of three structures and two widths."""
    cells = [cell_rows(s, widths=w) for w in ("1-2-4", "8-16-64") for s in STRUCTURES]
    return write_sweep(tmp_path / "sweep", *cells, settings={"lr": 0.001, "data_dir": None})


def page_of(sweep):
    assert main(["report", str(sweep)]) == 0
    return (sweep / "report.html").read_text(encoding="utf-8")


def test_page_of_a_sweep(sweep):
    page = page_of(sweep)
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        *("Methods", "Training", "AUC by class", "AUC by score", "Compression"),
        *("Failed shards", "Settings"),
    ]
    titles = ["Fashion-MNIST, 1-2-4", "Fashion-MNIST, 8-16-64"]
    assert re.findall(r"<h3.*?>(.*?)</h3>", page) == titles * 3
    assert page.count('role="img"') == 2
    for method in ("student alone", "KDGAN-2", "P-KDGAN-II-(2)(3)"):
        assert f"<tr><th>{method}</th>" in page
    assert "<dt>lr</dt><dd>0.001</dd>" in page
    assert NOT_RUN not in page


def test_page_names_the_images_of_the_evaluation(tmp_path, sweep):
    assert "on the whole test split" in page_of(sweep)
    settings = {"evaluate_on": "development"}
    page = page_of(write_sweep(tmp_path, cell_rows("2"), settings=settings))
    assert "on development images" in page
    assert "test split" not in page


def test_page_refers_to_no_other_file_and_has_no_script(sweep):
    page = page_of(sweep)
    assert not re.search(r"https?:|//\w|url\(|@import|<script|<link|src=|href=", page)


def test_same_results_give_the_same_page(sweep, tmp_path):
    page = page_of(sweep)
    output = tmp_path / "again.html"
    assert main(["report", str(sweep / "sweep.json"), "--output", str(output)]) == 0
    assert output.read_text(encoding="utf-8") == page


def test_failed_shards_are_named_and_escaped(tmp_path):
    failed = {"shard": "s1", "cell": "c", "error": HOSTILE, "command": "pkd sweep --resume 'a b'"}
    page = page_of(write_sweep(tmp_path, cell_rows("2"), failed=[failed]))
    assert "<img src=x" not in page
    assert "{{ 7 * 7 }}" in page
    assert "<tr><th>s1</th>" in page
    assert "pkd sweep --resume &#39;a b&#39;" in page
    assert NOT_RUN in page


def test_sweep_without_finished_students(tmp_path):
    page = page_of(write_sweep(tmp_path / "a"))
    assert "No student is finished." in page
    page = page_of(write_sweep(tmp_path / "b", cell_rows("teacher-only")))
    assert "No student is finished." in page


def test_sweep_without_curves(tmp_path):
    page = page_of(write_sweep(tmp_path, cell_rows("2"), curves=[]))
    assert 'role="img"' not in page


def test_unfinished_and_damaged_sweeps_are_refused(sweep, refused, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "plan.json").write_text("{}")
    refused(["report", tmp_path / "new"], "sweep.json does not exist", "pkd sweep --resume")
    (sweep / "sweep.json").write_text("{")
    refused(["report", sweep], "sweep.json is damaged")
    assert not (sweep / "report.html").exists()


def test_an_earlier_report_is_replaced_but_no_other_file(sweep, refused):
    page = page_of(sweep)
    assert page_of(sweep) == page
    (sweep / "report.html").write_text("<p>Dear all</p>")
    refused(["report", sweep], "exists", "overwrite")
    assert (sweep / "report.html").read_text() == "<p>Dear all</p>"
    assert main(["report", str(sweep), "--overwrite"]) == 0
    assert (sweep / "report.html").read_text() == page


def drawn(comparison):
    axes = Figure(figsize=(6, 4)).subplots()
    draw_methods(axes, method_lines(comparison), teacher_level(comparison))
    return axes


def test_lines_are_the_mean_auc_over_the_students_epochs(sweep):
    comparison = summarize(read_sweeps([sweep]))[0]
    axes = drawn(comparison)
    lines = {line.get_color(): line for line in axes.lines if line.get_marker() == "None"}
    student, progressive = lines[COLOURS["student"]], lines[COLOURS["method5"]]
    assert student.get_xdata().tolist() == [*range(1, 11)]
    assert progressive.get_xdata().tolist() == [*range(1, 13)]
    last = student.get_ydata()[-1]
    assert last == pytest.approx(comparison.student_only.auc.mean, abs=1e-5)
    (level,) = {*lines[COLOURS["teacher"]].get_ydata()}
    assert level == pytest.approx(teacher_level(comparison))
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [dot.get_xdata()[0] for dot in dots] == [10, 12, 10, 10]
    assert axes.lines[0] is progressive  # below KDGAN-2, which equals its first step


def test_methods_of_one_structure_differ_by_dashes(tmp_path):
    cells = [cell_rows("2", lr=lr) for lr in (0.1, 0.2, 0.3)]
    (comparison,) = summarize(read_sweeps([write_sweep(tmp_path, *cells)]))
    lines = method_lines(comparison)
    assert {line.colour for line in lines} == {"method2"}
    assert len({line.dashes for line in lines}) == 3
    svg = render_svg(partial(draw_methods, lines=lines, teacher=None), 400, 240, "AUC")
    assert svg.count("stroke-dasharray") == 2
    assert "var(--method2)" in svg


def test_tiles_count_shared_teachers_once(sweep):
    results = read_sweeps([sweep])
    tiles = {tile["name"]: tile for tile in summary_tiles(results, summarize(results))}
    assert tiles["Methods"]["cell"].value == "3"
    assert tiles["Methods"]["note"] == "6 cells"
    assert tiles["Trained students"]["cell"].value == "180"
    assert tiles["Trained students"]["note"] == "30 shared teachers"
    seconds = 2 * 30 * 12.25 * (1 + 1 + 2) + 30 * 31.5
    assert (
        tiles["Training time"]["cell"].value
        == f"{seconds // 3600:.0f} h {seconds % 3600 / 60:.0f} min"
    )
    assert tiles["Training time"]["note"] == "a CPU with 2 cores"
