"""Engines run the tasks of a sweep: in this process, or on the workers of a cluster."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from pkd.utils.errors import PkdError

# A task is a module-level function with picklable arguments. A failure of its shard is part of its
# result, see `pkd.sweep.shard`, so it raises only for programming errors.
Task = Callable[..., dict[str, Any]]


class Handle:
    """A submitted task. Engines add what they need; handles are compared by identity."""


class WorkerError(PkdError):
    """The process of a task died more often than its retries.

    Attributes:
        handle: the task.
    """

    def __init__(self, handle: Handle, message: str):
        super().__init__(message)
        self.handle = handle


class Engine(Protocol):
    """Runs tasks.

    Attributes:
        workers: tasks that run at the same time.
        threads: CPU threads for each task.
    """

    workers: int
    threads: int

    def submit(self, task: Task, *args: Any) -> Handle:
        """Run a task on a free worker, now or later."""

    def wait(self, handles: Sequence[Handle]) -> tuple[Handle, dict[str, Any]]:
        """Wait until one of the tasks has ended; return its handle and its result.

        Args:
            handles: tasks that were submitted and not yet returned, at least one.

        Raises:
            WorkerError: the process of one of the tasks died too often.
        """

    def close(self) -> None:
        """End the workers. Tasks that still run are lost."""


class _LocalHandle(Handle):
    def __init__(self, task: Task, args: tuple[Any, ...]):
        self.task, self.args = task, args


class LocalEngine:
    """Runs the tasks in this process, one after the other.

    Attributes:
        workers: 1.
        threads: the threads of this process.
    """

    def __init__(self) -> None:
        self.workers, self.threads = 1, torch.get_num_threads()

    def submit(self, task: Task, *args: Any) -> Handle:
        """Keep a task until `wait`."""
        return _LocalHandle(task, args)

    def wait(self, handles: Sequence[Handle]) -> tuple[Handle, dict[str, Any]]:
        """Run the first task."""
        handle = handles[0]
        assert isinstance(handle, _LocalHandle)
        return handle, handle.task(*handle.args)

    def close(self) -> None:
        """Do nothing: there are no workers."""
