"""Callback that writes live curves for TensorBoard, an optional package that this module needs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import override

from pkd.training.callbacks import Callback
from pkd.training.structures import Phase
from pkd.utils.errors import ConfigError, OutputError

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError as error:
    raise ConfigError(
        "tensorboard",
        "needs the package tensorboard, which is missing or broken here "
        f"({error}): pip install 'pkdgan[tensorboard]'",
    ) from error


class TensorBoard(Callback):
    """Write each phase as a TensorBoard run, FOLDER/<phase>, over the steps of the phase.

    A resumed phase continues its curves; points after the checkpoint are hidden.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.writer: SummaryWriter | None = None
        self.steps_done = 0

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.writer is not None:
            self.writer.close()

    @override
    def on_phase_start(self, phase: Phase, steps: int, steps_done: int) -> None:
        if self.writer is not None:
            self.writer.close()
        with self._output_errors():
            self.writer = SummaryWriter(self.folder / phase.name, purge_step=steps_done)
        self.steps_done = steps_done

    @override
    def on_train_steps_end(self, steps_done: int, losses: dict[str, float]) -> None:
        self.steps_done = steps_done
        self._add({f"loss/{name}": loss for name, loss in losses.items()})

    @override
    def on_epoch_end(self, record: dict[str, Any], epochs: int) -> None:
        auc = record["auc"]
        self._add(
            {"auc/mean": sum(auc) / len(auc), "auc/smallest": min(auc), "auc/largest": max(auc)}
        )
        if self.writer is not None:
            with self._output_errors():
                self.writer.flush()

    def _add(self, values: dict[str, float]) -> None:
        if self.writer is None:
            return
        with self._output_errors():
            for name, value in values.items():
                self.writer.add_scalar(name, value, self.steps_done)

    @contextmanager
    def _output_errors(self) -> Iterator[None]:
        """Raise the OSErrors of the body as OutputErrors that name the folder."""
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"{self.folder} cannot be written ({error}): free disk space or get write "
                "permission, or train without `tensorboard`; pkd train --resume continues from "
                "the last checkpoint"
            ) from error
