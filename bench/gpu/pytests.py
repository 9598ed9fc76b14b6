"""Stages that run pytest: "tests", "ops" and "sanitizer"."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from bench.gpu.facts import Fact
from bench.gpu.machine import nvidia_smi
from bench.gpu.runner import ROOT, STOPPED, inherited_environment
from bench.gpu.tasks import Tasks

TEST_S = 60  # of one test
MARGIN_S = 15  # for the launches of the ops and the regular end of pytest
POLL_S = 1.0
MAX_PROCESSES = 16
PROCESS_MIB = 4096  # GPU memory of one process, enough for the largest test
PYTEST = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
PYTEST += ["-p", "bench.pytest_gpu", "--continue-on-collection-errors"]
# By a thread: a signal does not interrupt a call that waits for the GPU.
TIMEOUT = ["--timeout", str(TEST_S), "--timeout-method", "thread"]

# The first tests: the convolutions, then everything with a graph.
FIRST = ("tests/kernels/conv/", "cuda_graph")

REHEARSED_TESTS = ["tests/bench/test_profiling.py", "-n", "1"]
REHEARSED_OPS = ["-k", "(test_op and novelty and eager and not graph) or launches"]


def tests(rehearse: bool) -> Tasks:
    """Run all GPU tests."""
    return Tasks({"pytest": _rehearsed_tests if rehearse else _gpu_tests})


def ops(rehearse: bool) -> Tasks:
    """Time the ops."""
    return Tasks({"pytest": partial(_op_benchmarks, REHEARSED_OPS if rehearse else [])})


def sanitizer(rehearse: bool) -> Tasks:
    """Run a few GPU tests under compute-sanitizer, if it is installed."""
    return Tasks({"pytest": _sanitized})


def _gpu_tests(deadline: float) -> Iterator[Fact]:
    """Tests mostly compile, so they run on every core for which GPU memory suffices.

    `load` with chunks of one test keeps the order, so the first tests run first.
    """
    workers = worker_count(nvidia_smi("memory.free").get("memory.free", ""))
    arguments = [*gpu_test_paths(), "-m", "gpu", "-n", str(workers), "--max-worker-restart", "1000"]
    arguments += ["--dist", "load", "--maxschedchunk", "1"]
    arguments += [*TIMEOUT, *(f"--tests-first={part}" for part in FIRST)]
    yield from _complete(pytest_facts(arguments, deadline, workers))


def gpu_test_paths() -> list[str]:
    """Return the files with GPU tests; for a conftest.py its folder, whose tests have its fixtures.

    Every worker collects all files that pytest gets. The others take time, and some of them need
    packages that a GPU machine may lack.
    """
    texts = {p: p.read_text(encoding="utf-8") for p in sorted((ROOT / "tests").rglob("*.py"))}
    marked = [path for path, text in texts.items() if "pytest.mark.gpu" in text]
    folders = {path.parent for path in marked if path.name == "conftest.py"}
    files = {path for path in marked if not folders & set(path.parents)}
    return [str(path.relative_to(ROOT)) for path in sorted(folders | files)]


def _complete(facts: Iterable[Fact]) -> Iterator[Fact]:
    """Pass results on; raise RuntimeError at the end if tests were not run."""
    counts: Fact = {}
    for counts in facts:
        yield counts
    if not counts["passed"] or counts["not_run"]:
        raise RuntimeError(f"{counts['passed']} tests passed, {counts['not_run']} were not run")


def worker_count(free_memory: str) -> int:
    """Return the number of pytest processes for the GPU memory that nvidia-smi reports."""
    number = re.match(r"\d+", free_memory)
    most = int(number[0]) // PROCESS_MIB if number else MAX_PROCESSES
    return max(1, min(MAX_PROCESSES, len(os.sched_getaffinity(0)), most))


def _rehearsed_tests(deadline: float) -> Iterator[Fact]:
    yield from _complete(pytest_facts([*REHEARSED_TESTS, *TIMEOUT], deadline))


def _op_benchmarks(selection: Sequence[str], deadline: float) -> Iterator[Fact]:
    """Without workers, in which pytest-benchmark measures nothing."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        environment = {
            "PKD_BENCH_DEADLINE": str(deadline - MARGIN_S),
            "PKD_BENCH_ROWS": str(rows),
        }
        arguments = ["bench/test_ops.py", "-n", "0", *selection]
        written = 0
        for counts in pytest_facts(arguments, deadline, **environment):
            lines = _complete_lines(rows)
            yield from ({"row": json.loads(line)} for line in lines[written:])
            written = len(lines)
            yield counts


