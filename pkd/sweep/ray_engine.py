"""Engine that runs the tasks of a sweep on the workers of Ray, on this machine or on a cluster.

Ray is an optional package: it is imported where an engine is created.
"""

import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from pkd.sweep.engines import Handle, Task, WorkerError
from pkd.utils.errors import ConfigError, PkdError

RETRIES = 3  # of a task whose process died
CONNECT_SECONDS = 10.0
OBJECT_STORE_BYTES = 100 * 2**20  # arguments and results of the tasks are small
# Environment of this process, read by Ray: no usage statistics; a task that exceeds the memory of
# its machine is retried as often as after any other death, not for ever.
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_task_oom_retries": str(RETRIES)}


class _RayHandle(Handle):
    def __init__(self, task: Task, args: tuple[Any, ...]):
        self.task, self.args = task, args


class RayEngine:
    """Runs each task on a GPU or on some CPUs, in a process of Ray.

    A task whose process dies is repeated up to three times, on any node.

    Args:
        workers: tasks that run at the same time; default: the GPUs, or without GPUs the CPUs.
        address: HOST:PORT of a running Ray cluster, or "auto" for the one of this machine. None
            starts Ray on this machine, until `close`.
        use_gpu: run each task on a GPU of its own if there are any.

    Attributes:
        workers: tasks that run at the same time.
        threads: CPU threads for each task.

    Raises:
        ConfigError: Ray is not installed, nothing answers at the address, or there are not as many
            GPUs as workers.
        PkdError: Ray cannot be started on this machine.
    """

    def __init__(
        self, workers: int | None = None, address: str | None = None, use_gpu: bool = True
    ):
        if workers is not None and workers < 1:
            raise ConfigError("workers", f"must be at least 1, not {workers}")
        self._ray = _import_ray()
        self._queue: list[_RayHandle] = []
        self._running: dict[Any, _RayHandle] = {}  # reference of the result -> task
        self._ended: dict[Handle, Any] = {}  # task -> reference of the result
        with _sigterm_handler_kept():
            if address is None:
                self._start(use_gpu)
            else:
                self._connect(address)
        try:
            self._divide(workers, use_gpu)
        except BaseException:
            self.close()
            raise

    def _start(self, use_gpu: bool) -> None:
        """Start Ray on this machine; PkdError if that fails."""
        try:
            self._ray.init(
                "local",
                num_gpus=torch.cuda.device_count() if use_gpu else 0,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                **_connection_options(),
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise PkdError(
                f"Ray cannot be started on this machine ({error}): use `engine` local, or give the "
                "`address` of a running cluster"
            ) from error

    def _connect(self, address: str) -> None:
        """Connect to a running cluster; ConfigError if none answers."""
        try:
            if address != "auto":
                _check_reachable(address)
            self._ray.init(address, **_connection_options())
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                "address",
                f"is {address}, but no Ray cluster answers there ({error}): check it with "
                f"ray status --address {address}, or leave it out to start Ray on this machine",
            ) from error

    def _divide(self, workers: int | None, use_gpu: bool) -> None:
        """Divide the GPUs or CPUs of the cluster among the workers."""
        resources = self._ray.cluster_resources()
        cpus, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
        on_gpu = use_gpu and gpus > 0
        self.workers = workers or (gpus if on_gpu else cpus)
        self.threads = max(1, cpus // self.workers)
        if on_gpu and self.workers > gpus:
            raise ConfigError(
                "workers",
                f"is {self.workers}, but Ray has GPUs for {gpus}: choose at most {gpus}",
            )
        if not on_gpu:
            # A task runs on one node.
            nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            self.threads = min(self.threads, int(max(node.get("CPU", 1) for node in nodes)))
        # More workers than CPUs share them.
        share = self.threads if self.workers <= cpus else cpus / self.workers
        resources = {"num_gpus": 1, "num_cpus": 0} if on_gpu else {"num_cpus": share}
        self._remote = self._ray.remote(max_retries=RETRIES, **resources)

    def submit(self, task: Task, *args: Any) -> Handle:
        """Run a task on a free worker, now or later."""
        handle = _RayHandle(task, args)
        self._queue.append(handle)
        self._start_queued()
        return handle

    def _start_queued(self) -> None:
        while self._queue and len(self._running) < self.workers:
            handle = self._queue.pop(0)
            self._running[self._remote(handle.task).remote(*handle.args)] = handle

    def wait(self, handles: Sequence[Handle]) -> tuple[Handle, dict[str, Any]]:
        """Wait until one of the tasks has ended; return its handle and its result.

        Args:
            handles: tasks that were submitted and not yet returned, at least one.

        Raises:
            WorkerError: the process of one of the tasks died too often.
        """
        while True:
            for handle in handles:
                if handle in self._ended:
                    return handle, self._result(handle)
            references, _ = self._ray.wait(list(self._running))
            for reference in references:
                self._ended[self._running.pop(reference)] = reference
            self._start_queued()

    def _result(self, handle: Handle) -> dict[str, Any]:
        errors = self._ray.exceptions
        try:
            result: dict[str, Any] = self._ray.get(self._ended.pop(handle))
        except errors.RuntimeEnvSetupError as error:
            raise WorkerError(handle, f"its environment cannot be set up ({error})") from error
        except errors.RayTaskError as error:
            raise WorkerError(
                handle,
                f"its worker failed ({error.cause!r}): install the same versions of pkd and Python "
                "there",
            ) from error
        except errors.OutOfMemoryError as error:
            raise WorkerError(handle, _death("the memory of its machine was full")) from error
        except errors.NodeDiedError as error:
            raise WorkerError(handle, _death("its machine left the cluster")) from error
        except errors.RayError as error:
            raise WorkerError(handle, _death("it was killed or crashed")) from error
        return result

    def close(self) -> None:
        """End the workers of a local Ray, or leave the cluster. Tasks that still run are lost."""
        self._ray.shutdown()


def _import_ray() -> ModuleType:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "engine",
            f"'ray' needs Ray, which cannot be imported ({error}): pip install 'pkdgan[ray]'",
        ) from error
    return ray


@contextmanager
def _sigterm_handler_kept() -> Iterator[None]:
    """Keep this process's handler of SIGTERM, which Ray replaces. Its workers ignore Ctrl-C."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is not handler:
            signal.signal(signal.SIGTERM, handler)


def _connection_options() -> dict[str, Any]:
    """Options of ray.init for every cluster: workers import what this process imports, quietly."""
    environment = {k: v for k, v in os.environ.items() if k.startswith("PKD_")}
    environment["PYTHONPATH"] = os.pathsep.join(_import_path())
    return {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": environment},
    }


def _import_path() -> list[str]:
    """Folders of `sys.path` outside of the Python installation, as of a source checkout."""
    prefixes = {Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix)}
    folders = [Path(entry).resolve() for entry in sys.path]
    return [
        str(folder)
        for folder in dict.fromkeys(folders)
        if folder.is_dir() and not any(folder.is_relative_to(prefix) for prefix in prefixes)
    ]


def _check_reachable(address: str) -> None:
    """Raise OSError or ValueError unless something listens: Ray itself would wait for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError("it has not the form HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


def _death(reason: str) -> str:
    return f"its process died {RETRIES + 1} times, the last time because {reason}"
