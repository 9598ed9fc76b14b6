"""Run the stages in order, each in its own process with its own time limit."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.gpu.facts import Fact, Facts
from bench.gpu.plan import MIN_S, TOTAL_S, Stage

ROOT = Path(__file__).parent.parent.parent
STOPPED = 124  # exit code of a command that was killed at its time limit
MARGIN_S = 1.0  # for the regular end of a stage


def run(command: list[str], timeout: float, **environment: str) -> tuple[int, str]:
    """Run a command at the root of the repository and print its output.

    At the end, and at the time limit, the command and all processes that it started are killed.

    Args:
        command: program and arguments.
        timeout: time limit in seconds.
        environment: additional environment variables.

    Returns:
        Exit code and output.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=inherited_environment() | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(max(0.0, timeout))
        except subprocess.TimeoutExpired:
            code = STOPPED
        finally:
            _kill_group(process)
        output.seek(0)
        text = output.read()
    print(text, end="", flush=True)
    return code, text


def inherited_environment() -> dict[str, str]:
    """Return the environment for a command."""
    # pytest's variables, of a test that calls this function, would make pytest a worker of xdist.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    # The packages of this folder need no installation.
    path = os.pathsep.join(filter(None, [str(ROOT / "kernels"), inherited.get("PYTHONPATH")]))
    # A process that is killed loses what is in its buffer.
    return inherited | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def _kill_group(process: subprocess.Popen) -> None:
    """Kill a process and the processes that it started, also those that survived it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def run_stage(stage: Stage, facts: Facts, deadline: float, rehearse: bool = False) -> str:
    """Run a stage until `deadline` (a time.time()) at most, write its end and return it.

    Returns:
        "done", "stopped" (at its time limit) or "failed" (a task is not done, or a crash).
    """
    start = time.time()
    command = [sys.executable, "-m", "bench.gpu.tasks", stage.tasks, stage.name]
    command += [str(facts.path), str(facts.call), str(deadline - MARGIN_S)]
    interpreter = {"TRITON_INTERPRET": "1"} if rehearse else {}
    code, _ = run(command + ["--rehearse"] * rehearse, deadline - start, **interpreter)
    ended = {0: "done", STOPPED: "stopped"}.get(code, "failed")
    seconds = round(time.time() - start, 2)
    facts.append(stage.name, ended=ended, exit_code=code, seconds=seconds)
    return ended


def run_stages(
    stages: Sequence[Stage], facts: Facts, total: float = TOTAL_S, rehearse: bool = False
) -> dict[str, str]:
    """Run all stages that no earlier call has done, within `total` seconds.

    A stage takes its own seconds at most, and those that the stages before it left over.

    Returns:
        The end of every stage: as from `run_stage`, or "not run".
    """
    facts.end_last_line()
    deadline = time.time()
    end = deadline + total
    ends: dict[str, str] = {}
    for stage in stages:
        if facts.is_done(stage.name):
            ends[stage.name] = "done"
            continue
        deadline = min(end, deadline + stage.seconds)
        left = deadline - time.time()
        if left < MIN_S:
            ends[stage.name] = "not run"
            continue
        print(f"\n{stage.name}: at most {left:.0f} s", flush=True)
        ends[stage.name] = run_stage(stage, facts, deadline, rehearse)
        print(f"{stage.name}: {ends[stage.name]}", flush=True)
    return ends


def begin_call(path: Path, identity: Fact) -> Facts:
    """Start a call on a new or an existing file of facts.

    Args:
        path: the file.
        identity: what must be equal in all calls, such as the commit.

    Raises:
        ValueError: an earlier call had another identity.
    """
    calls = Facts(path).of("call")
    for key, value in identity.items():
        if calls and calls[0].get(key) != value:
            raise ValueError(
                f"{path} has results with {key} {calls[0].get(key)!r}, not {value!r}: "
                "choose another folder"
            )
    facts = Facts(path, len(calls) + 1)
    facts.end_last_line()
    facts.append("call", **identity)
    return facts
