"""The examples run unchanged and detect what is novel."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def output_of(name: str, *arguments: object, tmp_path: Path) -> str:
    """Run an example in `tmp_path`, also for its temporary files; return what it prints."""
    process = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.slow
def test_detect_digits(tmp_path):
    output = output_of("detect_digits.py", tmp_path=tmp_path)
    assert float(re.search(r"AUC (\S+)", output)[1]) > 0.99
    assert float(re.search(r"recall of novel digits: (\S+)%", output)[1]) > 95
    assert float(re.search(r"false positive rate: (\S+)%", output)[1]) < 20
    (saved,) = tmp_path.rglob("*.joblib")
    assert str(saved) in output


@pytest.mark.slow
def test_folder_to_onnx(tmp_path):
    output = output_of("folder_to_onnx.py", tmp_path / "new", tmp_path=tmp_path)
    with (tmp_path / "new" / "new.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    kinds = [Path(row["image"]).parent.name for row in rows]
    correct = [
        (row["verdict"] == "normal") == (kind == "good")
        for row, kind in zip(rows, kinds, strict=True)
    ]
    assert len(rows) == 120
    assert sum(correct) >= 100
    assert f"hole: {kinds.count('hole')} of 40 classified as novel" in output
