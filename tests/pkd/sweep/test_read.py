"""Results of sweeps: grouping by method, merging of sweeps, and damaged files."""

import json

import numpy as np
import pytest
from sweep_file_helpers import cell_curves, cell_rows, write_sweep

from pkd.models.stack import Member
from pkd.sweep.read import common_settings, is_sweep, read_sweeps
from pkd.utils.errors import CheckpointError


def test_rows_are_grouped_by_method_in_the_order_of_the_structures(tmp_path):
    cells = [
        cell_rows("progressive-23", classes=[3], seeds=[0, 1]),
        cell_rows("2", classes=[3], seeds=[0, 1]),
        cell_rows("student-only", classes=[3], seeds=[0]),
    ]
    methods = read_sweeps([write_sweep(tmp_path, *cells)]).methods
    assert [method.structure for method in methods] == ["student-only", "2", "progressive-23"]
    assert [len(method.rows) for method in methods] == [1, 2, 2]
    assert methods[0].teacher_auc == {}
    assert methods[1].auc == {Member(3, seed): cells[1][seed]["auc_step1"] for seed in (0, 1)}
    assert methods[2].auc == {Member(3, seed): cells[0][seed]["auc_step2"] for seed in (0, 1)}
    assert methods[2].teacher_auc[Member(3, 1)] == cells[0][1]["auc_teacher"]
    assert methods[2].number("student_flops") == 76_416


def test_rows_with_teachers_alone_have_no_student(tmp_path):
    (method,) = read_sweeps([write_sweep(tmp_path, cell_rows("teacher-only"))]).methods
    assert method.auc == {}
    assert len(method.teacher_auc) == 30


def test_settings_that_all_methods_share_are_no_part_of_a_method(tmp_path):
    cells = [
        cell_rows(structure, lr=lr, latent=8, seeds=[0])
        for structure in ("student-only", "2")
        for lr in (0.1, 0.2)
    ]
    sweep = read_sweeps([write_sweep(tmp_path, *cells, settings={"norm": "batch"})])
    assert [method.settings for method in sweep.methods] == [{"lr": 0.1}, {"lr": 0.2}] * 2
    assert sweep.settings == {"norm": "batch", "latent": 8}


def test_settings_without_influence_on_the_result_distinguish_no_methods(tmp_path):
    first = cell_rows("2", seeds=[0])
    second = cell_rows("2", seeds=[1])
    for rows, count in ((first, 1), (second, 2)):
        for row in rows:
            row["seeds"] = count
    (method,) = read_sweeps([write_sweep(tmp_path, first, second)]).methods
    assert len(method.rows) == 20


def test_sweeps_are_merged_by_settings(tmp_path):
    first = write_sweep(
        tmp_path / "a", cell_rows("2", seeds=[0]), settings={"lr": 0.1, "latent": 8}
    )
    second = write_sweep(
        tmp_path / "b", cell_rows("2", seeds=[1, 2]), settings={"lr": 0.1, "latent": 8}
    )
    other = write_sweep(
        tmp_path / "c", cell_rows("2", seeds=[0]), settings={"lr": 0.2, "latent": 8}
    )
    sweep = read_sweeps([first, second / "sweep.json"])
    (method,) = sweep.methods
    assert len(method.rows) == 30
    assert sweep.settings == {"lr": 0.1, "latent": 8}
    sweep = read_sweeps([first, second, other])
    assert [(m.settings, len(m.rows)) for m in sweep.methods] == [
        ({"lr": 0.1}, 30),
        ({"lr": 0.2}, 10),
    ]
    assert sweep.settings == {"latent": 8}


def test_curves_of_merged_sweeps_are_averaged_over_all_members(tmp_path):
    rows = [cell_rows("2", seeds=[0]), cell_rows("2", seeds=[1, 2])]
    first, second = (write_sweep(tmp_path / f"{k}", cell) for k, cell in enumerate(rows))
    (method,) = read_sweeps([first, second]).methods
    (expected,) = read_sweeps([write_sweep(tmp_path / "all", rows[0] + rows[1])]).methods
    for phase in ("teacher", "step1"):
        curve, whole = method.curves[phase], expected.curves[phase]
        assert curve.members == whole.members == 30
        np.testing.assert_allclose(curve.auc, whole.auc, atol=1e-5)
        np.testing.assert_allclose(curve.low, whole.low)
        np.testing.assert_allclose(curve.high, whole.high)


