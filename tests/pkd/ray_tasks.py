"""Tasks for the workers of Ray. Workers import this module, which they cannot do with a test."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

import pkd
from pkd.runs.stop_on_signal import StopOnSignal
from pkd.sweep.engines import WorkerError
from pkd.sweep.ray_engine import RayEngine

SECONDS = 60.0


def wait_for(path: Path) -> None:
    end = time.monotonic() + SECONDS
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(path)
        time.sleep(0.02)


def environment(value: int) -> dict[str, Any]:
    """What a worker has: value, process, modules, threads, GPUs."""
    return {
        "value": value,
        "pid": os.getpid(),
        "pkd": pkd.__file__,
        "data_dir": os.environ.get("PKD_DATA_DIR"),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "threads": torch.get_num_threads(),
    }


def meet(folder: str, name: str, other: str) -> dict[str, Any]:
    """Return when the other task runs as well."""
    (Path(folder) / name).touch()
    wait_for(Path(folder) / other)
    return environment(0)


def alone(folder: str) -> dict[str, Any]:
    """Fail if another task with this folder runs at the same time."""
    path = Path(folder) / "running"
    path.touch(exist_ok=False)
    time.sleep(0.2)
    path.unlink()
    return environment(0)


def fail() -> dict[str, Any]:
    raise ZeroDivisionError("an error of the task")


def die(folder: str, deaths: int) -> dict[str, Any]:
    """Count to 10 with checkpoints; die by SIGKILL in the middle of the first attempts."""
    attempts, checkpoint = Path(folder) / "attempts", Path(folder) / "checkpoint"
    with attempts.open("a") as file:
        file.write(f"{os.getpid()}\n")
    attempt = len(attempts.read_text().split())
    first = count = int(checkpoint.read_text()) if checkpoint.exists() else 0
    while count < 10:
        count += 1
        checkpoint.write_text(str(count))
        if count == first + 2 and attempt <= deaths:
            os.kill(os.getpid(), signal.SIGKILL)
    return {"first": first, "count": count, "attempts": attempt}


def allocate(megabytes: int) -> dict[str, Any]:
    """Hold memory until Ray ends the process."""
    content = bytearray(megabytes * 2**20)
    time.sleep(SECONDS)
    return {"bytes": len(content)}


def until_stopped(folder: str, name: str) -> dict[str, Any]:
    """Run until a file "stop" exists, then write a checkpoint."""
    started = Path(folder) / name
    with started.open("a") as file:
        file.write("started\n")
    wait_for(Path(folder) / "stop")
    time.sleep(1)  # a worker that the signal has reached is dead by now
    with started.open("a") as file:
        file.write("checkpoint\n")
    return {"status": "interrupted"}


def main() -> None:
    """Driver with two tasks in the folder of the command line, until Ctrl-C."""
    folder = Path(sys.argv[1])
    before = signal.getsignal(signal.SIGTERM)
    engine = RayEngine(workers=2, use_gpu=False)
    assert signal.getsignal(signal.SIGTERM) is before
    with StopOnSignal((folder / "stop").touch):
        handles = [engine.submit(until_stopped, str(folder), name) for name in ("a", "b")]
        try:
            while handles:
                handle, result = engine.wait(handles)
                handles.remove(handle)
                print(result["status"], flush=True)
        except WorkerError as error:
            print(error, flush=True)
    engine.close()
    print("closed", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
