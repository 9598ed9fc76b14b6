"""Output on the terminal: progress in 80 columns, and terminals with few characters."""

import re
import sys

import pytest
from run_helpers import TINY

from pkd.cli.main import main
from pkd.cli.process import PlainConsole


def test_progress_fits_into_80_columns(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    path = tmp_path / "screen"
    with path.open("w", encoding="utf-8") as screen:
        terminal = PlainConsole(file=screen, force_terminal=True)
        monkeypatch.setattr("pkd.cli.console.console", terminal)
        settings = ("--structure", "4", "--step1-epochs", "5", "--batch-size", "1")
        assert main(["train", *TINY, *settings, "--out", str(tmp_path / "run")]) == 0
    output = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", path.read_text(encoding="utf-8"))
    assert "…" not in output
    assert "100/100 steps, ETA" in output
    assert "losses: teacher G " in output
    assert "  student D " in output


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_commands_work_on_a_terminal_that_lacks_characters(
    encoding, finished_run, tmp_path, monkeypatch
):
    path = tmp_path / "screen"
    with path.open("w", encoding=encoding) as screen:
        monkeypatch.setattr(sys, "stdout", screen)
        monkeypatch.setattr(sys, "stderr", screen)
        assert main(["evaluate", str(finished_run)]) == 0
        assert main(["cost"]) == 0
        assert main(["evaluate", str(tmp_path / "→")]) == 2
    assert "is not a run folder" in path.read_text(encoding=encoding).replace("\n", " ")
