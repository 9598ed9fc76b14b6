"""The page of a run: its figures, that it needs nothing beside it, and that nothing is lost."""

import base64
import errno
import io
import json
import os
import re
import shutil
from html.parser import HTMLParser
from statistics import mean, stdev
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from image_helpers import picture, save
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import average_precision_score

from pkd.cli.main import main
from pkd.models.architecture import Architecture
from pkd.models.cost import cost
from pkd.models.ganomaly import Generator
from pkd.report.charts import ratio_axis, score_chart, training_charts
from pkd.report.reconstructions import reconstructions
from pkd.report.tables import compression, duration, short, times
from pkd.runs.folder import RunFolder
from pkd.runs.run import Run
from pkd.scoring.metrics import Verdicts
from pkd.scoring.novelty import novelty_scores
from pkd.training.config import TrainConfig

TINY = (
    *("--device", "cpu", "--latent", "8", "--batch-size", "2", "--max-train-images", "20"),
    *("--teacher-widths", "2-4-8", "--student-widths", "1-2-4"),
    *("--teacher-epochs", "2", "--step1-epochs", "1", "--step2-epochs", "1"),
)
HOSTILE = """<img src=x onerror=alert(1)>&'"{{ 7 * 7 }}"""


class Page(HTMLParser):
    """What a browser would make of a page: its elements, its text, and the rows of its tables."""

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
        """The cells of the one row with this name, without it."""
        (row,) = [row[1:] for row in self.rows if row and row[0] == name]
        return row


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two classes and two seeds, and its page."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["train", *TINY, "--normal-class", "3,7", "--seeds", "2", "--out", str(out)]) == 0
    assert main(["report", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A run of one class on the user's own colour images, whose other class has a hostile name."""
    root = tmp_path_factory.mktemp("own") / "data"
    for k in range(12):
        save(picture(k, colour=True), root / "train" / "good" / f"{k}.png")
    for k in range(4):
        save(picture(50 + k, colour=True), root / "test" / "good" / f"{k}.png")
        save(picture(90 + k, colour=True, novel=True), root / "test" / HOSTILE / f"{k}.png")
    out = root.parent / "run"
    own = ["--dataset", "folder", "--data-dir", str(root), "--structure", "2"]
    assert main(["train", *TINY, *own, "--out", str(out)]) == 0
    return out


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run, to be changed."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def refused(capsys):
    """refused(argv, *words): exit code 2, a message with all the words, no traceback."""

    def check(argv, *words):
        assert main([str(a) for a in argv]) == 2
        said = capsys.readouterr().err
        assert said.startswith("pkd: ")
        assert "Traceback" not in said
        assert [word for word in words if word not in said] == []

    return check


def page_of(run):
    return Page((run / "report.html").read_text(encoding="utf-8"))


def test_figures_are_those_of_results_json_and_of_the_scores(finished):
    results = json.loads((finished / "results.json").read_text())
    run = Run(RunFolder.open(finished), device="cpu")
    found = {3: {}, 7: {}}
    for phase in run.phases:
        run.load_phase(phase)
        network = run.networks[phase.network].generator
        scores = novelty_scores(network, run.test_images, len(run.members))
        for member, own in zip(results["members"], scores.T, strict=True):
            novel = run.dataset.test_labels != member["normal_class"]
            called = own > member["threshold"][phase.name]
            hits = (called & novel).sum()
            figures = found[member["normal_class"]].setdefault(phase.name, [])
            figures.append(
                {
                    "auc": member["auc"][phase.name],
                    "ap": average_precision_score(novel, own),
                    "f1": 2 * hits / (called.sum() + novel.sum()),
                    "alarms": called[~novel].mean(),
                    "found": hits / novel.sum(),
                }
            )
    asked = [("auc", phase, ".4f") for phase in ("teacher", "step1", "step2")]
    asked += [(name, phase, ".4f") for name in ("ap", "f1") for phase in ("teacher", "step2")]
    asked += [("alarms", "step2", ".1%"), ("found", "step2", ".1%")]
    page = page_of(finished)

    def cells(of):
        seeds = [[mean(own[p][s][n] for own in of) for s in (0, 1)] for n, p, _ in asked]
        return [f"{mean(v):{f}}± {stdev(v):{f}}" for v, (_, _, f) in zip(seeds, asked, strict=True)]

    assert page.row("3") == cells([found[3]])
    assert page.row("7") == cells([found[7]])
    assert page.row("mean") == cells(found.values())
    for phase, cell in zip(("teacher", "step1", "step2"), page.row("mean"), strict=False):
        assert cell.startswith(f"{results['mean_auc'][phase]:.4f}")
        assert cell.endswith(f"{results['std_auc'][phase]:.4f}")


def test_a_page_needs_nothing_beside_it(finished, photos, tmp_path):
    assert main(["report", str(photos), "--output", str(tmp_path / "own.html")]) == 0
    for file in (finished / "report.html", tmp_path / "own.html"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"https?:|//\w|url\(|@import", re.sub(r"base64,[\w+/=]+", "", text))
        page = Page(text)
        assert {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object"} == set()
        for _, attributes in page.elements:
            for name in ("src", "href", "srcset", "xlink:href"):
                assert attributes.get(name, "data:").startswith("data:")
            assert not [name for name in attributes if name.startswith("on")]
        assert len(text) < 3e6


def test_names_of_classes_are_text_and_nothing_else(photos, tmp_path):
    output = tmp_path / "report.html"
    assert main(["report", str(photos), "--output", str(output)]) == 0
    text = output.read_text(encoding="utf-8")
    assert "<img src=x" not in text
    page = Page(text)
    assert HOSTILE in page.text
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert any(attributes["alt"].startswith(HOSTILE) for attributes in images)
    assert all(attributes["src"].startswith("data:image/png;base64,") for attributes in images)


def test_one_class_and_one_step(photos, tmp_path):
    """No mean of classes, no spread over seeds, no second step, nothing of the paper's."""
    output = tmp_path / "report.html"
    assert main(["report", str(photos), "--output", str(output)]) == 0
    page = Page(output.read_text(encoding="utf-8"))
    results = json.loads((photos / "results.json").read_text())
    aucs = [results["members"][0]["auc"][phase] for phase in ("teacher", "step1")]
    assert page.row("good")[:2] == [f"{auc:.4f}" for auc in aucs]
    assert "±" not in page.text
    assert "step 2" not in page.text
    assert "paper" not in page.text
    assert [row[0] for row in page.rows if row][-2:] == ["teacher", "step 1"]


def test_pictures_are_the_most_normal_and_the_most_novel_test_images(photos, tmp_path):
    output = tmp_path / "report.html"
    assert main(["report", str(photos), "--output", str(output)]) == 0
    page = Page(output.read_text(encoding="utf-8"))
    sources = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    images = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))))
        for source in sources
    ]
    run = Run(RunFolder.open(photos), device="cpu")
    made = {}
    for phase in run.phases:
        run.load_phase(phase)
        network = run.networks[phase.network].generator.eval()
        with torch.no_grad():
            xh = network(run.test_images.float() / 127.5 - 1).xh
        made[phase.network] = (xh * 127.5 + 127.5).round().permute(0, 2, 3, 1).numpy()
    scores = novelty_scores(run.networks["student"].generator, run.test_images, 1)[:, 0]
    order = scores.argsort()
    chosen = [*order[:4], *order[: -4 - 1 : -1]]
    assert len(images) == len(chosen)
    for image, row in zip(images, chosen, strict=True):
        original, teacher, student = np.split(image.astype(float), 3)
        assert (original == run.test_images[row].permute(1, 2, 0).numpy()).all()
        assert abs(teacher - made["teacher"][row]).max() <= 1  # rounding of x.5
        assert abs(student - made["student"][row]).max() <= 1


