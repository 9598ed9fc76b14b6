"""Small sweeps of the command line, and what the tests read from their folders."""

import json
from pathlib import Path
from typing import Any

import pytest

# A member takes 10 steps a phase.
TINY_SWEEP = (
    *("--latent", "8", "--teacher-widths", "2-2-4", "--student-widths", "1-2-4"),
    *("--teacher-epochs", "1", "--step1-epochs", "1", "--step2-epochs", "1"),
    *("--normal-class", "0,1", "--batch-size", "2", "--max-train-images", "20"),
    *("--device", "cpu"),
)
STRUCTURES = ("--structure", "student-only,2,progressive-23")
TIMES = ("seconds_teacher", "seconds_student")


def make_sweeps_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure few steps, draw no curves, and do not wait for the disk."""
    monkeypatch.setattr("pkd.sweep.measure.SECONDS", 0.0)
    monkeypatch.setattr("pkd.runs.pipeline.training_curves_png", lambda *_: b"")
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def weights(directory: Path) -> dict[str, bytes]:
    """Path -> content of the finished checkpoints and the metrics below a folder."""
    files = [*directory.rglob("*.safetensors"), *directory.rglob("metrics.jsonl")]
    return {str(file.relative_to(directory)): file.read_bytes() for file in files}


def rows_without_times(directory: Path) -> list[dict[str, Any]]:
    rows = read_json(directory / "sweep.json")["rows"]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]
