"""The examples run as they are."""

import csv
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


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