def test_each_member_of_a_stack_reconstructs_its_own_images(finished):
    run = Run(RunFolder.open(finished), device="cpu")
    run.load_phase(run.phases[-1])
    network = run.networks["student"].generator
    images = run.test_images[:6].view(3, 2, 1, 32, 32)
    made = reconstructions(network, images, [2, 1])
    for place, member in enumerate((2, 1)):
        with torch.no_grad():  # every member sees the same images
            every = network(images[:, place].float() / 127.5 - 1).xh
        expected = every[:, member] * 127.5 + 127.5
        assert (made[:, place, 0] - expected).abs().max() <= 0.51


def test_reconstructions_are_made_where_the_networks_are():
    """Not where the images are: a GPU has them, but not the networks of several stacks."""
    network = Generator(Architecture(1, (1, 2, 4), latent=8), stack=3).to("meta")
    images = torch.zeros(6, 2, 1, 32, 32, dtype=torch.uint8)
    made = reconstructions(network, images, [2, 1])
    assert made.device.type == "meta" and made.shape == images.shape


def test_columns_of_the_histogram_end_at_the_threshold():
    """Scores at the threshold are called normal; those beyond the axis count in its last column."""
    scores = np.array([0.5, 1.0, 1.0, 1.5, 7.0, 900.0])
    novel = np.array([False, False, False, True, True, True])
    own = Verdicts(2 * scores, novel, 2.0, 1.0)
    chart = score_chart([own], ratio_axis([Verdicts(scores[:5], novel[:5], 1.0, 1.0)]))
    svg = ElementTree.fromstring(chart.markup())
    line = float(svg.find("line[@class='mark']").get("x1"))
    for kind, side in (("normal", -1), ("novel", 1)):
        path = svg.find(f"path[@class='area {kind}']").get("d")
        points = np.array(re.findall(r"[\d.]+", path), float).reshape(-1, 2)
        filled = points[points[:, 1] < points[:, 1].max(), 0]
        assert (side * (filled - line) >= 0).all()
        columns = points[:, 1].max() - points[1:-1:2, 1]
        assert sorted(columns[columns > 0] / columns.sum()) == pytest.approx(
            {"normal": [1 / 3, 2 / 3], "novel": [1 / 3] * 3}[kind], abs=0.01
        )


