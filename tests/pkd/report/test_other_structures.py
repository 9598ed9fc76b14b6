"""Reports of runs with one network, of runs with teachers of other runs, and of unequal seeds."""

import base64
import io
import json
import re
import shutil
from statistics import mean

import numpy as np
import pytest
from PIL import Image

from pkd.cli.main import main
from pkd.models.cost import Cost
from pkd.report.formats import Cell
from pkd.report.tables import ClassMembers, metric_cell, size_tile
from pkd.scoring.metrics import MemberMetrics


def write_page(run, folder):
    """Write the report of a run into a folder; return its text."""
    output = folder / "report.html"
    assert main(["report", str(run), "--output", str(output), "--device", "cpu"]) == 0
    return output.read_text(encoding="utf-8")


def auc_of(run, phase):
    """Class name -> AUC of each seed."""
    aucs = {}
    for member in json.loads((run / "results.json").read_text())["members"]:
        aucs.setdefault(member["class_name"], []).append(member["auc"][phase])
    return aucs


def first_cells(page, name):
    """Texts of the cells of the first row with a name, without their notes."""
    row = re.search(rf"<tr><th>{name}</th>(.*?)</tr>", page, re.DOTALL)[1]
    return [re.sub("<.*", "", cell) for cell in re.findall(r"<td>(.*?)</td>", row, re.DOTALL)]


@pytest.mark.parametrize(
    ("fixture", "network", "other", "phase"),
    [
        ("student_only_run", "student", "teacher", "step1"),
        ("teacher_only_run", "teacher", "student", "teacher"),
    ],
)
def test_page_of_a_run_with_one_network(fixture, network, other, phase, request, tmp_path):
    run = request.getfixturevalue(fixture)
    page = write_page(run, tmp_path)
    text = page[page.index("<body>") :]
    text = re.sub(r"base64,[\w+/=]+", "", text[: text.index('<dl class="settings">')])
    assert other not in text
    assert "was trained alone, without distillation" in text
    assert f"AUC of the {network}" in text
    assert f"ROC curves of the {network}, with" in text
    assert "Multiply-adds per image" in text
    assert "Compression" not in text
    aucs = auc_of(run, phase)
    for name, values in aucs.items():
        assert first_cells(page, name)[0] == f"{mean(values):.4f}"
    overall = mean(map(mean, aucs.values()))
    assert first_cells(page, "mean")[0] == f"{overall:.4f}"
    sources = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    heights = {Image.open(io.BytesIO(base64.b64decode(source))).height for source in sources}
    assert heights == {2 * 32}  # input and one reconstruction


def test_page_of_a_run_with_teachers_of_another_run(shared_teachers_run, tmp_path):
    page = write_page(shared_teachers_run, tmp_path)
    assert "The teachers were trained by other runs." in page
    assert "; teachers of other runs" in page
    assert first_cells(page, "teacher")[-1] == "other runs"
    for name, (auc,) in auc_of(shared_teachers_run, "teacher").items():
        assert first_cells(page, name)[0] == f"{auc:.4f}"


def test_report_of_a_run_whose_teachers_changed(
    shared_teachers_run, teacher_only_run, tmp_path, refused
):
    """The reconstructions need the weights of the teachers."""
    distilled = shutil.copytree(shared_teachers_run, tmp_path / "distilled")
    config = distilled / "config.yaml"
    missing = tmp_path / "gone"
    config.write_text(config.read_text().replace(str(teacher_only_run), str(missing)))
    refused(["report", distilled], missing, "is not a run folder")
    assert not (distilled / "report.html").exists()


def test_structures_are_named_in_the_table_of_phases(
    student_only_run, teacher_only_run, shared_teachers_run, tmp_path
):
    names = {
        student_only_run: {"step 1": "student alone"},
        teacher_only_run: {"teacher": "GANomaly"},
        shared_teachers_run: {"teacher": "GANomaly", "step 1": "KDGAN-2"},
    }
    for run, structures in names.items():
        page = write_page(run, tmp_path)
        (tmp_path / "report.html").unlink()
        phases = page[page.index("<th>trained networks</th>") :]
        for phase, structure in structures.items():
            assert first_cells(phases, phase)[0] == structure


def metrics_with_auc(auc):
    return MemberMetrics(np.array([False, True]), np.array([0.0, 1.0]), 0.5, auc)


def test_mean_and_spread_of_classes_with_the_same_and_with_different_seeds():
    metrics = [metrics_with_auc(auc) for auc in (0.5, 0.7, 0.9, 0.7)]
    same = [ClassMembers(0, "a", {0: 0, 1: 1}), ClassMembers(1, "b", {0: 2, 1: 3})]
    assert metric_cell(metrics, same, "auc") == Cell("0.7000", "± 0.0000")
    assert metric_cell(metrics, same[:1], "auc") == Cell("0.6000", "± 0.1414")
    different = [ClassMembers(0, "a", {0: 0, 1: 1}), ClassMembers(1, "b", {0: 2})]
    assert metric_cell(metrics, different, "auc") == Cell("0.7500")


def test_size_tile():
    costs = {"teacher": vars(Cost(5_000_000, 56_000_000)), "student": vars(Cost(100_000, 560_000))}
    assert size_tile(costs)["cell"].value == "100×"
    assert size_tile(costs)["note"] == "560k multiply-adds per image, teacher 56M"
    alone = size_tile({"student": costs["student"]})
    assert (alone["cell"].value, alone["note"]) == ("560k", "100k parameters")
