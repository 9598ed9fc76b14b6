"""Checkpoints: named tensors with finite values, as safetensors files. No code is in them."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pkd.utils.checksums import file_sha256
from pkd.utils.errors import RESTORE, CheckpointError, DivergenceError
from pkd.utils.files import open_regular


def encode_tensors(tensors: dict[str, Tensor]) -> bytes:
    """Content of a checkpoint; DivergenceError if a value is not finite."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise DivergenceError(
                f"values in {key} are not finite; training stopped, the last checkpoint is "
                "kept: train again with a lower `lr`"
            )
    return save(tensors)


def verify_checkpoint(path: Path, expected: str | None) -> None:
    """Compare a checkpoint with its SHA-256.

    Args:
        path: the file.
        expected: from progress.json; None if there is none, then only the kind of file is checked.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        if expected is None:
            open_regular(path).close()
        elif file_sha256(path) != expected:
            raise CheckpointError(
                f"checkpoint {path} is damaged, its content differs from its SHA-256 in "
                f"progress.json: {RESTORE}"
            )
    except OSError as error:
        raise _unreadable(path, error) from error


def read_tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    """Read the tensors whose names begin with `prefix`; CheckpointError if that is not possible."""
    try:
        with safe_open(path, "pt") as file:
            names = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
            tensors = {key: file.get_tensor(key) for key in names}
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"checkpoint {path} has values in {key} that are not finite: {RESTORE}"
            )
    return tensors


def upgrade_progress(tensors: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """Rename and transpose the tensors of a progress checkpoint of an earlier version.

    Args:
        tensors: of the checkpoint.
        config: content of config.yaml.
    """
    if "optimizer.step" in tensors:
        tensors["optimizer.step_count"] = tensors.pop("optimizer.step")
    # (steps, networks, M, losses) before the setting `graph` existed, members first since then.
    if "history" in tensors and "graph" not in config:
        tensors["history"] = tensors["history"].transpose(1, 2)
    return tensors


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {path} cannot be read ({error}), it is missing or truncated: {RESTORE}"
    )
