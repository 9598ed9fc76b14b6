"""A run is a folder. Whatever instant a process dies at, the folder can be resumed.

    config.yaml                  every setting, presets resolved
    progress.json                where training stands and which tensors belong to it
    metrics.jsonl                a line an epoch: losses and AUC of every member
    checkpoints/<phase>.safetensors       networks as a finished phase left them, and their scores
                                          of the held-out images, `held_out.<member>`, and of
                                          the test split, `test_scores`
    checkpoints/progress-<n>.safetensors  networks, optimizer and losses within a phase
    results.json, curves.png     at the end
    report.html, tensorboard/    where asked for

Every file is written under a temporary name, synced and renamed; `progress.json` is written last,
so that it never names what is not there.
"""

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pkd.utils.errors import PkdError
from pkd.utils.files import replace_file

_RESTORE = "restore it from a copy, or train again in a new folder"


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """`replace_file` within a run, whose folder of checkpoints is made where it is missing.

    Raises:
        PkdError: the disk is full or refuses; `path` is as it was.
    """
    try:
        path.parent.mkdir(exist_ok=True)
        replace_file(path, write)
    except OSError as error:
        raise PkdError(
            f"{path} cannot be written ({error}): make room or get permission there, then continue "
            "with --resume; what was written before is kept"
        ) from error


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        phase: number of phases that are finished.
        stack: number of stacks that finished the phase now under way.
        epoch, step: of the stack now under way; `step` steps of `epoch` are done.
        tensors: file of the state at that point; None at the beginning of a phase.
        metrics: lines of metrics.jsonl that belong to this point.
        auc: finished phase -> AUC of each member on the whole test set.
        seconds: finished or current phase -> time spent in it.
    """

    phase: int = 0
    stack: int = 0
    epoch: int = 0
    step: int = 0
    tensors: str | None = None
    metrics: int = 0
    auc: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def parse_progress(text: str) -> Progress:
    """Content of progress.json; AttributeError, TypeError or ValueError if damaged."""
    progress = Progress(**json.loads(text))
    names = ("phase", "stack", "epoch", "step", "metrics")
    counts = [getattr(progress, name) for name in names]
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"{', '.join(names)} are {counts}")
    if progress.tensors and not re.fullmatch(r"progress-\d{6,}\.safetensors", progress.tensors):
        raise ValueError(f"tensors is {progress.tensors!r}")
    numbers = [*progress.seconds.values()]
    for values in progress.auc.values():
        numbers += values
    if not all(isinstance(number, float) for number in numbers):
        raise ValueError("auc or seconds holds what is no number")
    return progress


class RunFolder:
    """The files of one run.

    `create` begins a folder, `resume` takes one up to train on, `open` only reads it.
    """

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics: list[dict[str, Any]] = []
        self.progress = Progress()
        self._lock = FileLock(path / ".lock")

    @classmethod
    def create(cls, path: Path, config: dict[str, Any]) -> "RunFolder":
        """Begin a run in a new or empty folder; PkdError if it holds anything."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            taken = {p.name for p in path.iterdir()} - {".lock", ".config.yaml.tmp"}
        except OSError as error:
            raise PkdError(
                f"--out {path} cannot be written ({error.strerror}): choose another folder"
            ) from error
        if taken:
            what = "holds another run" if "config.yaml" in taken else "is not empty"
            resume = f"continue it with --resume {shlex.quote(str(path))}, or "
            remedy = resume if "config.yaml" in taken else ""
            raise PkdError(f"--out {path} {what}: {remedy}choose another folder")
        run = cls(path)
        run.lock()
        write_text(path / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        return run

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Read an existing run; PkdError if the folder holds none or its files are damaged."""
        run = cls(path)
        run._must_exist()
        run._load()
        return run

    @classmethod
    def resume(cls, path: Path) -> "RunFolder":
        """Take up an existing run, locked; PkdError as in `open`, or if it is being trained."""
        run = cls(path)
        run._must_exist()
        run.lock()
        run._load()
        run._remove_stale()
        return run

    def _must_exist(self) -> None:
        if not (self.path / "config.yaml").is_file():
            raise PkdError(
                f"{self.path} is not a run folder, it has no config.yaml: give the folder that "
                "pkd train named, or start a run with pkd train --out FOLDER"
            )

    def _load(self) -> None:
        # A run may be killed before it has any progress, but then it has no results either.
        if any((self.path / name).is_file() for name in ("progress.json", "results.json")):
            self.progress = self._read("progress.json", parse_progress)
        count = self.progress.metrics
        if count:
            self.metrics = self._read(
                "metrics.jsonl", lambda text: [*map(json.loads, text.splitlines()[:count])]
            )
        if len(self.metrics) < count:
            raise PkdError(
                f"{self.path / 'metrics.jsonl'} is truncated, it has {len(self.metrics)} of "
                f"{count} lines: {_RESTORE}"
            )

    def lock(self) -> None:
        """Keep other processes from training in this folder; PkdError if one already does."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise PkdError(f"another process is training in {self.path}: wait for it") from error
        except OSError as error:
            raise PkdError(
                f"{self.path} cannot be written ({error.strerror}): get permission there, or "
                "choose another folder"
            ) from error

    def release(self) -> None:
        self._lock.release()

    def config(self) -> dict[str, Any]:
        """What config.yaml holds."""
        return self._read("config.yaml", yaml.safe_load)

    def results(self) -> dict[str, Any] | None:
        """What results.json holds; None where there is none yet."""
        path = self.path / "results.json"
        return self._read(path.name, json.loads) if path.is_file() else None

    def _read(self, name: str, parse: Callable[[str], Any]) -> Any:
        try:
            return parse((self.path / name).read_text(encoding="utf-8"))
        except (OSError, AttributeError, TypeError, ValueError, yaml.YAMLError) as error:
            raise PkdError(f"{self.path / name} is damaged ({error}): {_RESTORE}") from error

    def write_json(self, name: str, value: Any) -> None:
        write_text(self.path / name, json.dumps(value, indent=1) + "\n")

    def save_within_phase(self, tensors: dict[str, Tensor], progress: Progress) -> None:
        """Checkpoint inside a phase."""
        old = self.progress.tensors
        number = int(old.split("-")[1].split(".")[0]) + 1 if old else 0
        progress.tensors = f"progress-{number:06d}.safetensors"
        self._save_tensors(progress.tensors, tensors)
        self._commit(progress)

    def save_phase(self, name: str, tensors: dict[str, Tensor], progress: Progress) -> None:
        """Keep the tensors of a finished phase; `progress` stands at the next one's beginning."""
        progress.tensors = None
        self._save_tensors(f"{name}.safetensors", tensors)
        self._commit(progress)

    def _save_tensors(self, name: str, tensors: dict[str, Tensor]) -> None:
        tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        for key, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise PkdError(
                    f"values in {key} are no longer finite; training stopped, the last checkpoint "
                    "is kept: train anew with a lower --lr"
                )
        write_atomically(self.checkpoints / name, lambda p: p.write_bytes(save(tensors)))

    def _commit(self, progress: Progress) -> None:
        progress.metrics = len(self.metrics)
        lines = "".join(json.dumps(record) + "\n" for record in self.metrics)
        write_text(self.path / "metrics.jsonl", lines)
        self.write_json("progress.json", asdict(progress))
        self.progress = Progress(**asdict(progress))
        self._remove_stale()

    def _remove_stale(self) -> None:
        """Remove checkpoints that are no longer needed, and what a killed process half wrote."""
        for stale in self.checkpoints.glob("progress-*"):
            if stale.name != self.progress.tensors:
                stale.unlink()
        for half in (*self.path.glob(".*.tmp"), *self.checkpoints.glob(".*.tmp")):
            half.unlink()

    def load_tensors(self, name: str, prefix: str = "") -> dict[str, Tensor]:
        """Tensors of a checkpoint, by the beginning of their names.

        Raises:
            PkdError: it is missing, damaged or not finite.
        """
        path = self.checkpoints / name
        try:
            with safe_open(path, "pt") as file:
                names = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
                tensors = {key: file.get_tensor(key) for key in names}
        except (OSError, SafetensorError) as error:
            raise PkdError(
                f"checkpoint {path} cannot be read ({error}), it is missing or truncated: "
                f"{_RESTORE}"
            ) from error
        for key, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise PkdError(
                    f"checkpoint {path} holds values in {key} that are not finite: {_RESTORE}"
                )
        return tensors
