"""The examples run unchanged, and find what they say."""

import csv
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_detect_digits(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    command = [sys.executable, str(EXAMPLES / "detect_digits.py")]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert float(re.search(r"AUC (\S+)", said)[1]) > 0.99
    assert float(re.search(r"novel digits found: (\S+)%", said)[1]) > 95
    assert float(re.search(r"mistaken for novel: (\S+)%", said)[1]) < 20
    (saved,) = tmp_path.rglob("*.joblib")
    assert str(saved) in said


def test_a_folder_becomes_an_onnx_file_that_finds_what_is_novel(tmp_path):
    command = [sys.executable, EXAMPLES / "folder_to_onnx.py", tmp_path / "new"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "new" / "new.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = [Path(row["image"]).parent.name for row in rows]
    right = [
        (row["verdict"] == "normal") == (kind == "good")
        for row, kind in zip(rows, kinds, strict=True)
    ]
    assert len(rows) == 120
    assert sum(right) >= 100
    assert f"hole: {kinds.count('hole')} of 40 called novel" in done.stdout
