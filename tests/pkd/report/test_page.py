"""`pkd report`: content of the page, no references to other files, and errors that keep files."""

import base64
import errno
import io
import json
import os
import re
import shutil
from html.parser import HTMLParser
from statistics import mean, stdev

import numpy as np
import pytest
import torch
from image_helpers import picture, save
from PIL import Image
from run_helpers import remove_checksums
from safetensors.torch import load_file, save_file
from sklearn.metrics import average_precision_score

from pkd.cli.main import main
from pkd.runs.run import Run
from pkd.runs.run_parts import compute_parts

TINY = (
    *("--structure", "progressive-23"),
    *("--device", "cpu", "--latent", "8", "--batch-size", "2", "--max-train-images", "20"),
    *("--teacher-widths", "2-4-8", "--student-widths", "1-2-4"),
    *("--teacher-epochs", "1", "--step1-epochs", "1"),
)
HOSTILE = """<img src=x onerror=alert(1)>&'"{{ 7 * 7 }}"""


class Page(HTMLParser):
    """The elements of a page, its text, and the rows of its tables."""

    def __init__(self, text):
        super().__init__()
        self.text, self.elements, self.rows, self.in_cell = "", [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell &= tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self.in_cell:
            self.rows[-1][-1] += data

    def row(self, name):
        """The cells after the name of the only row with this name."""
        (row,) = [row[1:] for row in self.rows if row and row[0] == name]
        return row


@pytest.fixture(scope="module")
def finished(small_run, tmp_path_factory):
    """A run of the digits 3 and 5 with two seeds, and its page."""
    out = shutil.copytree(small_run, tmp_path_factory.mktemp("runs") / "digits")
    assert main(["report", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A run of one class on colour images of a folder; the name of the other class is hostile."""
    root = tmp_path_factory.mktemp("own") / "data"
    for k in range(12):
        save(picture(k, colour=True), root / "train" / "good" / f"{k}.png")
    for k in range(4):
        save(picture(50 + k, colour=True), root / "test" / "good" / f"{k}.png")
        save(picture(90 + k, colour=True, novel=True), root / "test" / HOSTILE / f"{k}.png")
    out = root.parent / "run"
    data = ["--dataset", "folder", "--data-dir", str(root), "--structure", "2"]
    assert main(["train", *TINY, *data, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def photos_page(photos, tmp_path_factory):
    """The page of `photos`."""
    output = tmp_path_factory.mktemp("pages") / "photos.html"
    assert main(["report", str(photos), "--output", str(output)]) == 0
    return output.read_text(encoding="utf-8")


def open_run(folder):
    return Run.open(folder, device="cpu")


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run that a test may change."""
    return shutil.copytree(finished, tmp_path / "run")


def page_of(run):
    return Page((run / "report.html").read_text(encoding="utf-8"))


def test_numbers_agree_with_results_json_and_with_the_scores(finished):
    results = json.loads((finished / "results.json").read_text())
    run = open_run(finished)
    metrics = {3: {}, 5: {}}  # class -> phase -> metrics of each seed
    for phase in run.phases:
        run.load_phase(phase)
        scores = compute_parts(run, phase.network).test_scores(run.score_rule)
        for member, y_score in zip(results["members"], scores.T, strict=True):
            y_true = run.dataset.test_labels != member["normal_class"]
            y_pred = y_score > member["threshold"][phase.name]
            true_positives = (y_pred & y_true).sum()
            metrics[member["normal_class"]].setdefault(phase.name, []).append(
                {
                    "auc": member["auc"][phase.name],
                    "ap": average_precision_score(y_true, y_score),
                    "f1": 2 * true_positives / (y_pred.sum() + y_true.sum()),
                    "fpr": y_pred[~y_true].mean(),
                    "recall": true_positives / y_true.sum(),
                }
            )
    columns = [("auc", phase, ".4f") for phase in ("teacher", "step1", "step2")]
    columns += [(name, phase, ".4f") for name in ("ap", "f1") for phase in ("teacher", "step2")]
    columns += [("fpr", "step2", ".1%"), ("recall", "step2", ".1%")]
    page = page_of(finished)

    def cells(classes):
        values = [[mean(one[p][s][n] for one in classes) for s in (0, 1)] for n, p, _ in columns]
        return [
            f"{mean(seeds):{form}}± {stdev(seeds):{form}}"
            for seeds, (_, _, form) in zip(values, columns, strict=True)
        ]

    assert page.row("3") == cells([metrics[3]])
    assert page.row("5") == cells([metrics[5]])
    assert page.row("mean") == cells(metrics.values())
    for phase, cell in zip(("teacher", "step1", "step2"), page.row("mean"), strict=False):
        assert cell.startswith(f"{results['mean_auc'][phase]:.4f}")
        assert cell.endswith(f"{results['std_auc'][phase]:.4f}")


def test_a_page_refers_to_no_other_file(finished, photos_page):
    for text in ((finished / "report.html").read_text(encoding="utf-8"), photos_page):
        assert not re.search(r"https?:|//\w|url\(|@import", re.sub(r"base64,[\w+/=]+", "", text))
        page = Page(text)
        assert {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object"} == set()
        for _, attributes in page.elements:
            for name in ("src", "href", "srcset", "xlink:href"):
                assert attributes.get(name, "data:").startswith("data:")
            assert not [name for name in attributes if name.startswith("on")]
        assert len(text) < 3e6


def test_a_page_has_the_charts_of_each_class_and_of_the_training(finished):
    page = page_of(finished)
    labels = [attributes["aria-label"] for _, attributes in page.elements if "role" in attributes]
    assert labels == [
        "AUC over epochs",
        "Losses over epochs",
        "Histogram of scores, normal class 3",
        "ROC curves, normal class 3",
        "Histogram of scores, normal class 5",
        "ROC curves, normal class 5",
    ]
    assert not [attributes for _, attributes in page.elements if "id" in attributes]


def test_hostile_class_names_stay_text(photos_page):
    assert "<img src=x" not in photos_page
    page = Page(photos_page)
    assert HOSTILE in page.text
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert any(attributes["alt"].startswith(HOSTILE) for attributes in images)
    assert all(attributes["src"].startswith("data:image/png;base64,") for attributes in images)


def test_page_of_one_class_one_seed_and_one_step(photos, photos_page):
    """Without means over classes, standard deviations, a second step and the paper's numbers."""
    page = Page(photos_page)
    results = json.loads((photos / "results.json").read_text())
    aucs = [results["members"][0]["auc"][phase] for phase in ("teacher", "step1")]
    assert page.row("good")[:2] == [f"{auc:.4f}" for auc in aucs]
    assert "±" not in page.text
    assert "step 2" not in page.text
    assert "paper" not in page.text
    assert [row[0] for row in page.rows if row][-2:] == ["teacher", "step 1"]


def test_examples_are_the_most_normal_and_the_most_novel_test_images(photos, photos_page):
    page = Page(photos_page)
    sources = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    images = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))))
        for source in sources
    ]
    run = open_run(photos)
    reconstructions = {}
    for phase in run.phases:
        run.load_phase(phase)
        network = run.networks[phase.network].generator.eval()
        with torch.no_grad():
            xh = network(run.test_images.float() / 127.5 - 1).xh
        reconstructions[phase.network] = (xh * 127.5 + 127.5).round().permute(0, 2, 3, 1).numpy()
    scores = compute_parts(run, "student").test_scores(run.score_rule)[:, 0]
    order = scores.argsort()
    chosen = [*order[:4], *order[: -4 - 1 : -1]]
    assert len(images) == len(chosen)
    for image, row in zip(images, chosen, strict=True):
        original, teacher, student = np.split(image.astype(float), 3)
        assert (original == run.test_images[row].permute(1, 2, 0).numpy()).all()
        assert abs(teacher - reconstructions["teacher"][row]).max() <= 1  # rounding of x.5
        assert abs(student - reconstructions["student"][row]).max() <= 1


