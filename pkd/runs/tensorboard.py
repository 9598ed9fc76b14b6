"""Live curves for TensorBoard, which is an optional package: importing this needs it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pkd.runs.callbacks import Reporter
from pkd.training.config import Phase
from pkd.utils.errors import PkdError

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError as error:
    raise PkdError(
        "--tensorboard needs the package tensorboard, which is missing or broken here "
        f"({error}): pip install 'pkdgan[tensorboard]'"
    ) from error


class TensorBoard(Reporter):
    """Writes each phase as a run of TensorBoard, FOLDER/<phase>, over the steps of the phase.

    A resumed phase continues its curves; what had been written beyond the checkpoint is hidden.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.writer: SummaryWriter | None = None

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()

    def begin(self, phase: Phase, steps: int, done: int) -> None:
        self.__exit__()
        with self._writing():
            self.writer = SummaryWriter(self.folder / phase.name, purge_step=done)
        self.step = done

    def advance(self, steps: int, losses: dict[str, float]) -> None:
        self.step = steps
        with self._writing():
            for name, loss in losses.items():
                self.writer.add_scalar(f"loss/{name}", loss, steps)

    def epoch(self, record: dict[str, Any], epochs: int) -> None:
        auc = record["auc"]
        values = {"mean": sum(auc) / len(auc), "smallest": min(auc), "largest": max(auc)}
        with self._writing():
            for name, value in values.items():
                self.writer.add_scalar(f"auc/{name}", value, self.step)
            self.writer.flush()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise PkdError(
                f"{self.folder} cannot be written ({error}): make room or get permission there, or "
                "go without --tensorboard; pkd train --resume continues from the last checkpoint"
            ) from error
