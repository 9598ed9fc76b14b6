"""The examples run unchanged, and find what they say."""

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
