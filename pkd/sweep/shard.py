"""The task that trains one shard on a worker: a run folder, created or continued."""

import logging
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from pkd.runs.folder import RunFolder
from pkd.runs.pipeline import train
from pkd.runs.run import Run
from pkd.sweep.measure import free_memory
from pkd.sweep.plan import FILE, Plan, shard_folder
from pkd.sweep.progress import ProgressFile, StopFile, stop_file
from pkd.training.callbacks import CallbackList, TrainingInterrupted
from pkd.training.config import ResolvedConfig
from pkd.training.settings import from_plain, to_plain
from pkd.utils.errors import DataError, OutputError, PkdError

logger = logging.getLogger(__name__)

# The lock of a dead worker may still be held when its retry starts.
LOCK_SECONDS = 60.0


def train_shard(directory: str, name: str) -> dict[str, Any]:
    """Task: train a shard of a sweep, from its last checkpoint if it has one.

    Args:
        directory: folder of the sweep; the same path on every worker.
        name: name of the shard in the plan.

    Returns:
        "status": "finished", "interrupted" (by DIR/stop), "out_of_memory" (of the GPU) or "failed";
        "error": reason of the last two, else None.
    """
    status, error = "finished", None
    try:
        _train(Path(directory), name)
    except TrainingInterrupted:
        status = "interrupted"
    except torch.OutOfMemoryError as reason:
        status, error = "out_of_memory", str(reason)
    except PkdError as reason:
        status, error = "failed", str(reason)
    except Exception as reason:  # the other shards go on
        logger.exception("shard %s", name)
        status, error = "failed", f"{type(reason).__name__}: {reason}"
    free_memory()
    return {"status": status, "error": error}


def _train(directory: Path, name: str) -> None:
    if not (directory / FILE).is_file():
        raise OutputError(
            f"{directory / FILE} does not exist on the worker: choose an `out` folder on a file "
            "system that all workers share"
        )
    stop = StopFile(stop_file(directory))
    stop.on_batch_end()  # a task that was waiting when the sweep was stopped
    plan = Plan.read(directory)
    shard = plan.shard(name)
    torch.set_num_threads(plan.threads)
    run = open_shard(plan.config(shard, directory), shard_folder(directory, name))
    try:
        if run.dataset.digest != plan.cell_of(shard).data_sha256:
            raise DataError(
                f"the images of the data set {run.config.dataset} have changed since the sweep was "
                "planned: restore them, or start a new sweep in another folder"
            )
        progress = ProgressFile(directory, name, plan.steps(shard), run.folder)
        train(run, CallbackList([progress, stop]))
        progress.finish()
    finally:
        run.folder.release()


def open_shard(config: ResolvedConfig, path: Path) -> Run:
    """Create the run of a shard, or continue it, with a smaller stack if the plan has one.

    Args:
        config: settings of the shard.
        path: its run folder.

    Raises:
        PkdError: another process is training in the folder, or a file cannot be read or written.
    """
    _wait_for_lock(path)
    if not (path / "config.yaml").is_file():
        return Run.create(config, path)
    _apply_stack(config, path)
    return Run.resume(path)


def _wait_for_lock(path: Path) -> None:
    """Wait until no other process trains in a folder; PkdError if one still does."""
    if not path.is_dir():
        return
    try:
        with FileLock(path / ".lock", timeout=LOCK_SECONDS):
            pass
    except Timeout as error:
        raise PkdError(f"another process is training in {path}: wait for it") from error
    except OSError as error:
        raise OutputError.from_os_error(path, error) from error


def _apply_stack(config: ResolvedConfig, path: Path) -> None:
    """Restart the current phase of a run if its stack is larger than that of the plan."""
    folder = RunFolder.resume(path)
    try:
        old = from_plain(folder.config(), path / "config.yaml")
        if old.stack != config.stack:
            finished = old.phases()[: folder.progress.phase]
            new = to_plain(old) | {"stack": config.stack}
            folder.restart_phase(sum(phase.epochs for phase in finished), new)
    finally:
        folder.release()