def test_the_same_run_gives_the_same_page(finished, tmp_path):
    output = tmp_path / "again.html"
    assert main(["report", str(finished), "--output", str(output)]) == 0
    assert output.read_bytes() == (finished / "report.html").read_bytes()


def test_the_numbers_of_the_paper_are_shown(copy, monkeypatch):
    monkeypatch.setattr("pkd.report.tables.paper_class", lambda results, k, phase: k / 10)
    monkeypatch.setattr(
        "pkd.report.tables.paper_mean", lambda results, phase: 0.9 + len(phase) / 1000
    )
    assert main(["report", str(copy)]) == 0
    page = page_of(copy)
    for name, aucs in (("3", [0.3] * 3), ("5", [0.5] * 3), ("mean", [0.907, 0.905, 0.905])):
        cells = page.row(name)
        assert [cell[-12:] for cell in cells[:3]] == [f"paper {auc:.4f}" for auc in aucs]
        assert not [cell for cell in cells[3:] if "paper" in cell]
    assert "paper 0.9050" in page.text.split("normal class")[0]  # in the tile of the student's AUC


def test_an_earlier_report_in_the_run_folder_is_replaced(copy):
    before = (copy / "report.html").read_text()
    (copy / "report.html").write_text(before + "old")
    assert main(["report", str(copy)]) == 0
    assert (copy / "report.html").read_text() == before


