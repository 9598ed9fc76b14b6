"""`python -m bench.gpu --out DIR`: GPU tests and every benchmark of the ops, in one JSON file.

It stays under eight minutes: a benchmark that the time no longer allows for is left out, and the
tables say "not run". Copy the file into bench/results/ and run `python -m bench.report`. The exit
code is 1 if a test failed or a contender disagreed with the definition.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import triton

ROOT = Path(__file__).parent.parent
TESTS_S, SANITIZER_S, TOTAL_S = 150, 60, 440  # seconds


def run(command: list[str], timeout: float, **environment: str) -> tuple[int, str]:
    """Exit code and last line of a command run at the root; 124 if it ran out of time."""
    try:
        process = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | environment,
            timeout=timeout,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except subprocess.TimeoutExpired:
        return 124, f"stopped after {timeout:.0f} s"
    print(process.stdout, flush=True)
    lines = process.stdout.strip().splitlines()
    return process.returncode, lines[-1].strip("= ") if lines else ""


def sanitized() -> tuple[int, str]:
    """A few of the GPU tests under compute-sanitizer, where it is installed."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return 0, "not installed"
    few = "equals_definition and cuda and float32 and (2-3-35 or 5-1-300 or 7 or 37)"
    command = [tool, "--error-exitcode", "9", sys.executable, "-m", "pytest", "-q"]
    code, line = run([*command, "tests/kernels", "-m", "gpu", "-k", few], SANITIZER_S)
    return (0 if code == 124 else code), line


def main() -> int:
    """Run all of it; write gpu-<name>.json."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    out = parser.parse_args().out
    if not torch.cuda.is_available():
        sys.exit("bench.gpu: no NVIDIA GPU here")
    deadline = time.time() + TOTAL_S
    pytest = [sys.executable, "-m", "pytest", "-q"]
    tests_code, tests = run([*pytest, "tests/kernels", "-m", "gpu"], TESTS_S)
    sanitizer_code, sanitizer = sanitized()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "benchmarks.json"
        bench_code, _ = run(
            [*pytest, "bench/test_ops.py", f"--benchmark-json={file}"],
            timeout=max(deadline + 30 - time.time(), 60),
            PKD_BENCH_DEADLINE=str(deadline - 20),
        )
        measured = json.loads(file.read_text())["benchmarks"] if file.exists() else []
    name = torch.cuda.get_device_name()
    result = {
        "gpu": name,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
        "commit": run(["git", "rev-parse", "HEAD"], 10)[1],
        "tests": tests,
        "sanitizer": sanitizer,
        "rows": [row(benchmark) for benchmark in measured],
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"gpu-{re.sub('[^a-z0-9]+', '-', name.lower())}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{len(result['rows'])} rows in {path}")
    return int(any((tests_code, sanitizer_code, bench_code)))


def row(benchmark: dict) -> dict:
    """Microseconds a call out of pytest-benchmark's seconds a round."""
    labels = benchmark["extra_info"]
    scale = 1e6 / labels.pop("calls")
    stats = benchmark["stats"]
    return {**labels, "median_us": stats["median"] * scale, "iqr_us": stats["iqr"] * scale}


if __name__ == "__main__":
    sys.exit(main())
