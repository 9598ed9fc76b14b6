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
that does not exist.
"""

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pkd.runs.progress import Progress, parse_progress
from pkd.utils.errors import (
    RESTORE,
    CheckpointError,
    DivergenceError,
    OutputError,
    PkdError,
    resume_command,
)
from pkd.utils.files import atomic_write


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
        count = self.progress.metrics
        if count:
            self.metrics = self._read(
                "metrics.jsonl", lambda text: [*map(json.loads, text.splitlines()[:count])]
            )
        if len(self.metrics) < count:
            raise CheckpointError(
                f"{self.path / 'metrics.jsonl'} is truncated, it has {len(self.metrics)} of "
                f"{count} lines: {RESTORE}"
            )

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
        return self._read("config.yaml", yaml.safe_load)

    def results(self) -> dict[str, Any] | None:
        """Content of results.json; None if the run is not finished."""
        path = self.path / "results.json"
        return self._read(path.name, json.loads) if path.is_file() else None

    def _read(self, name: str, parse: Callable[[str], Any]) -> Any:
        try:
            return parse((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
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
        self._write_json("results.json", results)

    def _write_json(self, name: str, value: Any) -> None:
        self._write(self.path / name, json.dumps(value, indent=1) + "\n")

    def save_progress(self, tensors: dict[str, Tensor], progress: Progress) -> None:
        """Write a checkpoint within a phase."""
        previous = self.progress.tensors
        number = int(previous.split("-")[1].split(".")[0]) + 1 if previous else 0
        progress.tensors = f"progress-{number:06d}.safetensors"
        self._save_tensors(progress.tensors, tensors)
        self._commit(progress)

    def save_phase(self, name: str, tensors: dict[str, Tensor], progress: Progress) -> None:
        """Write the checkpoint of a finished phase; `progress` is the start of the next one."""
        progress.tensors = None
        self._save_tensors(f"{name}.safetensors", tensors)
        self._commit(progress)

    def restart_phase(self, metrics: int, config: dict[str, Any]) -> None:
        """Go back to the start of the current phase, and replace the settings.

        Args:
            metrics: lines of metrics.jsonl of the finished phases.
            config: content of config.yaml.
        """
        progress = Progress(**asdict(self.progress))
        progress.stack, progress.epoch, progress.step, progress.tensors = 0, 0, 0, None
        progress.metrics = metrics
        progress.seconds = {k: v for k, v in progress.seconds.items() if k in progress.auc}
        # In this order the files fit each other after each of the writes. Lines of metrics.jsonl
        # after the first `metrics` are not read, and the next checkpoint removes them.
        self._write_json("progress.json", asdict(progress))
        self._write(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        self.progress, self.metrics = progress, self.metrics[:metrics]
        self._remove_stale()

    def _save_tensors(self, name: str, tensors: dict[str, Tensor]) -> None:
        tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        for key, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise DivergenceError(
                    f"values in {key} are not finite; training stopped, the last checkpoint is "
                    "kept: train again with a lower `lr`"
                )
        self._write(self.checkpoints / name, save(tensors))

    def _commit(self, progress: Progress) -> None:
        progress.metrics = len(self.metrics)
        lines = "".join(json.dumps(record) + "\n" for record in self.metrics)
        self._write(self.path / "metrics.jsonl", lines)
        self._write_json("progress.json", asdict(progress))
        self.progress = Progress(**asdict(progress))
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

        Raises:
            CheckpointError: the checkpoint is missing, damaged or not finite.
        """
        path = self.checkpoints / name
        try:
            with safe_open(path, "pt") as file:
                names = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
                tensors = {key: file.get_tensor(key) for key in names}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"checkpoint {path} cannot be read ({error}), it is missing or truncated: {RESTORE}"
            ) from error
        for key, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise CheckpointError(
                    f"checkpoint {path} has values in {key} that are not finite: {RESTORE}"
                )
        return self._upgraded(tensors) if name.startswith("progress-") else tensors

    def _upgraded(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename and transpose the tensors of a progress checkpoint of an earlier version."""
        if "optimizer.step" in tensors:
            tensors["optimizer.step_count"] = tensors.pop("optimizer.step")
        # (steps, networks, M, losses) before the setting `graph` existed, members first since then.
        if "history" in tensors and "graph" not in self.config():
            tensors["history"] = tensors["history"].transpose(1, 2)
        return tensors
