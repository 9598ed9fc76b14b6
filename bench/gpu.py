"""`python -m bench.gpu --out DIR`: run GPU tests and all benchmarks; write JSON files.

The command takes less than eight minutes. Benchmarks for which no time is left are skipped, and a
benchmark that hangs is killed with its child processes; the tables show both as "not run". Results
are written as they are measured, to gpu-NAME.json (tests and ops) and ladder-NAME.json (training
steps). Copy the files into bench/results/ and run `python -m bench.tables`.

Failed tests are listed in gpu-NAME.json and at the end of the output. The exit code is 1 if a test
failed or was not run, a contender differed from the reference, or a rung of the ladder failed. A
peer that fails is shown as failed and does not change the exit code.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import triton

from bench.pytest_gpu import Results, describe, read_events, result_log_option, results
from bench.step import commit

ROOT = Path(__file__).parent.parent
# Time limits in seconds. The ladder takes the rest of TOTAL_S.
TOTAL_S, TESTS_S, OPS_S, SANITIZER_S = 460, 130, 90, 30
TEST_S = 60  # of one test
MARGIN_S = 20  # for the start and the regular end of a command
STOPPED = 124  # exit code of a command that was killed at its time limit
MAX_PROCESSES = 8
PROCESS_BYTES = 4 * 2**30  # GPU memory of one process, enough for the largest test
PYTEST = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
PYTEST += ["-p", "bench.pytest_gpu", "--continue-on-collection-errors"]


def run(command: list[str], timeout: float, **environment: str) -> tuple[int, str]:
    """Run a command at the root of the repository and print its output.

    At the time limit the command and all processes that it started are killed.

    Args:
        command: program and arguments.
        timeout: time limit in seconds.
        environment: additional environment variables.

    Returns:
        Exit code and output.
    """
    # pytest's variables, of a test that calls this function, would make pytest a worker of xdist.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    # A process that is killed loses what is in its buffer.
    inherited["PYTHONUNBUFFERED"] = "1"
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=inherited | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(max(0.0, timeout))
        except subprocess.TimeoutExpired:
            code = STOPPED
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        text = output.read()
    print(text, flush=True)
    return code, text


def run_tests(
    log: Path, arguments: list[str], seconds: float, workers: int = 0, **environment: str
) -> Results:
    """Run tests with pytest and return their results, see `bench.pytest_gpu.results`.

    Args:
        log: file for the results, see `bench.pytest_gpu`.
        arguments: tests and options of pytest.
        seconds: time limit.
        workers: processes of pytest-xdist. Without workers (pytest-benchmark measures nothing in
            them) pytest starts again after a crash, for the remaining tests.
        environment: additional environment variables.
    """
    start = time.time()
    threads = max(1, len(os.sched_getaffinity(0)) // max(1, workers))
    command = [*PYTEST, result_log_option(log), "-n", str(workers), *arguments]
    finished, progress = False, True
    while not finished and progress:
        known = len(read_events(log))
        left = start + seconds - time.time()
        code, _ = run(command, left, OMP_NUM_THREADS=str(threads), **environment)
        events = read_events(log)[known:]
        finished = code == STOPPED or any("finished" in event for event in events)
        progress = any("started" in event for event in events)
    return results(log) | {"processes": max(1, workers), "seconds": round(time.time() - start)}


def gpu_tests(folder: Path) -> Results:
    """Run all GPU tests; as they mostly compile, on every core for which GPU memory suffices."""
    free, _ = torch.cuda.mem_get_info()
    workers = min(MAX_PROCESSES, len(os.sched_getaffinity(0)), free // PROCESS_BYTES)
    arguments = ["tests", "-m", "gpu", "--dist", "worksteal", "--max-worker-restart", "1000"]
    # By a thread: a signal does not interrupt a call that waits for the GPU.
    arguments += ["--timeout", str(TEST_S), "--timeout-method", "thread"]
    return run_tests(folder / "tests.jsonl", arguments, TESTS_S, max(1, workers))


def sanitized(folder: Path) -> tuple[int, str]:
    """Run a few GPU tests under compute-sanitizer, if it is installed.

    Returns:
        1 if the tool or a test found an error, else 0; and a summary.
    """
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return 0, "not installed"
    selection = "cuda and float32 and (every_geometry or equals_definition)"
    selection += " and (not generator_loss or 2-3-35-9 or 5-1-300)"
    log = folder / "sanitizer.jsonl"
    command = [tool, "--error-exitcode", "9", *PYTEST, "-n", "0", result_log_option(log)]
    command += ["tests/kernels", "-m", "gpu", "-k", selection]
    # A separate allocation for every tensor: the tool detects no overrun within a cached block.
    code, text = run(command, SANITIZER_S, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    return sanitizer_summary(code, text, results(log))


def sanitizer_summary(code: int, text: str, counts: Results) -> tuple[int, str]:
    """Summarise the output of compute-sanitizer.

    Returns:
        1 or 0 as in `sanitized`; and a text such as
        "stopped after 30 s: 20 passed, 8 not run; no error".
    """
    errors = re.findall(
        r"^={9} (?!COMPUTE-SANITIZER|ERROR SUMMARY: 0)(\w.*[^=\s])\s*$", text, re.MULTILINE
    )
    if not errors and code not in (0, STOPPED):
        errors = [f"exit code {code}"]
    stopped = f"stopped after {SANITIZER_S} s: " if code == STOPPED else ""
    error = errors[0] if errors else "no error"
    return int(bool(errors) or counts["failed"] > 0), f"{stopped}{describe(counts)}; {error}"


def op_rows(folder: Path, seconds: float) -> tuple[Results, list[dict[str, Any]]]:
    """Run the benchmarks of the ops; return their results as tests, and the measured rows."""
    file = folder / "rows.jsonl"
    counts = run_tests(
        folder / "ops.jsonl",
        ["bench/test_ops.py"],
        seconds,
        PKD_BENCH_DEADLINE=str(time.time() + seconds - MARGIN_S),
        PKD_BENCH_ROWS=str(file),
    )
    lines = file.read_text().splitlines() if file.exists() else []
    return counts, joined([json.loads(line) for line in lines])


def joined(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join the row of a call's times with the later row of its launches."""
    calls: dict[tuple, dict[str, Any]] = {}
    for row in rows:
        labels = tuple(row[key] for key in ("op", "direction", "batch", "stack", "contender"))
        calls.setdefault(labels, {}).update(row)
    return list(calls.values())