def test_training_curves_name_their_phases():
    """In full where there is room, in a letter where there is little."""

    def record(phase, network):
        losses = {network: {"generator": [2.0, 4.0], "discriminator": [0.0, 0.0]}}
        return {"phase": phase, "network": network, "auc": [0.5, 0.7], "losses": losses}

    teacher = [record("teacher", "teacher") | {"epoch": 1}]
    student = [record("step1", "student") | {"epoch": k + 1} for k in range(20)]
    for chart in training_charts(teacher + student):
        svg = ElementTree.fromstring(chart.markup())
        assert {"T", "step 1", "epoch"} <= {element.text for element in svg.iter("text")}
        (boundary,) = svg.iterfind("line[@class='mark']")
        dot = svg.find("circle[@class='dot teacher']")
        if dot is not None:  # the teacher's one epoch ends where its phase does
            assert dot.get("cx") == boundary.get("x1")
        assert not [path for path in svg.iter("path") if "discriminator" in path.get("class")]


def test_the_same_run_gives_the_same_page(finished, tmp_path):
    output = tmp_path / "again.html"
    assert main(["report", str(finished), "--output", str(output)]) == 0
    assert output.read_bytes() == (finished / "report.html").read_bytes()


def test_the_papers_figures_stand_beside_ours(copy, monkeypatch):
    monkeypatch.setattr("pkd.report.page.paper_class", lambda run, k, phase: k / 10)
    monkeypatch.setattr("pkd.report.page.paper_mean", lambda run, phase: 0.9 + len(phase) / 1000)
    assert main(["report", str(copy)]) == 0
    page = page_of(copy)
    for name, figures in (("3", [0.3] * 3), ("7", [0.7] * 3), ("mean", [0.907, 0.905, 0.905])):
        cells = page.row(name)
        assert [cell[-12:] for cell in cells[:3]] == [f"paper {value:.4f}" for value in figures]
        assert not [cell for cell in cells[3:] if "paper" in cell]
    assert "paper 0.9050" in page.text.split("normal class")[0]  # beside the student's AUC