def test_equal_rows_count_once_and_different_results_of_a_model_are_refused(tmp_path):
    rows = cell_rows("2", seeds=[0])
    first, second = (write_sweep(tmp_path / name, rows) for name in "ab")
    (method,) = read_sweeps([first, second]).methods
    assert len(method.rows) == 10
    assert method.curves["step1"].members == 10
    rows[4]["auc_step1"] += 1e-6
    write_sweep(second, rows)
    with pytest.raises(CheckpointError, match=r"normal class 4, seed 0.*give only one"):
        read_sweeps([first, second])


def test_unfinished_sweeps_are_sweeps_without_results(tmp_path):
    assert not is_sweep(tmp_path)
    (tmp_path / "plan.json").write_text("{}")
    assert is_sweep(tmp_path)
    with pytest.raises(CheckpointError, match=r"sweep.json does not exist.*pkd sweep --resume"):
        read_sweeps([tmp_path])
    assert is_sweep(write_sweep(tmp_path, cell_rows("2")) / "sweep.json")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda content: content.update(format=2), "its format is 2"),
        (lambda content: content.pop("rows"), "it lacks rows"),
        (lambda content: content["rows"][3].pop("auc_step2"), "lacks auc_step2"),
        (lambda content: content["rows"][3].update(auc_step1=1.5), "row 4 has auc_step1 1.5"),
        (lambda content: content["rows"][3].update(auc_step1="0.9"), "auc_step1 '0.9'"),
        (lambda content: content["rows"][3].update(auc_step1=None, auc_teacher=None), "no AUC"),
        (lambda content: content["rows"][3].update(structure="5"), "structure '5'"),
        (lambda content: content["curves"][0].pop("auc_low"), "lacks auc_low"),
        (lambda content: content.update(failed=[{"shard": "a"}]), "lacks cell, error, command"),
        (lambda content: content.update(rows=[7]), "row 1 is no object"),
        (lambda content: content.update(varied=1.5), "it has varied 1.5"),
        (lambda content: content.update(settings=[]), "it has settings"),
        (lambda content: content["rows"][0].update(cell=["a"]), "row 1 has cell"),
        (lambda content: content["rows"][0].update(lr={}), "no number or text"),
        (lambda content: content["curves"][0]["auc"].pop(), "lowest"),
    ],
)
def test_damaged_files_are_refused(tmp_path, change, word):
    path = write_sweep(tmp_path, cell_rows("2")) / "sweep.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=word):
        read_sweeps([tmp_path])


def test_files_that_are_no_json_are_refused(tmp_path):
    path = write_sweep(tmp_path, cell_rows("2")) / "sweep.json"
    path.write_text(path.read_text()[:-9])
    with pytest.raises(CheckpointError, match="is damaged"):
        read_sweeps([tmp_path])


def test_common_settings():
    assert common_settings([{"a": 1, "b": [2]}, {"a": 1, "b": [3], "c": 4}]) == {"a": 1}
    assert common_settings([{"a": 1}]) == {"a": 1}
    assert common_settings([]) == {}


def test_curves_of_the_helpers_end_with_the_mean_of_the_rows():
    rows = cell_rows("2")
    curve = cell_curves(rows)[1]
    assert curve["auc"][-1] == pytest.approx(np.mean([row["auc_step1"] for row in rows]), abs=1e-5)


def test_channels_that_follow_from_the_data_set_distinguish_no_methods(tmp_path):
    grey = write_sweep(tmp_path / "a", cell_rows("2"), settings={"channels": 1})
    colour = write_sweep(
        tmp_path / "b", cell_rows("2", dataset="cifar10"), settings={"channels": 3}
    )
    assert [method.settings for method in read_sweeps([grey, colour]).methods] == [{}, {}]
    other = write_sweep(tmp_path / "c", cell_rows("1"), settings={"channels": 3})
    settings = [method.settings for method in read_sweeps([grey, other]).methods]
    assert settings == [{"channels": 3}, {"channels": 1}]