def ladder(file: Path, seconds: float) -> int:
    """Run `python -m bench.step --ladder`, which rewrites `file` after every cell.

    Returns:
        The exit code; 0 if the command was stopped at its time limit.
    """
    options = ["--ladder", "--budget", str(seconds - MARGIN_S), "--json", str(file)]
    code, _ = run([sys.executable, "-m", "bench.step", *options], seconds)
    return 0 if code == STOPPED else code


def main() -> int:
    """Run tests, ops, compute-sanitizer and the ladder; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    out = parser.parse_args().out.absolute()
    if not torch.cuda.is_available():
        sys.exit("bench.gpu: this machine has no NVIDIA GPU")
    end = time.time() + TOTAL_S
    out.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name()
    slug = re.sub("[^a-z0-9]+", "-", name.lower())
    path = out / f"gpu-{slug}.json"
    result = {
        "gpu": name,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
        "commit": commit(),
    }

    def save(**values: Any) -> None:
        result.update(values)
        path.write_text(json.dumps(result, indent=1) + "\n")

    save(tests=None, op_tests=None, sanitizer="not run", rows=[])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tests = gpu_tests(folder)
        save(tests=tests)
        op_tests, rows = op_rows(folder, OPS_S)
        save(op_tests=op_tests, rows=rows)
        sanitizer_code, sanitizer = sanitized(folder)
        save(sanitizer=sanitizer)
    ladder_code = ladder(out / f"ladder-{slug}.json", end - time.time())
    for failure in tests["failures"] + op_tests["failures"]:
        print(f"{failure['test']}: {failure['error']}")
    print(f"GPU tests: {describe(tests)}. Benchmarks of ops: {describe(op_tests)}.")
    print(f"compute-sanitizer: {sanitizer}.")
    print(f"{len(rows)} rows of ops in {path}; the ladder is in the same folder")
    complete = tests["passed"] and not (tests["failures"] or tests["not_run"])
    return int(not complete or bool(op_tests["failed"] or sanitizer_code or ladder_code))


if __name__ == "__main__":
    sys.exit(main())
