"""Compare the engines of `pkd sweep` on the same shards: this process, and workers of Ray.

    python -m bench.engines --json bench/results/engines-cpu.json

All sweeps run the same plan, one thread a shard, in turn, so that a disturbance of the machine
affects all of them. The overhead of Ray is the time beyond Ray's start and beyond the ideal, the
time of the local engine divided by the workers. With several workers it includes what the shards
lose to each other, as in memory bandwidth. Ray's start is the time of tasks that only import the
training code.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.markdown import table
from bench.step import environment
from pkd.sweep.cells import resolve_cells
from pkd.sweep.engines import LocalEngine
from pkd.sweep.planning import make_plan
from pkd.training.config import TrainConfig

RATES = (0.001, 0.002, 0.003, 0.004)  # shards, which the workers share evenly
WORKERS = (1, 2)

# Imports alone, and with tasks on the workers of Ray.
IMPORTS = "import pkd.cli.main, pkd.cli.sweep, pkd.sweep.shard"
START = f"""
{IMPORTS}
from pkd.sweep.ray_engine import RayEngine
from pkd.sweep.measure import measure_cells
engine = RayEngine({{workers}}, None, False)
handles = [engine.submit(measure_cells, [], 1) for _ in range(engine.workers)]
while handles:
    handles.remove(engine.wait(handles)[0])
engine.close()
"""


def seconds(*arguments: str) -> float:
    """Wall-clock seconds of a Python process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def sweep_seconds(plan: Path, *flags: str) -> float:
    """Seconds of a sweep with a plan, in a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(plan, folder)
        return seconds("-m", "pkd", "sweep", "--resume", folder, *flags)


def write_plan(folder: Path, epochs: int) -> Path:
    """Plan four shards with the same number of steps, for the threads of this process."""
    configs = [
        TrainConfig(
            structure="student-only", step1_epochs=epochs, lr=lr, normal_class=(0,), device="cpu"
        )
        for lr in RATES
    ]
    make_plan(resolve_cells(configs, ("lr",)), LocalEngine()).write(folder)
    return folder / "plan.json"


def measure(epochs: int, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each repeat, of the sweeps and of Ray's start."""
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        plan = write_plan(Path(folder), epochs)
        for _ in range(repeats):
            measured = {"local": sweep_seconds(plan), "imports": seconds("-c", IMPORTS)}
            for n in WORKERS:
                flags = ("--engine", "ray", "--workers", str(n))
                measured[f"ray {n}"] = sweep_seconds(plan, *flags)
                measured[f"start {n}"] = seconds("-c", START.format(workers=n))
            for name, value in measured.items():
                times.setdefault(name, []).append(value)
                print(f"{name}: {value:.1f} s", flush=True)
    return times


def overhead(times: dict[str, list[float]], workers: int) -> float:
    """Time of Ray beyond its start and the ideal, as a share of the ideal; medians."""
    median = {name: statistics.median(values) for name, values in times.items()}
    start = median[f"start {workers}"] - median["imports"]
    ideal = median["imports"] + (median["local"] - median["imports"]) / workers
    return (median[f"ray {workers}"] - start) / ideal - 1


def engines_table(result: dict[str, Any]) -> str:
    """Format the medians and the overhead of each number of workers."""
    times = result["seconds"]
    median = {name: statistics.median(values) for name, values in times.items()}
    rows = [["local", f"{median['local']:.1f}", "–", "–"]]
    for n in WORKERS:
        start = median[f"start {n}"] - median["imports"]
        row = [f"ray, {n} worker{'s' * (n > 1)}", f"{median[f'ray {n}']:.1f}", f"{start:.1f}"]
        rows.append([*row, f"{100 * overhead(times, n):.1f} %"])
    return table(["engine", "s", "Ray's start, s", "overhead"], rows)


def main() -> None:
    """Measure, print the table, and write --json."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.engines", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--epochs", type=int, default=200, help="of each shard")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    machine = environment(torch.device("cpu"))
    result = {"environment": machine, "seconds": measure(args.epochs, args.repeats)}
    print(engines_table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
