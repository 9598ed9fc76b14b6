"""Statistics of sweeps: paired differences, intervals, references and values of the paper."""

import numpy as np
import pytest
from sweep_file_helpers import GAINS, cell_rows, write_sweep

from pkd.models.stack import Member
from pkd.sweep.read import read_sweeps
from pkd.sweep.summary import Difference, difference, student_only_of, summarize


def members(count):
    return [Member(k % 10, k // 10) for k in range(count)]


def test_difference_is_paired_by_class_and_seed():
    reference = {member: 0.8 + member.normal_class / 100 for member in members(30)}
    values = {member: auc + 0.01 for member, auc in reference.items() if member.seed < 2}
    values |= {Member(7, 9): 0.1}  # has no partner
    paired = difference(values, reference)
    assert paired.pairs == 20
    assert [paired.mean, paired.low, paired.high] == pytest.approx([0.01] * 3)
    assert paired.half_width == pytest.approx(0, abs=1e-12)


def test_interval_is_that_of_the_bootstrap():
    """For many pairs the interval approaches mean ± 1.96 standard errors."""
    noise = np.random.default_rng(1).normal(0.003, 0.02, 200)
    reference = dict.fromkeys(members(200), 0.5)
    values = {member: 0.5 + x for member, x in zip(reference, noise, strict=True)}
    paired = difference(values, reference)
    error = 1.96 * noise.std() / 200**0.5
    assert paired.mean == pytest.approx(noise.mean())
    assert paired.low == pytest.approx(noise.mean() - error, abs=error / 20)
    assert paired.high == pytest.approx(noise.mean() + error, abs=error / 20)
    assert difference(values, reference) == paired


def test_order_of_the_members_does_not_matter():
    noise = np.random.default_rng(2).normal(size=30)
    values = dict(zip(members(30), noise, strict=True))
    shuffled = dict(sorted(values.items(), key=lambda item: item[1]))
    reference = dict.fromkeys(values, 0.0)
    assert difference(values, reference) == difference(shuffled, reference)


def test_a_single_pair_has_no_interval_and_no_pair_no_difference():
    assert difference({Member(0, 0): 0.75}, {Member(0, 0): 0.5}) == Difference(0.25, None, None, 1)
    assert Difference(0.25, None, None, 1).half_width is None
    assert difference({Member(0, 0): 0.7}, {Member(0, 1): 0.6}) is None


def test_methods_are_compared_with_the_student_alone(tmp_path):
    structures = ("student-only", "2", "progressive-24")
    rows = [cell_rows(structure, widths=w) for w in ("1-2-4", "2-4-8") for structure in structures]
    narrow, wide = summarize(read_sweeps([write_sweep(tmp_path, *rows)]))
    assert (narrow.dataset, narrow.student_widths) == ("fashion_mnist", "1-2-4")
    assert narrow.student_only.difference is None
    for comparison in (narrow, wide):
        for result in comparison.results[1:]:
            gain = GAINS[result.method.structure] - GAINS["student-only"]
            assert result.difference.low < gain < result.difference.high
            assert result.difference.pairs == 30
            reference = comparison.student_only.auc.mean
            assert result.difference.mean == pytest.approx(result.auc.mean - reference)
    assert narrow.best.method.structure == "progressive-24"
    assert narrow.classes[8] == "Bag"


def test_mean_and_spread_of_a_method(tmp_path):
    rows = cell_rows("progressive-23")
    ((result,),) = (c.results for c in summarize(read_sweeps([write_sweep(tmp_path, rows)])))
    auc = np.array([row["auc_step2"] for row in rows]).reshape(10, 3)
    assert result.auc.mean == pytest.approx(auc.mean())
    assert result.auc.std == pytest.approx(auc.mean(0).std(ddof=1))
    assert result.difference is None


def test_values_of_the_paper_for_comparable_methods_only(tmp_path):
    structures = ("student-only", "1", "progressive-23")
    cells = [cell_rows(structure) for structure in structures]
    cells += [cell_rows("2", widths="2-4-8"), cell_rows("2", dataset="digits", widths="1-2-4")]
    cells += [cell_rows("4", dataset="mnist", widths="2-4-8", classes=range(9))]
    same, other, digits, nine = summarize(read_sweeps([write_sweep(tmp_path, *cells)]))
    assert [result.paper for result in same.results] == [0.9120, 0.9248, 0.9293]
    assert same.teacher_paper == 0.9311
    assert same.compression_paper.printed == (105.45, 700.0)
    assert [other.results[0].paper, other.teacher_paper] == [None, 0.9311]
    assert [digits.results[0].paper, digits.teacher_paper] == [None, None]
    assert [nine.results[0].paper, nine.teacher_paper] == [None, None]
    assert other.compression_paper is digits.compression_paper is None
    assert same.teacher_class_paper(3) is None  # Table 2 has no Fashion-MNIST


def test_results_on_development_images_are_not_compared_with_the_paper(tmp_path):
    cells = [cell_rows("student-only"), cell_rows("2")]
    settings = {"evaluate_on": "development"}
    (comparison,) = summarize(read_sweeps([write_sweep(tmp_path, *cells, settings=settings)]))
    assert [result.paper for result in comparison.results] == [None, None]
    assert comparison.teacher_paper is None


def test_classes_of_the_paper(tmp_path):
    rows = cell_rows("2", dataset="mnist", widths="2-4-8")
    (comparison,) = summarize(read_sweeps([write_sweep(tmp_path, rows)]))
    assert comparison.teacher_class_paper(9) == 0.987


def test_drop_to_the_teacher_of_the_best_method(tmp_path):
    cells = [cell_rows("student-only"), cell_rows("1"), cell_rows("4")]
    (comparison,) = summarize(read_sweeps([write_sweep(tmp_path, *cells)]))
    teacher = {Member(r["normal_class"], r["seed"]): r["auc_teacher"] for r in cells[2]}
    assert comparison.teacher_auc == teacher
    for result in (comparison.student_only, comparison.best):
        drop = comparison.drop(result)
        assert drop.pairs == 30
        assert drop.mean == pytest.approx(
            np.mean([result.method.auc[m] - teacher[m] for m in teacher])
        )


def test_teachers_alone_are_those_of_a_student_alone(tmp_path):
    cells = [cell_rows("student-only"), cell_rows("teacher-only")]
    (comparison,) = summarize(read_sweeps([write_sweep(tmp_path, *cells)]))
    assert [r.method.structure for r in comparison.results] == ["student-only"]
    assert len(comparison.teacher_auc) == 30
    assert comparison.best is None
    assert comparison.teacher_size == (5_117_568, 54_435_840)
    (alone,) = summarize(read_sweeps([write_sweep(tmp_path, cells[0])]))
    assert alone.drop(alone.student_only) is None
    assert alone.teacher_size is alone.teacher_paper is None


def test_the_student_alone_of_other_settings(tmp_path):
    """The one with equal settings; else the only one there is; else none."""
    equal = [cell_rows(structure, lr=lr) for structure in ("student-only", "2") for lr in (1, 2)]
    methods = read_sweeps([write_sweep(tmp_path, *equal)]).methods
    assert student_only_of(methods[0], methods) is None
    assert [student_only_of(m, methods) for m in methods[2:]] == methods[:2]
    different = [cell_rows("student-only", lr=1), cell_rows("2", lr=2), cell_rows("2", lr=3)]
    methods = read_sweeps([write_sweep(tmp_path, *different)]).methods
    assert [student_only_of(m, methods) for m in methods[1:]] == [methods[0]] * 2
    unclear = [*equal[:2], cell_rows("2", lr=3)]
    methods = read_sweeps([write_sweep(tmp_path, *unclear)]).methods
    assert student_only_of(methods[2], methods) is None


def test_students_alone_of_another_data_set_are_no_reference(tmp_path):
    cells = [cell_rows("student-only", dataset="mnist"), cell_rows("2")]
    mnist, fashion = summarize(read_sweeps([write_sweep(tmp_path, *cells)]))
    assert mnist.dataset == "mnist"
    assert fashion.student_only is None
    assert fashion.results[0].difference is None
