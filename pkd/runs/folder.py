"""Run folder: the files of a run, from which it can be continued after an interruption at any time.

    config.yaml                  every setting, values of the preset included
    progress.json                position of the training, and the checkpoint that belongs to it
    metrics.jsonl                one line per epoch: losses and AUC of every member
    checkpoints/<phase>.safetensors       networks after a finished phase, their scores of the
                                          held-out images, `held_out.<member>`, and of the test
                                          split, `test_scores`
    checkpoints/progress-<n>.safetensors  networks, optimizer state and losses within a phase
    results.json, curves.png     at the end
    report.html, tensorboard/    on request

Every file is written atomically. `progress.json` is written last, so it never names a checkpoint
that does not exist. It has the SHA-256 of each checkpoint; it, results.json and each line of
metrics.jsonl also have one of their own content.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from torch import Tensor

from pkd.runs.checkpoints import (
    encode_tensors,
    read_tensors,
    upgrade_progress,
    verify_checkpoint,
)
from pkd.runs.progress import CHECKPOINT, Progress, has_checksums, parse_progress
from pkd.runs.schema import check_metrics, check_results
from pkd.utils.checksums import dump_checked, load_checked, sha256
from pkd.utils.errors import (
    RESTORE,
    CheckpointError,
    OutputError,
    PkdError,
    resume_command,
)
from pkd.utils.files import atomic_write, read_text
from pkd.utils.yaml_files import parse_yaml

logger = logging.getLogger(__name__)


@cache
def warn_unverified(path: Path) -> None:
    """Log, once for each folder, that damage to its checkpoints cannot be found."""
    logger.warning(
        "%s was written before checkpoints had checksums: damage to them is not detected", path
    )


class RunFolder:
    """Files of one run.

    `create` makes a folder for a new run, `resume` opens one for training, `open` for reading.

    Attributes:
        path: the folder.
        checkpoints: its sub-folder of checkpoints.
        progress: position of the training at the last checkpoint.
        metrics: records of metrics.jsonl, one per epoch.
    """

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics: list[dict[str, Any]] = []
        self.progress = Progress()
        self._lock = FileLock(path / ".lock")
        self._verified: set[str] = set()  # checkpoints

    @classmethod
    def create(cls, path: Path, config: dict[str, Any]) -> "RunFolder":
        """Make the folder of a new run, and lock it.

        Args:
            path: a new or empty folder.
            config: content of config.yaml.

        Raises:
            OutputError: the folder is not empty, or cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            names = {p.name for p in path.iterdir()}
        except OSError as error:
            raise OutputError.from_os_error(path, error) from error
        if "config.yaml" in names:
            raise OutputError(
                f"{path} holds another run: continue it with {resume_command(path)}, or choose "
                "another folder for `out`"
            )
        # A process that was killed while it made the folder leaves these files.
        if any(not re.fullmatch(r"\.lock|\.config\.yaml\..*tmp", name) for name in names):
            raise OutputError(f"{path} is not empty: choose another folder for `out`")
        folder = cls(path)
        folder.lock()
        folder._write(path / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open a run for reading; CheckpointError if there is none or its files are damaged."""
        folder = cls(path)
        folder._check_exists()
        folder._load()
        return folder

    @classmethod
    def resume(cls, path: Path) -> "RunFolder":
        """Open a run for training, and lock it; CheckpointError as `open`, PkdError if locked."""
        folder = cls(path)
        folder._check_exists()
        folder.lock()
        folder._load()
        folder._remove_stale()
        return folder

    def _check_exists(self) -> None:
        if not (self.path / "config.yaml").is_file():
            raise CheckpointError(
                f"{self.path} is not a run folder, it has no config.yaml: give the folder that "
                "pkd train named, or start a run with pkd train --out FOLDER"
            )

    def _load(self) -> None:
        # A run may be killed before its first checkpoint, but then it has no results either.
        if any((self.path / name).is_file() for name in ("progress.json", "results.json")):
            self.progress = self._read("progress.json", parse_progress)
        if self.progress.metrics:
            self.metrics = self._read("metrics.jsonl", self._parse_metrics)

    def _parse_metrics(self, text: str) -> list[dict[str, Any]]:
        """Records up to the last checkpoint; ValueError if they are damaged."""
        count, checked = self.progress.metrics, self.progress.metrics_checked
        lines = text.split("\n")[:-1]
        if len(lines) < count:
            raise ValueError(f"it is truncated: it has {len(lines)} of {count} lines")
        # A checksum for each line: a process may be killed between the writes of this file, where
        # a stack adds to the lines of an earlier one, and of progress.json.
        records = [load_checked(line, lambda _: checked) for line in lines[:count]]
        check_metrics(records)
        return records

    def lock(self) -> None:
        """Keep other processes from training in this folder; PkdError if one does."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise PkdError(f"another process is training in {self.path}: wait for it") from error
        except OSError as error:
            raise OutputError.from_os_error(self.path, error) from error

    def release(self) -> None:
        """Allow other processes to train in this folder."""
        self._lock.release()

    def config(self) -> Any:
        """Content of config.yaml."""
        return self._read("config.yaml", parse_yaml)

    def results(self) -> dict[str, Any] | None:
        """Content of results.json; None if the run is not finished.

        Raises:
            CheckpointError: the file is damaged.
        """
        path = self.path / "results.json"
        return self._read(path.name, self._parse_results) if path.is_file() else None

    def _parse_results(self, text: str) -> dict[str, Any]:
        results = load_checked(text, has_checksums)
        check_results(results)
        if results.get("checkpoint_sha256", {}) != self.progress.checkpoint_sha256:
            raise ValueError("its checkpoint_sha256 differ from those of progress.json")
        if any(len(auc) != len(results["members"]) for auc in self.progress.auc.values()):
            raise ValueError("it has another number of members than progress.json")
        return results

    def _read(self, name: str, parse: Callable[[str], Any]) -> Any:
        try:
            return parse(read_text(self.path / name))
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{self.path / name} is damaged ({error}): {RESTORE}") from error

    def _write(self, path: Path, content: str | bytes) -> None:
        try:
            path.parent.mkdir(exist_ok=True)
            with atomic_write(path) as temporary:
                temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        except (OSError, OutputError) as error:
            reason = error.__cause__ or error  # the OSError: an OutputError has another remedy
            raise OutputError(
                f"{path} cannot be written ({reason}): free disk space or get write permission, "
                f"then continue with {resume_command(self.path)}; earlier files are kept"
            ) from error

    def write_results(self, results: dict[str, Any], curves: bytes) -> None:
        """Write curves.png and, last, results.json."""
        self._write(self.path / "curves.png", curves)
        self._write(self.path / "results.json", dump_checked(results))

    def save_progress(self, tensors: dict[str, Tensor], progress: Progress) -> None:
        """Write a checkpoint within a phase."""
        previous = self.progress.tensors
        number = int(previous.split("-")[1].split(".")[0]) + 1 if previous else 0
        progress.tensors = f"progress-{number:06d}.safetensors"
        self._save_tensors(progress.tensors, tensors, progress)
        self._commit(progress)

    def save_phase(self, name: str, tensors: dict[str, Tensor], progress: Progress) -> None:
        """Write the checkpoint of a finished phase; `progress` is the start of the next one."""
        progress.tensors = None
        self._save_tensors(f"{name}.safetensors", tensors, progress)
        self._commit(progress)

    def restart_phase(self, metrics: int, config: dict[str, Any]) -> None:
        """Go back to the start of the current phase, and replace the settings.

        Args:
            metrics: lines of metrics.jsonl of the finished phases.
            config: content of config.yaml.
        """
        progress = replace(
            self.progress,
            stack=0,
            epoch=0,
            step=0,
            tensors=None,
            metrics=metrics,
            seconds={k: v for k, v in self.progress.seconds.items() if k in self.progress.auc},
            checkpoint_sha256=self._sha256_of_phases(),
            metrics_checked=True,
        )
        # In this order the files fit each other after each of the writes. Lines of metrics.jsonl
        # after the first `metrics` are not read, and the next checkpoint removes them.
        self._write(self.path / "metrics.jsonl", self._metrics_lines())
        self._write(self.path / "progress.json", progress.to_json())
        self._write(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        self.progress, self.metrics = progress, self.metrics[:metrics]
        self._remove_stale()

    def _save_tensors(self, name: str, tensors: dict[str, Tensor], progress: Progress) -> None:
        """Write a checkpoint, and put its checksum into `progress`."""
        content = encode_tensors(tensors)
        self._write(self.checkpoints / name, content)
        progress.checkpoint_sha256 = self._sha256_of_phases() | {name: sha256(content)}
        self._verified.discard(name)

    def _sha256_of_phases(self) -> dict[str, str]:
        """Checksums of the checkpoints of finished phases."""
        known = self.progress.checkpoint_sha256
        return {name: digest for name, digest in known.items() if not CHECKPOINT.fullmatch(name)}

    def _metrics_lines(self) -> str:
        return "".join(dump_checked(record, indent=None) for record in self.metrics)

    def _commit(self, progress: Progress) -> None:
        progress.metrics, progress.metrics_checked = len(self.metrics), True
        self._write(self.path / "metrics.jsonl", self._metrics_lines())
        self._write(self.path / "progress.json", progress.to_json())
        self.progress = replace(progress)
        self._remove_stale()

    def _remove_stale(self) -> None:
        """Remove checkpoints of earlier positions and temporary files of a killed process."""
        for checkpoint in self.checkpoints.glob("progress-*"):
            if checkpoint.name != self.progress.tensors:
                checkpoint.unlink()
        for temporary in (*self.path.glob(".*.tmp"), *self.checkpoints.glob(".*.tmp")):
            temporary.unlink()

    def load_tensors(self, name: str, prefix: str = "") -> dict[str, Tensor]:
        """Load the tensors of a checkpoint whose names begin with `prefix`.

        The first call for a checkpoint compares its SHA-256 with the one in progress.json.

        Raises:
            CheckpointError: the checkpoint is missing, damaged or not finite.
        """
        path, expected = self.checkpoints / name, self.progress.checkpoint_sha256.get(name)
        if name not in self._verified:
            verify_checkpoint(path, expected)
            self._verified.add(name)
            if expected is None:
                warn_unverified(self.path.absolute())
        tensors = read_tensors(path, prefix)
        return upgrade_progress(tensors, self.config()) if CHECKPOINT.fullmatch(name) else tensors
