"""`python -m bench.gpu --out DIR`: GPU tests and every benchmark, as JSON files.

It stays under eight minutes: a benchmark that the time no longer allows for is left out, one that
hangs is ended with what it started, and the tables say "not run". The files are written as results
come, gpu-NAME.json (tests and ops) and ladder-NAME.json (training steps): copy them into
bench/results/ and run `python -m bench.report`. The exit code is 1 if a test failed, a contender
disagreed with the definition or a rung of the ladder failed; a peer that fails is shown as failed.
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

import torch
import triton

from bench.step import commit

ROOT = Path(__file__).parent.parent
# Seconds; what the others leave is the ladder's.
TOTAL_S, TESTS_S, OPS_S, SANITIZER_S = 440, 170, 100, 25
MARGIN_S = 20  # to begin, and to end by itself
STOPPED = 124  # exit code of what ran out of time


def run(command: list[str], timeout: float, **environment: str) -> tuple[int, str]:
    """Exit code and last line of a command run at the root, all of whose output is printed.

    At the end of its time it is killed, and with it every process that it has started.
    """
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = STOPPED
        output.seek(0)
        text = output.read()
    print(text, flush=True)
    lines = text.strip().splitlines()
    if code == STOPPED:
        return code, f"stopped after {timeout:.0f} s"
    return code, lines[-1].strip("= ") if lines else ""


def sanitized() -> tuple[int, str]:
    """A few of the GPU tests under compute-sanitizer, where it is installed."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return 0, "not installed"
    few = "equals_definition and cuda and float32 and (not generator_loss or 2-3-35-9 or 5-1-300)"
    command = [tool, "--error-exitcode", "9", sys.executable, "-m", "pytest", "-q"]
    # Memory of its own for every tensor: within a cached block the tool sees no overrun.
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    code, line = run([*command, "tests/kernels", "-m", "gpu", "-k", few], SANITIZER_S, **uncached)
    return (0 if code == STOPPED else code), line


def op_rows(folder: Path, seconds: float) -> tuple[int, list[dict]]:
    """Exit code of the benchmarks of the ops, and the rows that they have measured in time."""
    file = folder / "rows.jsonl"
    code, _ = run(
        [sys.executable, "-m", "pytest", "-q", "bench/test_ops.py"],
        seconds,
        PKD_BENCH_DEADLINE=str(time.time() + seconds - MARGIN_S),
        PKD_BENCH_ROWS=str(file),
    )
    lines = file.read_text().splitlines() if file.exists() else []
    return (0 if code == STOPPED else code), [json.loads(line) for line in lines]


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

    add(tests="not run", sanitizer="not run", rows=[])
    pytest = [sys.executable, "-m", "pytest", "-q"]
    tests_code, tests = run([*pytest, "tests", "-m", "gpu"], TESTS_S)
    add(tests=tests)
    with tempfile.TemporaryDirectory() as folder:
        ops_code, rows = op_rows(Path(folder), OPS_S)
    add(rows=rows)
    sanitizer_code, sanitizer = sanitized()
    add(sanitizer=sanitizer)
    ladder_code = ladder(out / f"ladder-{slug}.json", end - time.time())
    print(f"{len(rows)} rows of ops in {path}; the ladder is beside it")
    return int(any((tests_code, ops_code, sanitizer_code, ladder_code)))


if __name__ == "__main__":
    sys.exit(main())
