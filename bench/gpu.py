"""`python -m bench.gpu --out DIR`: GPU tests and every benchmark, as JSON files.

It stays under eight minutes: a benchmark that the time no longer allows for is left out, one that
hangs is ended with what it started, and the tables say "not run". The files are written as results
come, gpu-NAME.json (tests and ops) and ladder-NAME.json (training steps): copy them into
bench/results/ and run `python -m bench.report`. What failed is named there and at the end of what
is printed. The exit code is 1 if a test failed or was not run, a contender disagreed with the
definition or a rung of the ladder failed; a peer that fails is shown as failed.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import triton

from bench.shared_tests import in_words, results
from bench.step import commit

ROOT = Path(__file__).parent.parent
# Seconds; what the others leave is the ladder's.
TOTAL_S, TESTS_S, OPS_S, SANITIZER_S = 460, 130, 90, 30
MARGIN_S = 20  # to begin, and to end by itself
STOPPED = 124  # exit code of what ran out of time
PROCESSES, PROCESS_BYTES = 8, 4 * 2**30  # at most; of GPU memory, enough for the largest test
PYTEST = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
PYTEST += ["-p", "bench.shared_tests", "--continue-on-collection-errors"]


def run(command: list[str], timeout: float, **environment: str) -> tuple[int, str]:
    """Exit code and output, which is printed, of a command run at the root.

    At the end of its time it is killed, and with it every process that it has started.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            # What a process that is killed has in its buffer is lost.
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
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


def shared(
    folder: Path, tests: list[str], processes: int, seconds: float, **environment: str
) -> dict[str, Any]:
    """What became of tests that some processes share, see `bench.shared_tests`.

    A process that breaks down, as an illegal access to the GPU's memory makes it do, is replaced by
    another for the tests that are left, as long as that gets any further.
    """
    start, command = time.time(), [*PYTEST, "--share", str(folder), *tests]
    environment["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // processes))

    def work(_: int) -> None:
        done = -1
        while done < (begun := len([*folder.glob("*.jsonl")])):
            done = begun
            left = start + seconds - time.time()
            code, _ = run(command, left, **environment)
            if code in (0, 1, STOPPED):
                return

    with ThreadPoolExecutor(processes) as pool:
        for _ in pool.map(work, range(processes)):
            pass
    return results(folder) | {"processes": processes, "seconds": round(time.time() - start)}


def gpu_tests(folder: Path) -> dict[str, Any]:
    """Results of all GPU tests: on every core one compiles, if the GPU's memory suffices."""
    free, _ = torch.cuda.mem_get_info()
    processes = min(PROCESSES, len(os.sched_getaffinity(0)), free // PROCESS_BYTES)
    return shared(folder, ["tests", "-m", "gpu"], max(1, processes), TESTS_S)


def sanitized(folder: Path) -> tuple[int, str]:
    """A few of the GPU tests under compute-sanitizer, where it is installed.

    Returns:
        1 if it or a test found an error, else 0; and what there is to say.
    """
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return 0, "not installed"
    few = "cuda and float32 and (every_geometry or equals_definition)"
    few += " and (not generator_loss or 2-3-35-9 or 5-1-300)"
    command = [tool, "--error-exitcode", "9", *PYTEST, "--share", str(folder)]
    # Memory of its own for every tensor: within a cached block the tool sees no overrun.
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    code, text = run([*command, "tests/kernels", "-m", "gpu", "-k", few], SANITIZER_S, **uncached)
    return sanitizer_says(code, text, results(folder))


def sanitizer_says(code: int, text: str, found: dict[str, Any]) -> tuple[int, str]:
    """The like of "stopped after 30 s: 20 passed, 8 not run; no error"."""
    said = re.findall(r"^={9} (?!COMPUTE-SANITIZER|ERROR SUMMARY: 0)(\w.*[^=\s])\s*$", text, re.M)
    if not said and code not in (0, STOPPED):
        said = [f"exit code {code}"]
    stopped = f"stopped after {SANITIZER_S} s: " if code == STOPPED else ""
    error = said[0] if said else "no error"
    return int(bool(said) or found["failed"] > 0), f"{stopped}{in_words(found)}; {error}"


def op_rows(folder: Path, seconds: float) -> tuple[dict[str, Any], list[dict]]:
    """Results of the benchmarks of the ops, and the rows that they have measured in time."""
    file = folder / "rows.jsonl"
    found = shared(
        folder / "share",
        ["bench/test_ops.py"],
        1,
        seconds,
        PKD_BENCH_DEADLINE=str(time.time() + seconds - MARGIN_S),
        PKD_BENCH_ROWS=str(file),
    )
    lines = file.read_text().splitlines() if file.exists() else []
    return found, joined([json.loads(line) for line in lines])


def joined(rows: list[dict]) -> list[dict]:
    """Times of a call and its launches, which come later, in one row."""
    calls: dict[tuple, dict] = {}
    for row in rows:
        about = tuple(row[key] for key in ("op", "direction", "batch", "stack", "contender"))
        calls.setdefault(about, {}).update(row)
    return list(calls.values())


def ladder(file: Path, seconds: float) -> int:
    """Exit code of `python -m bench.step --ladder`; it writes the file anew after every cell."""
    options = ["--ladder", "--budget", str(seconds - MARGIN_S), "--json", str(file)]
    code, _ = run([sys.executable, "-m", "bench.step", *options], seconds)
    return 0 if code == STOPPED else code


def main() -> int:
    """Run all of it."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    out = parser.parse_args().out.absolute()
    if not torch.cuda.is_available():
        sys.exit("bench.gpu: no NVIDIA GPU here")
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

    def add(**found) -> None:
        result.update(found)
        path.write_text(json.dumps(result, indent=1) + "\n")

    add(tests=None, op_tests=None, sanitizer="not run", rows=[])
    with tempfile.TemporaryDirectory() as folder:
        tests = gpu_tests(Path(folder))
    add(tests=tests)
    with tempfile.TemporaryDirectory() as folder:
        op_tests, rows = op_rows(Path(folder), OPS_S)
    add(op_tests=op_tests, rows=rows)
    with tempfile.TemporaryDirectory() as folder:
        sanitizer_code, sanitizer = sanitized(Path(folder))
    add(sanitizer=sanitizer)
    ladder_code = ladder(out / f"ladder-{slug}.json", end - time.time())
    for one in tests["failures"] + op_tests["failures"]:
        print(f"{one['test']}: {one['error']}")
    print(f"GPU tests: {in_words(tests)}. Benchmarks of ops: {in_words(op_tests)}.")
    print(f"compute-sanitizer: {sanitizer}.")
    print(f"{len(rows)} rows of ops in {path}; the ladder is beside it")
    fine = tests["passed"] and not (tests["failures"] or tests["not_run"] or op_tests["failed"])
    return int(not fine or bool(sanitizer_code or ladder_code))


if __name__ == "__main__":
    sys.exit(main())