def test_other_files_are_replaced_only_with_overwrite(copy, tmp_path, refused):
    report = (copy / "report.html").read_bytes()
    (tmp_path / "earlier.html").write_bytes(report)
    (tmp_path / "letter.html").write_text("<p>Dear all</p>")
    (copy / "report.html").write_text("<p>Dear all</p>")
    for output in (
        ["--output", tmp_path / "letter.html"],
        ["--output", tmp_path / "earlier.html"],
        [],
    ):
        refused(["report", copy, *output], ".html", "exists", "overwrite")
    assert (tmp_path / "letter.html").read_text() == "<p>Dear all</p>"
    assert (copy / "report.html").read_text() == "<p>Dear all</p>"
    letter = str(tmp_path / "letter.html")
    assert main(["report", str(copy), "--output", letter, "--overwrite"]) == 0
    assert (tmp_path / "letter.html").read_bytes() == report


def test_output_that_cannot_be_written(copy, tmp_path, refused, monkeypatch):
    refused(["report", copy, "--output", tmp_path], "is a folder")
    refused(["report", copy, "--output", tmp_path / "none" / "r.html"], "No such file", "none")
    before = (copy / "report.html").read_bytes()

    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    refused(["report", copy], "report.html", "No space left", "free disk space")
    assert (copy / "report.html").read_bytes() == before
    assert not list(copy.glob(".*.tmp"))


def test_unfinished_run(copy, refused):
    (copy / "results.json").unlink()
    (copy / "report.html").unlink()
    refused(["report", copy], "not finished", "pkd train --resume")
    assert not (copy / "report.html").exists()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda results: results.pop("cost"), "lacks cost"),
        (lambda results: results["members"][1].pop("threshold"), "lacks 'threshold'"),
        (lambda results: results["members"].pop(), "another number of members"),
        (lambda results: results["members"][0]["auc"].pop("step2"), "does not fit config.yaml"),
    ],
)
def test_results_that_do_not_fit_the_run(copy, refused, change, word):
    results = json.loads((remove_checksums(copy) / "results.json").read_text())
    change(results)
    (copy / "results.json").write_text(json.dumps(results))
    refused(["report", copy], "results.json", word)


def change_tensors(change):
    """A function that changes the tensors of a checkpoint file."""

    def damage(path):
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return damage


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "truncated"),
        (change_tensors(lambda tensors: tensors["test_scores"].resize_(3, 4)), "does not fit"),
        (change_tensors(lambda tensors: tensors["test_scores"].mul_(-1)), "another AUC"),
        (change_tensors(lambda tensors: tensors["test_scores"][0].fill_(torch.nan)), "not finite"),
    ],
)
def test_damaged_checkpoint(copy, refused, damage, word):
    damage(remove_checksums(copy) / "checkpoints" / "step1.safetensors")
    before = (copy / "report.html").read_bytes()
    refused(["report", copy], "step1.safetensors", word, "restore")
    assert (copy / "report.html").read_bytes() == before


def test_run_of_an_earlier_version_without_test_scores_and_thresholds(copy):
    """Both are computed."""
    remove_scores = change_tensors(lambda tensors: tensors.pop("test_scores"))
    remove_scores(remove_checksums(copy) / "checkpoints" / "step1.safetensors")
    results = json.loads((copy / "results.json").read_text())
    for member in results["members"]:
        del member["threshold"]
    (copy / "results.json").write_text(json.dumps(results))
    before = (copy / "report.html").read_bytes()
    assert main(["report", str(copy)]) == 0
    assert (copy / "report.html").read_bytes() == before


def test_images_that_have_changed_since_the_training(photos, tmp_path, refused):
    root = shutil.copytree(photos.parent / "data", tmp_path / "data")
    save(picture(1000, colour=True), root / "test" / "good" / "new.png")
    argv = ["report", photos, "--output", tmp_path / "r.html", "--data-dir"]
    refused([*argv, root], "not those", "--data-dir")
    (root / "test" / "good" / "new.png").unlink()
    assert main([str(a) for a in (*argv, root)]) == 0