def _complete_lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _sanitized(deadline: float) -> Iterator[Fact]:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        yield {"sanitizer": "not installed"}
        return
    from bench.pytest_gpu import result_log_option, results

    selection = "cuda and float32 and (every_geometry or equals_definition)"
    selection += " and (not generator_loss or 2-3-35-9 or 5-1-300)"
    with tempfile.TemporaryDirectory() as folder:
        log, output = Path(folder) / "results.jsonl", Path(folder) / "output"
        command = [tool, "--error-exitcode", "9", *PYTEST, "-n", "0", result_log_option(log)]
        command += ["tests/kernels", "-m", "gpu", "-k", selection]
        with output.open("w") as file:
            # A separate allocation for every tensor: the tool detects no overrun in one block.
            code = _wait(_start(command, file, PYTORCH_NO_CUDA_MEMORY_CACHING="1"), deadline)
        text = output.read_text(errors="replace")
        print(text, flush=True)
        failed, summary = sanitizer_summary(code, text, results(log))
    yield {"sanitizer": summary, "sanitizer_failed": failed}


def sanitizer_summary(code: int, text: str, counts: Fact) -> tuple[bool, str]:
    """Summarise the output of compute-sanitizer.

    Args:
        code: exit code of the command.
        text: its output.
        counts: results of the tests, see `bench.pytest_gpu.results`.

    Returns:
        Whether the tool or a test found an error; and a text such as
        "stopped at the time limit: 20 passed, 8 not run; no error".
    """
    from bench.pytest_gpu import describe

    errors = re.findall(
        r"^={9} (?!COMPUTE-SANITIZER|ERROR SUMMARY: 0)(\w.*[^=\s])\s*$", text, re.MULTILINE
    )
    if not errors and code not in (0, STOPPED):
        errors = [f"exit code {code}"]
    stopped = "stopped at the time limit: " if code == STOPPED else ""
    error = errors[0] if errors else "no error"
    return bool(errors) or counts["failed"] > 0, f"{stopped}{describe(counts)}; {error}"


def pytest_facts(
    arguments: Sequence[str], deadline: float, workers: int = 1, **environment: str
) -> Iterator[Fact]:
    """Run pytest and yield its results whenever they change, see `bench.pytest_gpu.results`.

    After a crash without xdist, whose workers are replaced, pytest starts again for the other
    tests.

    Args:
        arguments: tests and options.
        deadline: end of pytest, a time.time().
        workers: processes of the tests, which share the cores.
        environment: additional environment variables.
    """
    from bench.pytest_gpu import read_events, result_log_option, results

    start, last = time.time(), None
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "results.jsonl"
        command = [*PYTEST, result_log_option(log), *arguments]
        finished, progress = False, True
        while progress and not finished:
            known = len(read_events(log))
            process = _start(command, OMP_NUM_THREADS=str(threads), **environment)
            ended = False
            while not ended:
                ended = _wait(process, min(deadline, time.time() + POLL_S), kill=False) is not None
                if time.time() > deadline and not ended:
                    process.kill()
                    ended = finished = True
                counts = results(log)
                if counts != last or ended:
                    last = counts
                    yield counts | {"processes": workers, "seconds": round(time.time() - start)}
            events = read_events(log)[known:]
            finished = finished or any("finished" in event for event in events)
            progress = any("started" in event for event in events)


def _start(command: Sequence[str], output: object = None, **environment: str) -> subprocess.Popen:
    """Start a command in the process group of the stage, which is killed with the stage."""
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=inherited_environment() | environment,
        stdout=output,
        stderr=subprocess.STDOUT,
    )


def _wait(process: subprocess.Popen, deadline: float, kill: bool = True) -> int | None:
    """Wait until `deadline`; a process that has not ended is killed, or returns None."""
    try:
        return process.wait(max(0.0, deadline - time.time()))
    except subprocess.TimeoutExpired:
        if not kill:
            return None
        process.kill()
        return STOPPED
