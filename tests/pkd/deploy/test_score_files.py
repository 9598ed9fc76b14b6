"""Scores of image files: the same from a run and from its ONNX file, and that one without torch."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from image_helpers import picture, save

from pkd.cli.main import main
from pkd.data.image_files import read_image
from pkd.deploy import score_files as score
from pkd.deploy.inference import Card, open_onnx
from pkd.deploy.score_files import BATCH, Row, score_files
from pkd.utils.errors import PkdError

CARD = Card("student", "folder", 0, "good", 0, 1, 16, 100.0, 0.05, "0.1.0")
CHOICE = ("--normal-class", "5", "--seed", "1")  # what small_onnx is of


@pytest.fixture
def photos(tmp_path):
    """A folder with folders of greys."""
    folder = tmp_path / "photos ü"
    for k, name in enumerate(("a.png", "deep/er/b.png", "deep/c.PNG")):
        save(picture(k), folder / name)
    (folder / "notes.txt").touch()
    return folder


def brightness(images):
    return images.mean((1, 2, 3), np.float32)


def scored(*arguments):
    return main(["score", *map(str, arguments)])


def rows_of(text):
    return list(csv.DictReader(text.splitlines()))


def test_every_image_below_a_folder_is_scored(small_onnx, photos, capsys):
    assert scored(small_onnx, photos) == 0
    rows = rows_of(capsys.readouterr().out)
    names = ("a.png", "deep/c.PNG", "deep/er/b.png")
    assert [row["image"] for row in rows] == [str(photos / name) for name in names]
    card, in_onnx = open_onnx(small_onnx)
    images = np.stack([read_image(photos / name, False, 32) for name in names])
    np.testing.assert_allclose([float(r["score"]) for r in rows], in_onnx(images), rtol=1e-5)
    assert {float(row["threshold"]) for row in rows} == {card.threshold}


def test_a_run_scores_as_its_exported_student(small_run, small_onnx, photos, capsys):
    found = []
    for detector in ((small_run, *CHOICE), (small_onnx,)):
        assert scored(detector[0], photos, photos / "a.png", *detector[1:]) == 0
        found.append(rows_of(capsys.readouterr().out))
    of_run, of_file = ([float(row.pop("score")) for row in rows] for rows in found)
    np.testing.assert_allclose(of_file, of_run, rtol=1e-4)
    assert found[0] == found[1]
    assert len(of_run) == 4


def test_verdicts_stand_on_the_threshold(photos):
    values = iter([np.float32([99.9, 100.0, 100.1])])
    rows = list(score_files(sorted(photos.rglob("*.[pP]*")), CARD, lambda _: next(values)))
    assert [row.verdict for row in rows] == ["normal", "normal", "novel"]
    nan = score_files([photos / "a.png"], CARD, lambda _: np.float32([np.nan]))
    assert [row.verdict for row in nan] == ["novel"]  # never normal unseen


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_files_say_what_is_printed(suffix, small_onnx, photos, tmp_path, capsys):
    output = tmp_path / f"scores{suffix}"
    assert scored(small_onnx, photos) == 0
    printed = rows_of(capsys.readouterr().out)
    assert scored(small_onnx, photos, "--output", output) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "scoring" in said.err
    text = output.read_text(encoding="utf-8")
    written = rows_of(text) if suffix == ".csv" else json.loads(text)
    assert [{k: str(v) for k, v in row.items()} for row in written] == printed


def test_scoring_by_an_onnx_file_needs_no_torch(small_onnx, photos):
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv[0] = 'pkd'; "
        "from pkd.__main__ import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", code, "score", small_onnx, photos]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(rows_of(done.stdout)) == 3


def test_no_more_than_a_batch_of_images_is_in_memory(photos, monkeypatch):
    read, sizes = [], []
    monkeypatch.setattr(
        score, "read_image", lambda path, *_: read.append(path) or np.zeros((1, 16, 16), np.uint8)
    )

    def batch(images):
        sizes.append(len(images))
        return brightness(images)

    many = iter([photos / "a.png"] * (2 * BATCH + 1))
    rows = score_files(many, CARD, batch)
    for k in range(BATCH):
        next(rows)
        assert len(read) == BATCH, k
    assert len(list(rows)) == BATCH + 1
    assert sizes == [BATCH, BATCH, 1]


@pytest.fixture
def spoilt(photos):
    """The photos with one that is cut and one in colour."""
    save(picture(7, 40), photos / "b.png").write_bytes(b"\x89PNG")
    save(picture(8, colour=True), photos / "c.png")
    return photos


def test_images_that_cannot_be_used_are_named(small_onnx, spoilt, tmp_path, refused):
    output = tmp_path / "scores.csv"
    output.write_text("dear")
    words = ("2 images", spoilt / "b.png", f"{spoilt / 'c.png'}: it is in colour", "--skip-bad")
    refused(("score", small_onnx, spoilt, "--output", output, "--overwrite"), *words)
    assert output.read_text() == "dear"
    assert sorted(p.name for p in tmp_path.iterdir()) == [spoilt.name, output.name]


def test_images_that_cannot_be_used_are_left_out_with_a_count(small_onnx, spoilt, capsys):
    assert scored(small_onnx, spoilt, spoilt / "missing.png", "--skip-bad") == 0
    said = capsys.readouterr()
    assert len(rows_of(said.out)) == 3
    assert "images left out: 3" in said.err
    for name in ("b.png", "c.png", "missing.png"):
        assert str(spoilt / name) in said.err


def test_nothing_is_written_where_no_image_can_be_used(small_onnx, spoilt, tmp_path, capsys):
    output, bad = tmp_path / "scores.csv", (spoilt / "b.png", spoilt / "c.png")
    assert scored(small_onnx, *bad, "--skip-bad", "--output", output) == 2
    said = capsys.readouterr().err
    assert "images left out: 2" in said
    assert all(str(path) in said for path in bad)
    assert "pkd: none of the images can be used" in said
    assert not output.exists()


def test_a_detector_of_colours_takes_greys_too(tmp_path):
    grey, red = (
        save(picture(0), tmp_path / "grey.png"),
        save(picture(0, colour=True), tmp_path / "r.png"),
    )
    card = Card(**vars(CARD) | {"channels": 3})
    rows = list(score_files([grey, red], card, brightness))
    assert [type(row) for row in rows] == [Row, Row]
    with pytest.raises(PkdError, match="convert it to grey"):
        list(score_files([grey, red], CARD, brightness))


def test_whoever_has_read_enough_breaks_nothing(small_onnx, photos):
    many = " ." * 3000  # more rows than a pipe holds
    command = f"{sys.executable} -m pkd score {small_onnx} {many} | head -1"
    done = subprocess.run(command, shell=True, cwd=photos, capture_output=True, text=True)
    assert done.stdout == "image,score,threshold,verdict\n"
    assert "Error" not in done.stderr


def other_graph(file: Path, **metadata: str) -> Path:
    """An ONNX file that anybody might have."""
    value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in ("a", "b")]
    node = onnx.helper.make_node("Identity", ["a"], ["b"])
    graph = onnx.helper.make_graph([node], "graph", value[:1], value[1:])
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8
    )
    for key, text in metadata.items():
        model.metadata_props.add(key=key.replace("_", "."), value=text)
    file.write_bytes(model.SerializeToString())
    return file


def test_files_that_are_not_ours(small_onnx, photos, tmp_path, refused):
    text = tmp_path / "text.onnx"
    text.write_text("no graph")
    refused(("score", text, photos), f"{text} is no ONNX file", "pkd export")
    refused(("score", tmp_path / "none.onnx", photos), "none.onnx cannot be read", "run folder")
    foreign = other_graph(tmp_path / "foreign.onnx")
    refused(("score", foreign, photos), "not one that this version of pkd export wrote")
    future = other_graph(tmp_path / "future.onnx", pkd_format="2")
    refused(("score", future, photos), "pkd.format is 2, not 1", "export the run again")
    half = other_graph(tmp_path / "half.onnx", pkd_format="1")
    refused(("score", half, photos), "'pkd.network'", "export the run again")
    refused(("score", photos, photos), "is not a run folder")


def test_what_scoring_refuses_of_its_flags(small_run, small_onnx, photos, tmp_path, refused):
    refused(("score", small_onnx, photos, *CHOICE), "--normal-class, --seed", "leave it out")
    refused(("score", small_run, photos), "--normal-class is not given", "3 3, 5 5")
    refused(("score", small_onnx, photos, "--output", "scores.txt"), "must end in .csv or .json")
    refused(("score", small_onnx, photos / "none"), "none", "No such file")
    (tmp_path / "empty").mkdir()
    refused(("score", small_onnx, tmp_path / "empty"), "empty holds no images")
    refused(("score", small_onnx), "images", "--help")
    (tmp_path / "taken.csv").write_text("dear")
    refused(("score", small_onnx, photos, "--output", tmp_path / "taken.csv"), "--overwrite")
    assert (tmp_path / "taken.csv").read_text() == "dear"
