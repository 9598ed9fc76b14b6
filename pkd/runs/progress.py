"""Position of a training, the content of progress.json."""

import json
import re
from dataclasses import dataclass, field


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


def parse_progress(text: str) -> Progress:
    """Parse progress.json; AttributeError, TypeError or ValueError if it is damaged."""
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
        raise ValueError("auc or seconds holds a value that is not a number")
    return progress
