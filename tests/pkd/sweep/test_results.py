"""sweep.json and sweep.csv."""

import csv
from statistics import mean

import pytest
from sweep_helpers import read_json

from pkd.models.cost import cost
from pkd.sweep.plan import Plan
from pkd.sweep.read import read_sweeps
from pkd.sweep.results import COLUMNS, student_steps
from pkd.sweep.summary import summarize


@pytest.fixture(scope="module")
def content(small_sweep):
    return read_json(small_sweep / "sweep.json")


def test_a_row_for_each_member_of_each_cell(content):
    assert list(content) == ["format", "settings", "varied", "rows", "curves", "failed"]
    assert (content["format"], content["failed"]) == (1, [])
    keys = [(row["structure"], row["normal_class"], row["seed"]) for row in content["rows"]]
    assert keys == [(s, k, 0) for s in ("student-only", "2", "progressive-23") for k in (0, 1)]
    for row in content["rows"]:
        assert [name for name in row if name in COLUMNS] == list(COLUMNS)
        assert (row["dataset"], row["student_widths"]) == ("digits", "1-2-4")
        assert row["class_name"] == str(row["normal_class"])


def test_a_row_has_the_results_of_its_shard(content, small_sweep):
    for row in content["rows"]:
        results = read_json(small_sweep / "shards" / row["shard"] / "results.json")
        (member,) = [m for m in results["members"] if m["normal_class"] == row["normal_class"]]
        for phase in ("teacher", "step1", "step2"):
            assert row[f"auc_{phase}"] == member["auc"].get(phase)
        assert row["teacher_sha256"] == member.get("teacher_sha256")
        assert row["hardware"] == results["hardware"]
        seconds = sum(results["seconds"].values())
        assert row["seconds_student"] == pytest.approx(seconds / 2, abs=1e-3)


def test_a_row_has_the_auc_by_every_score(content):
    for row in content["rows"]:
        assert row["auc_step1_fused"] == row["auc_step1"]  # the score of the quick preset
        assert 0 <= row["auc_step1_latent"] <= 1
        assert 0 <= row["auc_step1_reconstruction"] <= 1
        assert (row["auc_teacher_latent"] is None) == (row["structure"] == "student-only")


def test_settings_are_those_that_all_cells_share(content):
    settings = content["settings"]
    assert settings["student_widths"] == "1-2-4"
    assert not {"structure", "data_dir", "teacher"} & settings.keys()


def test_the_seconds_of_a_teacher_come_from_the_run_that_trained_it(content, small_sweep):
    results = read_json(small_sweep / "shards" / "teacher_digits_part1" / "results.json")
    seconds = pytest.approx(results["seconds"]["teacher"] / 2, abs=1e-3)
    for row in content["rows"]:
        assert row["seconds_teacher"] == (None if row["structure"] == "student-only" else seconds)


def test_steps_and_cost_of_the_networks(content, small_sweep):
    plan = Plan.read(small_sweep)
    steps = [row["student_steps"] for row in content["rows"]]
    assert steps == [10, 10, 10, 10, 20, 20]
    assert [student_steps(cell, cell.members[0]) for cell in plan.cells] == [10, 10, 20]
    student = cost(plan.cells[0].config.architecture("student", 1))
    teacher = cost(plan.cells[0].config.architecture("teacher", 1))
    for row in content["rows"]:
        assert (row["student_parameters"], row["student_flops"]) == (
            student.parameters,
            student.flops,
        )
        alone = row["structure"] == "student-only"
        expected = (None, None) if alone else (teacher.parameters, teacher.flops)
        assert (row["teacher_parameters"], row["teacher_flops"]) == expected


def test_the_csv_has_the_same_rows_with_empty_cells_for_none(content, small_sweep):
    with (small_sweep / "sweep.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    texts = [{k: "" if v is None else str(v) for k, v in row.items()} for row in content["rows"]]
    assert rows == texts


def test_curves_are_the_mean_and_range_of_the_members_by_epoch(content):
    phases = [(curve["structure"], curve["phase"], curve["network"]) for curve in content["curves"]]
    assert phases == [
        ("student-only", "step1", "student"),
        *(("2", "teacher", "teacher"), ("2", "step1", "student")),
        ("progressive-23", "teacher", "teacher"),
        ("progressive-23", "step1", "student"),
        ("progressive-23", "step2", "student"),
    ]
    for curve in content["curves"]:
        rows = [row for row in content["rows"] if row["cell"] == curve["cell"]]
        auc = [row[f"auc_{curve['phase']}"] for row in rows]
        assert curve["auc"] == [round(mean(auc), 5)]  # one epoch, on the whole test split
        assert curve["auc_low"] == [round(min(auc), 5)]
        assert curve["auc_high"] == [round(max(auc), 5)]
        assert (curve["dataset"], curve["student_widths"]) == ("digits", "1-2-4")


def test_the_summary_of_a_sweep_has_a_method_for_each_cell(small_sweep):
    methods = read_sweeps([small_sweep]).methods
    assert [method.structure for method in methods] == ["student-only", "2", "progressive-23"]
    assert all(len(method.rows) == 2 for method in methods)
    (comparison,) = summarize(read_sweeps([small_sweep]))
    assert [result.difference is not None for result in comparison.results] == [False, True, True]
