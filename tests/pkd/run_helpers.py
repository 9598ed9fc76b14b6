"""Small runs of the command line: flags, and what the tests read from folders and output."""

import json
from pathlib import Path
from typing import Any

PHASES = ["teacher", "step1", "step2"]
SMALL_NETWORKS = (
    *("--structure", "progressive-23"),  # the longest: tests choose another one where it matters
    *("--latent", "8", "--teacher-widths", "2-4-8", "--student-widths", "1-2-4"),
    *("--teacher-epochs", "1", "--step1-epochs", "1", "--step2-epochs", "1", "--device", "cpu"),
)
# Two models on the digits 0 and 1, 10 steps a phase.
TINY = (
    *SMALL_NETWORKS,
    *("--normal-class", "0,1", "--batch-size", "2", "--max-train-images", "20"),
)


def file_contents(folder: Path) -> dict[Path, bytes | None]:
    """Path -> content of everything below a folder; None for folders."""
    return {path: path.read_bytes() if path.is_file() else None for path in Path(folder).rglob("*")}


def remove_checksums(run: Path) -> Path:
    """Make a run folder one of a version before there were checksums, which would find changes."""
    for path in (run / "progress.json", run / "results.json"):
        if path.is_file():
            values = json.loads(path.read_text())
            for key in ("sha256", "checkpoint_sha256", "metrics_checked"):
                values.pop(key, None)
            path.write_text(json.dumps(values, indent=1))
    metrics = run / "metrics.jsonl"
    lines = map(json.dumps, metrics_records(metrics))
    metrics.write_text("".join(f"{line}\n" for line in lines))
    return run


def metrics_records(path: Path) -> list[dict[str, Any]]:
    """Records of metrics.jsonl without their checksums."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "sha256"} for record in records]


def table_rows(output: str) -> list[list[str]]:
    """Cells of the tables in a command's output."""
    cells = [line.replace("┃", "│").split("│")[1:-1] for line in output.splitlines()]
    return [[cell.strip() for cell in row] for row in cells if row]


def own_data_command(dataset: str, data_dir: Path, out: Path, *settings: str) -> list[str]:
    """Arguments of `pkd train` on images of 16 x 16 pixels from a folder or an .npz file."""
    data = ("--dataset", dataset, "--data-dir", str(data_dir), "--image-size", "16")
    return ["train", *data, *SMALL_NETWORKS, *settings, "--out", str(out)]
