"""Take trained teachers from finished runs, so that several runs share them."""

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pkd.models.stack import Member
from pkd.runs.folder import RunFolder
from pkd.runs.schema import check_epochs
from pkd.training.config import ResolvedConfig
from pkd.training.settings import from_plain
from pkd.utils.errors import RESTORE, CheckpointError, ConfigError, resume_command

CHECKPOINT, PREFIX = "teacher.safetensors", "teacher."

# Settings that decide the weights of a trained teacher, beside its phase and the images.
SETTINGS = (
    *("image_size", "held_out", "teacher_widths", "latent", "norm", "norm_first"),
    *("betas", "reduction", "lr_schedule", "precision"),
)


def teacher_settings(config: ResolvedConfig) -> dict[str, Any]:
    """Settings that decide the weights of a teacher: setting -> its effective value."""
    phase = config.phases()[0]
    return {
        **{name: getattr(config, name) for name in SETTINGS},
        "weights": config.weights[:3],  # the others weigh the distillation
        "teacher_epochs": phase.epochs,
        "teacher_batch_size": phase.batch_size,
        "teacher_lr": phase.lr,
        "teacher_max_train_images": phase.max_train_images,
    }


def weights_sha256(tensors: dict[str, Tensor], stack: int) -> list[str]:
    """SHA-256 (hexadecimal) of the teacher's weights of each model of a stack.

    Args:
        tensors: of a checkpoint; only those of the teacher count.
        stack: models in the stack, along the first axis of each tensor.
    """
    digests = []
    for model in range(stack):
        sha = hashlib.sha256()
        for name in sorted(name for name in tensors if name.startswith(PREFIX)):
            rows = _rows(tensors[name], stack)[model].contiguous()
            sha.update(f"{name}{tuple(rows.shape)}".encode())
            sha.update(rows.numpy().tobytes())
        digests.append(sha.hexdigest())
    return digests


def with_parts(scores: Tensor, dimensions: int) -> Tensor:
    """Scores of earlier versions, which are the latent part, with an axis of parts."""
    return scores[..., None] if scores.dim() == dimensions else scores


def _rows(tensor: Tensor, stack: int) -> Tensor:
    return tensor.unflatten(0, (stack, -1))


class _Source(NamedTuple):
    """A finished run with trained teachers, and the position of each teacher in its stack."""

    folder: RunFolder
    positions: dict[Member, int]

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Tensors of the checkpoint after the teacher's training."""
        return self.folder.load_tensors(CHECKPOINT, prefix)


