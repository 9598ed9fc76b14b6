"""Position of a training, the content of progress.json."""

import math
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from pkd.utils.checksums import DIGEST, dump_checked, load_checked

CHECKPOINT = re.compile(r"progress-\d{6,}\.safetensors")  # within a phase


@dataclass
class Progress:
    """Position of the training.

    Attributes:
        phase: number of finished phases.
        stack: number of stacks that finished the current phase.
        epoch: finished epochs of the current stack.
        step: finished steps of the current epoch.
        tensors: checkpoint of this position; None at the beginning of a phase.
        metrics: lines of metrics.jsonl up to this position.
        auc: finished phase -> AUC of each member on the whole test split.
        seconds: finished or current phase -> time spent in it.
        teacher_sha256: digest of each member's teacher, where the teachers come from other runs.
        checkpoint_sha256: file in `checkpoints` -> its SHA-256. Files that a version before there
            were checksums has written are missing.
        metrics_checked: whether each line of metrics.jsonl has the SHA-256 of its content.
    """

    phase: int = 0
    stack: int = 0
    epoch: int = 0
    step: int = 0
    tensors: str | None = None
    metrics: int = 0
    auc: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    teacher_sha256: list[str] = field(default_factory=list)
    checkpoint_sha256: dict[str, str] = field(default_factory=dict)
    metrics_checked: bool = False

    def to_json(self) -> str:
        """Content of progress.json."""
        return dump_checked(asdict(self))


def has_checksums(values: dict[str, Any]) -> bool:
    """Whether progress.json or results.json is of a version that stores checksums."""
    return "checkpoint_sha256" in values


def parse_progress(text: str) -> Progress:
    """Parse progress.json; AttributeError, TypeError or ValueError if it is damaged."""
    progress = Progress(**load_checked(text, has_checksums))
    names = ("phase", "stack", "epoch", "step", "metrics")
    counts = [getattr(progress, name) for name in names]
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"{', '.join(names)} are {counts}")
    if progress.tensors and not CHECKPOINT.fullmatch(progress.tensors):
        raise ValueError(f"tensors is {progress.tensors!r}")
    numbers = [*progress.seconds.values()]
    for values in progress.auc.values():
        numbers += values
    if not all(isinstance(number, float) and math.isfinite(number) for number in numbers):
        raise ValueError("auc or seconds holds a value that is not a finite number")
    digests = [*progress.teacher_sha256, *progress.checkpoint_sha256.values()]
    if not all(DIGEST.fullmatch(digest) for digest in digests):
        raise ValueError("it holds a SHA-256 that is none")
    if type(progress.metrics_checked) is not bool:
        raise ValueError(f"metrics_checked is {progress.metrics_checked!r}")
    return progress
