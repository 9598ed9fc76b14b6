"""Scores of image files by a run and by its ONNX file, which needs no torch."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from image_helpers import picture, save

from pkd.cli.main import main
from pkd.data.image_files import read_image
from pkd.deploy.inference import DetectorInfo, open_onnx
from pkd.deploy.score_files import BATCH_SIZE, ImageScore, score_files
from pkd.utils.errors import PkdError

INFO = DetectorInfo("student", "folder", 0, "good", 0, 1, 16, 100.0, 0.05, "0.1.0")
SELECTION = ("--normal-class", "5", "--seed", "1")  # of the detector in small_onnx


@pytest.fixture
def photos(tmp_path):
    """A folder with three grey images, two of them in subfolders."""
    folder = tmp_path / "photos ü"
    for k, name in enumerate(("a.png", "deep/er/b.png", "deep/c.PNG")):
        save(picture(k), folder / name)
    (folder / "notes.txt").touch()
    return folder


def brightness(images):
    return images.mean((1, 2, 3), np.float32)


def score_command(*arguments):
    """Exit code of `pkd score`."""
    return main(["score", *map(str, arguments)])


def rows_of(text):
    return list(csv.DictReader(text.splitlines()))


def test_every_image_below_a_folder_is_scored(small_onnx, photos, capsys):
    assert score_command(small_onnx, photos) == 0
    rows = rows_of(capsys.readouterr().out)
    names = ("a.png", "deep/c.PNG", "deep/er/b.png")
    assert [row["image"] for row in rows] == [str(photos / name) for name in names]
    info, score = open_onnx(small_onnx)
    images = np.stack([read_image(photos / name, False, 32) for name in names])
    np.testing.assert_allclose([float(row["score"]) for row in rows], score(images), rtol=1e-5)
    assert {float(row["threshold"]) for row in rows} == {info.threshold}


def test_run_and_its_exported_student_give_the_same_scores(small_run, small_onnx, photos, capsys):
    tables = []
    for detector in ((small_run, *SELECTION), (small_onnx,)):
        assert score_command(detector[0], photos, photos / "a.png", *detector[1:]) == 0
        tables.append(rows_of(capsys.readouterr().out))
    run_scores, file_scores = ([float(row.pop("score")) for row in rows] for rows in tables)
    np.testing.assert_allclose(file_scores, run_scores, rtol=1e-4)
    assert tables[0] == tables[1]
    assert len(run_scores) == 4


def test_only_scores_above_the_threshold_are_novel(photos):
    values = np.float32([99.9, 100.0, 100.1])
    rows = list(score_files(sorted(photos.rglob("*.[pP]*")), INFO, lambda _: values))
    assert [row.verdict for row in rows] == ["normal", "normal", "novel"]
    nan = score_files([photos / "a.png"], INFO, lambda _: np.float32([np.nan]))
    assert [row.verdict for row in nan] == ["novel"]  # an invalid score must not pass as normal


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_written_rows_equal_the_printed_ones(suffix, small_onnx, photos, tmp_path, capsys):
    output = tmp_path / f"scores{suffix}"
    assert score_command(small_onnx, photos) == 0
    printed = rows_of(capsys.readouterr().out)
    assert score_command(small_onnx, photos, "--output", output) == 0
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "scoring" in streams.err
    text = output.read_text(encoding="utf-8")
    written = rows_of(text) if suffix == ".csv" else json.loads(text)
    assert [{k: str(v) for k, v in row.items()} for row in written] == printed


def test_scoring_with_an_onnx_file_needs_no_torch(small_onnx, photos):
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv[0] = 'pkd'; "
        "from pkd.__main__ import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", code, "score", small_onnx, photos]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert len(rows_of(process.stdout)) == 3


def test_images_are_read_one_batch_at_a_time(photos, monkeypatch):
    paths, sizes = [], []

    def read(path, *_):
        paths.append(path)
        return np.zeros((1, 16, 16), np.uint8)

    def score(images):
        sizes.append(len(images))
        return brightness(images)

    monkeypatch.setattr("pkd.deploy.score_files.read_image", read)
    many = iter([photos / "a.png"] * (2 * BATCH_SIZE + 1))
    rows = score_files(many, INFO, score)
    for k in range(BATCH_SIZE):
        next(rows)
        assert len(paths) == BATCH_SIZE, k
    assert len(list(rows)) == BATCH_SIZE + 1
    assert sizes == [BATCH_SIZE, BATCH_SIZE, 1]


@pytest.fixture
def mixed(photos):
    """The photos, a truncated file and an image in colour."""
    save(picture(7, 40), photos / "b.png").write_bytes(b"\x89PNG")
    save(picture(8, colour=True), photos / "c.png")
    return photos


def test_error_names_the_images_that_cannot_be_used(small_onnx, mixed, tmp_path, refused):
    output = tmp_path / "scores.csv"
    output.write_text("old content")
    words = (
        "2 images",
        mixed / "b.png",
        f"{mixed / 'c.png'}: it is in colour",
        "--skip-bad",
    )
    refused(("score", small_onnx, mixed, "--output", output, "--overwrite"), *words)
    assert output.read_text() == "old content"
    assert sorted(p.name for p in tmp_path.iterdir()) == [mixed.name, output.name]


def test_skip_bad_leaves_images_out_and_prints_their_count(small_onnx, mixed, capsys):
    assert score_command(small_onnx, mixed, mixed / "missing.png", "--skip-bad") == 0
    streams = capsys.readouterr()
    assert len(rows_of(streams.out)) == 3
    assert "images left out: 3" in streams.err
    for name in ("b.png", "c.png", "missing.png"):
        assert str(mixed / name) in streams.err


def test_nothing_is_written_if_no_image_can_be_used(small_onnx, mixed, tmp_path, capsys):
    output, bad = tmp_path / "scores.csv", (mixed / "b.png", mixed / "c.png")
    assert score_command(small_onnx, *bad, "--skip-bad", "--output", output) == 2
    printed = capsys.readouterr().err
    assert "images left out: 2" in printed
    assert all(str(path) in printed for path in bad)
    assert "pkd: none of the images can be used" in printed
    assert not output.exists()


def test_rgb_detector_accepts_grey_images_and_a_grey_one_refuses_rgb(tmp_path):
    grey = save(picture(0), tmp_path / "grey.png")
    rgb = save(picture(0, colour=True), tmp_path / "rgb.png")
    rows = list(score_files([grey, rgb], replace(INFO, channels=3), brightness))
    assert [type(row) for row in rows] == [ImageScore, ImageScore]
    with pytest.raises(PkdError, match="convert it to grey"):
        list(score_files([grey, rgb], INFO, brightness))


def test_closed_pipe_ends_without_an_error(small_onnx, photos):
    many = " ." * 3000  # more rows than a pipe holds
    command = f"{sys.executable} -m pkd score {small_onnx} {many} | head -1"
    process = subprocess.run(command, shell=True, cwd=photos, capture_output=True, text=True)
    assert process.stdout == "image,score,threshold,verdict\n"
    assert "Error" not in process.stderr


def other_graph(file: Path, **metadata: str) -> Path:
    """An ONNX file of another program, with some metadata."""
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


def test_files_that_pkd_export_did_not_write(small_onnx, photos, tmp_path, refused):
    text = tmp_path / "text.onnx"
    text.write_text("no graph")
    refused(("score", text, photos), f"{text} is no ONNX file", "pkd export")
    refused(("score", tmp_path / "none.onnx", photos), "none.onnx cannot be read", "run folder")
    foreign = other_graph(tmp_path / "foreign.onnx")
    refused(("score", foreign, photos), "not one that this version of pkd export wrote")
    future = other_graph(tmp_path / "future.onnx", pkd_format="4")
    refused(("score", future, photos), "pkd.format is 4, not 3", "export the run again")
    half = other_graph(tmp_path / "half.onnx", pkd_format="1")
    refused(("score", half, photos), "'pkd.network'", "export the run again")
    refused(("score", photos, photos), "is not a run folder")


def test_invalid_flags_and_paths(small_run, small_onnx, photos, tmp_path, refused):
    refused(("score", small_onnx, photos, *SELECTION), "--normal-class, --seed", "leave it out")
    refused(("score", small_run, photos), "--normal-class is not given", "3 3, 5 5")
    refused(("score", small_onnx, photos, "--output", "scores.txt"), "must end in .csv or .json")
    refused(("score", small_onnx, photos / "none"), "none", "No such file")
    (tmp_path / "empty").mkdir()
    refused(("score", small_onnx, tmp_path / "empty"), "empty holds no images")
    refused(("score", small_onnx), "images", "--help")
    (tmp_path / "taken.csv").write_text("old content")
    refused(("score", small_onnx, photos, "--output", tmp_path / "taken.csv"), "--overwrite")
    assert (tmp_path / "taken.csv").read_text() == "old content"


# Run pkd and print its largest memory in KiB. A process starts with the memory of its parent, so
# the parent is not the process of the tests.
PEAK_MEMORY = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-m", "pkd", *sys.argv[1:]], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.slow
def test_the_memory_of_scoring_does_not_grow_with_the_number_of_images(small_onnx, tmp_path):
    """`pkd score` of 10,000 images takes at most 5 MB more than that of 1,000."""
    image = save(picture(0, 32), tmp_path / "image.png")
    peaks = {}
    for count in (1_000, 10_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        for k in range(count):
            (folder / f"{k:05}.png").hardlink_to(image)
        command = ["score", str(small_onnx), str(count), "--output", f"{count}.csv"]
        # relative paths: the names of all files are in memory
        process = subprocess.run(
            [sys.executable, "-c", PEAK_MEMORY, *command], cwd=tmp_path, capture_output=True
        )
        assert process.returncode == 0, process.stderr
        assert len((tmp_path / f"{count}.csv").read_text().splitlines()) == count + 1
        peaks[count] = int(process.stdout) / 1024
    assert peaks[10_000] - peaks[1_000] < 5e6 / 2**20, peaks
