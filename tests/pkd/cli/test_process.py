"""Output, signals and exit codes of commands as processes; names with control characters."""

import csv
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from image_helpers import picture, save
from run_helpers import TINY

from pkd.cli.main import main
from pkd.cli.process import PlainConsole, guarded
from pkd.utils.errors import PkdError
from pkd.utils.text import csv_cell, visible

PKD = [sys.executable, "-m", "pkd"]


def run(*argv: object, **options) -> subprocess.CompletedProcess:
    """Run a command to its end, with its messages as text."""
    command = [*PKD, *map(str, argv)]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=100, **options)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for k in range(3):
        save(picture(k, 16), tmp_path / "photos" / f"{k}.png")
    return tmp_path / "photos"


def test_a_full_standard_output_is_an_error(small_onnx, photos):
    with Path("/dev/full").open("w") as full:
        process = run("score", small_onnx, photos, stdout=full)
    assert process.returncode == 2
    assert re.search(r"^pkd: standard output cannot be written \(No space", process.stderr, re.M)
    assert "Traceback" not in process.stderr
    assert "ignored" not in process.stderr


def test_a_closed_standard_output_is_an_error(small_onnx, photos):
    process = run("score", small_onnx, photos, preexec_fn=lambda: os.close(1))
    assert process.returncode == 2
    assert process.stderr == (
        "pkd: standard output is closed: redirect it, for example to /dev/null\n"
    )


def test_closed_descriptors_are_not_reused_for_files(small_onnx, photos, tmp_path):
    """The file would get the messages of the command as content."""
    output = tmp_path / "scores.csv"
    code = subprocess.run(
        [*PKD, "score", str(small_onnx), str(photos), "--output", str(output)],
        preexec_fn=lambda: (os.close(0), os.close(2)),
        timeout=100,
    ).returncode
    assert code == 0
    assert len(list(csv.reader(output.open()))) == 4


def test_a_reader_that_ends_is_no_error(small_onnx, photos):
    reader, writer = os.pipe()
    os.close(reader)
    process = run("score", small_onnx, photos, stdout=writer)
    os.close(writer)
    assert process.returncode == 141
    assert "Error" not in process.stderr


def test_sigterm_leaves_no_temporary_file(small_onnx, photos, tmp_path):
    many = [photos] * 20_000  # minutes of work
    output = tmp_path / "out" / "scores.csv"
    output.parent.mkdir()
    command = [*PKD, "score", str(small_onnx), *map(str, many), "--output", str(output)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not any(output.parent.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert errors.splitlines()[-1] == "pkd: terminated"
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_the_imports_ends_without_a_traceback(number, code, tmp_path):
    """A module that a command imports sends the signal, and goes on."""
    (tmp_path / "numpy.py").write_text(
        f"import os, time\ntry:\n    os.kill(os.getpid(), {int(number)})\n    time.sleep(9)\n"
        "except BaseException:\n    pass\n"
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    }
    process = run("score", "x.onnx", "y", env=environment, stdout=subprocess.DEVNULL)
    assert (process.returncode, process.stderr) == (code, "pkd: interrupted\n")


@pytest.mark.slow
def test_a_training_whose_output_nobody_reads_stops_after_a_checkpoint(tmp_path):
    out = tmp_path / "run"
    command = [*PKD, "train", *TINY, "--teacher-epochs", "100000", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == f"run folder: {out}\n"
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(100) == 141
    assert errors == f"stopped; continue with: pkd train --resume {out}\n"
    assert '"tensors": "progress-' in (out / "progress.json").read_text()


@pytest.mark.parametrize(
    ("error", "code"),
    [(BrokenPipeError(), 141), (OSError(28, "No space left on device"), 2)],
)
def test_errors_of_the_output(error, code, capfd):
    def command() -> int:
        raise error

    assert guarded(command) == code


def test_other_errors_of_the_system_are_not_hidden(tmp_path):
    with pytest.raises(FileNotFoundError):
        guarded(lambda: len((tmp_path / "none").read_text()))


def test_sigterm_ends_a_command(capfd):
    def command() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(9)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    assert guarded(command) == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert capfd.readouterr().err == "pkd: terminated\n"


# -- Names from outside ----------------------------------------------------------------------------

HOSTILE = "a\x1b[31m\r\x07\u202egnp.\x9b2J\n"


def test_control_characters_are_visible():
    assert visible("Müll ß 漢字.png") == "Müll ß 漢字.png"
    assert visible(HOSTILE) == "a\\x1b[31m\\r\\x07\\u202egnp.\\x9b2J\\n"


def test_messages_and_tables_show_no_control_characters(capfd):
    def command() -> int:
        PlainConsole(width=200).print(f"file {HOSTILE}", soft_wrap=True)
        raise PkdError(f"cannot read {HOSTILE}")

    assert guarded(command) == 2
    output = capfd.readouterr()
    assert output.out == "file a\\x1b[31m\\r\\x07\\u202egnp.\\x9b2J\n\n"
    assert output.err == f"pkd: cannot read {visible(HOSTILE)}\n"


def test_file_names_are_escaped_in_messages_and_exact_in_json(small_onnx, tmp_path, capfd):
    good, bad = tmp_path / "\x1b[2J.png", tmp_path / "\x1b[31m.png"
    save(picture(0, 16), good)
    bad.write_bytes(b"")
    output = tmp_path / "scores.json"
    argv = ["score", str(small_onnx), str(good), str(bad), "--output", str(output)]
    assert main(argv) == 2
    assert "\x1b" not in capfd.readouterr().err
    assert main([*argv, "--skip-bad"]) == 0
    printed = capfd.readouterr()
    assert "\x1b" not in printed.err
    assert "\\x1b[31m.png" in printed.err
    assert "\\u001b[2J.png" in output.read_text()


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_cells_that_look_like_formulas_are_text(text):
    assert csv_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", [-1.5, 3, "a=1", "photos/-1.png", "", None])
def test_other_cells_are_unchanged(value):
    assert csv_cell(value) is value


def test_a_file_name_that_looks_like_a_formula_is_text_in_csv(small_onnx, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(picture(0, 16), Path("=HYPERLINK(1).png"))
    assert main(["score", str(small_onnx), "=HYPERLINK(1).png", "--output", "scores.csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(Path("scores.csv").read_text()))
    assert row["image"] == "'=HYPERLINK(1).png"
    assert float(row["score"]) >= 0