@pytest.mark.parametrize(
    ("dataset", "widths", "paper"),
    [
        ("fashion_mnist", (1, 2, 4), [["105.44×", "700.00×"], ["105.45×", "700.00×"]]),
        ("fashion_mnist", (2, 4, 8), []),
        ("digits", (1, 2, 4), []),
    ],
)
def test_compression_beside_the_papers(dataset, widths, paper):
    config = TrainConfig(dataset=dataset, student_widths="-".join(map(str, widths)))
    sizes = {"teacher": (64, 128, 256), "student": widths}
    costs = {name: vars(cost(Architecture(1, of))) for name, of in sizes.items()}
    table = compression(config, costs)
    large, small = (cells[0].value for _, cells in table.rows)
    assert large == f"{costs['teacher']['parameters']:,}"
    ratio = costs["teacher"]["parameters"] / costs["student"]["parameters"]
    (_, honest), *printed = table.footer
    assert honest[0].value == f"{ratio:.2f}×"
    assert small == f"{round(costs['teacher']['parameters'] / ratio):,}"
    assert [[cell.value for cell in cells] for _, cells in printed] == paper


def test_earlier_report_is_replaced_and_other_files_are_kept(copy, tmp_path, refused):
    before = (copy / "report.html").read_text()
    (copy / "report.html").write_text(before + "old")
    assert main(["report", str(copy)]) == 0
    assert (copy / "report.html").read_text() == before
    letter = tmp_path / "letter.html"
    letter.write_text("<p>Dear all</p>")
    refused(["report", copy, "--output", letter], "letter.html", "exists", "another name")
    assert letter.read_text() == "<p>Dear all</p>"


def test_output_that_cannot_be_written(copy, tmp_path, refused, monkeypatch):
    refused(["report", copy, "--output", tmp_path], "is a folder")
    refused(["report", copy, "--output", tmp_path / "none" / "r.html"], "no folder", "make it")
    before = (copy / "report.html").read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused(["report", copy], "report.html", "No space left", "make room")
    assert (copy / "report.html").read_bytes() == before
    assert not list(copy.glob(".*.tmp"))


def test_run_that_is_not_finished(copy, refused):
    (copy / "results.json").unlink()
    (copy / "report.html").unlink()
    refused(["report", copy], "not finished", "pkd train --resume")
    assert not (copy / "report.html").exists()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda results: results.pop("cost"), "lacks 'cost'"),
        (lambda results: results["members"][0].pop("threshold"), "lacks 'threshold'"),
        (lambda results: results["members"].pop(), "does not fit config.yaml"),
        (lambda results: results["members"][0]["auc"].pop("step2"), "does not fit config.yaml"),
    ],
)
def test_results_of_another_version(copy, refused, change, word):
    results = json.loads((copy / "results.json").read_text())
    change(results)
    (copy / "results.json").write_text(json.dumps(results))
    refused(["report", copy], "results.json", word)


def rewritten(change):
    """A function that changes the tensors of a checkpoint."""

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
        (rewritten(lambda tensors: tensors.pop("test_scores")), "lacks scores"),
        (rewritten(lambda tensors: tensors["test_scores"].mul_(-1)), "another AUC"),
        (rewritten(lambda tensors: tensors["test_scores"][0].fill_(torch.nan)), "not finite"),
    ],
)
def test_damaged_checkpoint(copy, refused, damage, word):
    damage(copy / "checkpoints" / "step1.safetensors")
    before = (copy / "report.html").read_bytes()
    refused(["report", copy], "step1.safetensors", word, "restore")
    assert (copy / "report.html").read_bytes() == before


def test_other_images_than_those_of_the_run(photos, tmp_path, refused):
    root = shutil.copytree(photos.parent / "data", tmp_path / "data")
    save(picture(1000, colour=True), root / "test" / "good" / "new.png")
    argv = ["report", photos, "--output", tmp_path / "r.html", "--data-dir"]
    refused([*argv, root], "not those", "--data-dir")
    (root / "test" / "good" / "new.png").unlink()
    assert main([str(a) for a in (*argv, root)]) == 0


def test_numbers_in_words():
    assert [times(r) for r in (0.031, 24.4519, 711.6)] == ["0.03×", "24.45×", "712×"]
    assert [short(n) for n in (850, 78_600, 5_121_234, 2e9)] == ["850", "78.6k", "5.12M", "2G"]
    assert [duration(s) for s in (42.4, 60, 790, 3599, 7500)] == [
        *("42 s", "1 min", "13 min", "1 h 0 min", "2 h 5 min"),
    ]
