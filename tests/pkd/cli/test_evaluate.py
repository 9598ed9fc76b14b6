"""`pkd evaluate`: the AUC of a run, without a change of its folder."""

import json

import pytest
from run_helpers import PHASES, file_contents, remove_checksums, table_rows
from safetensors.torch import load_file, save_file

from pkd.cli.main import main


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_evaluate_prints_the_auc_of_the_training_and_writes_nothing(
    finished_run, capsys, monkeypatch, columns
):
    monkeypatch.setenv("COLUMNS", columns)
    before = file_contents(finished_run)
    assert main(["evaluate", str(finished_run)]) == 0
    assert file_contents(finished_run) == before
    rows = table_rows(capsys.readouterr().out)
    results = json.loads((finished_run / "results.json").read_text())
    assert rows[0] == ["normal class", "seed", *PHASES]
    for row, member in zip(rows[1:5], results["members"], strict=True):
        name = f"{member['normal_class']} {member['class_name']}"
        auc = [f"{member['auc'][phase]:.4f}" for phase in PHASES]
        assert row == [name, str(member["seed"]), *auc]
    assert rows[5] == ["mean", "", *(f"{results['mean_auc'][phase]:.4f}" for phase in PHASES)]
    assert rows[6][0] == "std over seeds"
    assert rows[6][2:] == [f"{results['std_auc'][phase]:.4f}" for phase in PHASES]


def test_evaluate_needs_a_finished_phase(refused, tmp_path, finished_run):
    config = (finished_run / "config.yaml").read_bytes()
    (tmp_path / "config.yaml").write_bytes(config)
    refused(["evaluate", tmp_path], "no finished phase", "--resume", unchanged=tmp_path)


def test_ctrl_c_during_evaluation_ends_without_a_traceback(finished_run, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pkd.cli.evaluate.evaluate", interrupt)
    assert main(["evaluate", str(finished_run)]) == 130
    assert capsys.readouterr().err == "pkd: interrupted\n"


def test_a_checkpoint_without_scores_of_held_out_images_is_refused(refused, run_copy):
    """Results need them for the thresholds; evaluation does not."""
    path = remove_checksums(run_copy) / "checkpoints" / "step1.safetensors"
    tensors = {k: v for k, v in load_file(path).items() if not k.startswith("held_out")}
    save_file(tensors, path)
    words = ("step1.safetensors", "held-out images for 0 of 4", "restore")
    assert main(["evaluate", str(run_copy)]) == 0
    (run_copy / "results.json").unlink()
    refused(["train", "--resume", run_copy], *words, unchanged=run_copy)


@pytest.mark.parametrize(
    ("fixture", "phases"),
    [
        ("student_only_run", ["step1"]),
        ("teacher_only_run", ["teacher"]),
        ("shared_teachers_run", ["teacher", "step1"]),
    ],
)
def test_evaluate_runs_with_one_network_or_teachers_of_other_runs(fixture, phases, request, capsys):
    run = request.getfixturevalue(fixture)
    assert main(["evaluate", str(run)]) == 0
    rows = table_rows(capsys.readouterr().out)
    results = json.loads((run / "results.json").read_text())
    assert rows[0] == ["normal class", "seed", *phases]
    for row, member in zip(rows[1:], results["members"], strict=False):
        assert row[2:] == [f"{member['auc'][phase]:.4f}" for phase in phases]
    assert [row[0] for row in rows[len(results["members"]) + 1 :]][:1] == ["mean"]