class Teachers:
    """Trained teachers of the members of a run, from finished runs.

    Args:
        config: settings of the run; `teacher` names the finished runs.
        data_sha256: digest of the images of the run, `Dataset.digest`.
        members: of the run.
        beside: folder of the run. A source that is missing is looked for beside it: both may have
            been moved together.

    Raises:
        ConfigError: a source has other settings or images, or no source has a teacher of a member.
        CheckpointError: a source is missing, damaged or not finished.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        data_sha256: str,
        members: Sequence[Member],
        beside: Path | None = None,
    ):
        paths = [_existing(Path(path), beside) for path in config.teacher or ()]
        sources = [_open_source(path, config, data_sha256) for path in paths]
        self._teachers = [(_source_of(member, sources), member) for member in members]

    def tensors(self, sha256: Sequence[str] = ()) -> dict[str, Tensor]:
        """Weights of the teachers as a checkpoint of the run has them.

        Args:
            sha256: `weights_sha256` of the teachers that the run took earlier; empty if it is new.

        Raises:
            CheckpointError: a source is damaged or has changed since.
        """
        tensors = self._of_members(PREFIX)
        changed = [
            source.folder.path
            for (source, _), old, new in zip(
                self._teachers, sha256, weights_sha256(tensors, len(self._teachers)), strict=False
            )
            if old != new
        ]
        if changed:
            raise CheckpointError(
                f"the teachers in {changed[0]} are not those that this run took: {RESTORE}"
            )
        return tensors

    def scores(self) -> dict[str, Tensor]:
        """Scores of the test split, `test_scores`, and of held-out images, `held_out.<member>`."""
        columns, held_out = [], {}
        loaded = {
            source.folder.path: source.tensors("test_scores") | source.tensors("held_out.")
            for source, _ in self._teachers
        }
        for k, (source, member) in enumerate(self._teachers):
            tensors, position = loaded[source.folder.path], source.positions[member]
            try:
                columns.append(with_parts(tensors["test_scores"], 2)[:, position])
                held_out[f"held_out.{k}"] = with_parts(tensors[f"held_out.{position}"], 1)
            except KeyError as error:
                raise ConfigError(
                    "teacher",
                    f"{source.folder.path} was trained by an earlier version of pkd, which kept no "
                    f"scores ({error} is missing): train its teachers again",
                ) from error
        common = min(column.shape[1] for column in columns)  # parts that every source has
        return {"test_scores": torch.stack([c[:, :common] for c in columns], 1), **held_out}

    def metrics(self, epochs: int) -> list[dict[str, Any]]:
        """Records of metrics.jsonl for the epochs of the teachers' training."""
        records = []
        for epoch in range(epochs):
            rows = [
                (source.folder.metrics[epoch], source.positions[member])
                for source, member in self._teachers
            ]
            record = copy.deepcopy(rows[0][0])
            record["auc"] = [row["auc"][position] for row, position in rows]
            losses = record["losses"]["teacher"]
            for name in losses:
                losses[name] = [row["losses"]["teacher"][name][position] for row, position in rows]
            records.append(record)
        return records

    def _of_members(self, prefix: str) -> dict[str, Tensor]:
        loaded = {source.folder.path: source.tensors(prefix) for source, _ in self._teachers}
        parts: dict[str, list[Tensor]] = {}
        for source, member in self._teachers:
            for name, tensor in loaded[source.folder.path].items():
                rows = _rows(tensor, len(source.positions))[source.positions[member]]
                parts.setdefault(name, []).append(rows)
        return {name: torch.cat(rows) for name, rows in parts.items()}


def _existing(path: Path, beside: Path | None) -> Path:
    """The folder itself, or the one of the same name beside a run."""
    moved = beside.absolute().parent / path.name if beside else path
    return moved if not path.is_dir() and moved.is_dir() else path


def _open_source(path: Path, config: ResolvedConfig, data_sha256: str) -> _Source:
    """Open a finished run and check that its teachers fit a run."""
    folder = RunFolder.open(path)
    source_config = from_plain(folder.config(), path / "config.yaml")
    results = folder.results()
    if results is None:
        raise CheckpointError(f"{path} is not finished: continue it with {resume_command(path)}")
    if "teacher" not in folder.progress.auc:
        raise ConfigError("teacher", f"{path} has no teacher: its structure is student-only")
    if source_config.teacher:
        names = " ".join(source_config.teacher)
        raise ConfigError("teacher", f"{path} took its teachers from other runs: give {names}")
    members = [Member(m["normal_class"], m["seed"]) for m in results["members"]]
    try:
        check_epochs(folder.metrics, source_config.phases()[:1], len(members))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged, {error}: {RESTORE}") from error
    positions = {member: k for k, member in enumerate(members)}
    if results["data_sha256"] != data_sha256:
        raise ConfigError(
            "teacher",
            f"{path} was trained on other images than those of the data set {config.dataset} that "
            "this run uses: choose a run with the same `dataset` and `data_dir`",
        )
    wanted, trained = teacher_settings(config), teacher_settings(source_config)
    for name, value in wanted.items():
        if trained[name] != value:
            raise ConfigError(
                "teacher",
                f"{path} was trained with `{name}` {_text(trained[name])}, this run has "
                f"{_text(value)}: use the same value, or train the teacher again",
            )
    return _Source(folder, positions)


def _text(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _source_of(member: Member, sources: Sequence[_Source]) -> _Source:
    for source in sources:
        if member in source.positions:
            return source
    folders = ", ".join(str(source.folder.path) for source in sources)
    raise ConfigError("teacher", f"{folders} has no teacher of {member}: add a run that has it")
