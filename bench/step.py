"""Measure the time of a training step at batch size 1.

    python -m bench.step              KDGAN-2: the plain loop, one model, a stack
    python -m bench.step --ladder     every rung and peer, by structure, student and stack

Each contender is first checked against the plain loop: a few steps from the same weights on the
same images must change the weights equally. Then all contenders are timed in turn, several times,
so that a disturbance of the machine affects all of them.
"""

import argparse
import json
import os
import platform
import signal
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from bench.commit import commit
from bench.ladder import measure as ladder
from bench.ladder.cells import Settings, plan
from bench.ladder.loops import Contender, Pkd, Plain
from bench.ladder.timing import (
    CHECK_STEPS,
    DisagreementError,
    check,
    copy_bandwidth,
    interleaved,
    statistics,
    steps_for,
)
from bench.ladder.training_setup import TrainingSetup
from pkd.utils.device import device_name
from pkd.utils.files import atomic_write


def contenders(stack: int) -> dict[str, Callable[[TrainingSetup], Contender]]:
    """Return the rows of the table; the first is the base of all ratios."""

    def pkd(setup: TrainingSetup, models: int) -> Pkd:
        return Pkd(setup, setup.members(models), graph=setup.device.type == "cuda")

    return {
        "plain loop": lambda setup: Plain(setup, setup.members(1)),
        "pkd, one model": partial(pkd, models=1),
        f"pkd, stack of {stack}": partial(pkd, models=stack),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Format the rows for the terminal and README."""
    lines = [f"{'':24}{'ms/step':>9}{'(min - max)':>18}{'images/s':>11}{'ratio':>9}"]
    for row in rows:
        spread = f"({min(row['ms_per_step']):.3f} - {max(row['ms_per_step']):.3f})"
        lines.append(
            f"{row['name']:24}{row['ms_per_step_median']:9.3f}{spread:>18}"
            f"{row['images_per_second']:11.0f}{row['ratio']:8.1f}x"
        )
    return "\n".join(lines)


def installed(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def environment(device: torch.device) -> dict[str, Any]:
    """Return the hardware and the versions that a reader needs to reproduce the numbers."""
    return {
        "device": device_name(device),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {p: installed(p) for p in ("torch", "triton", "numpy")},
        "cuda": torch.version.cuda,
        "commit": commit(),
    }


def widths(text: str) -> tuple[int, int, int]:
    """Parse A-B-C."""
    a, b, c = map(int, text.split("-"))
    return a, b, c


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.step", description=__doc__.split("\n")[0]
    )
    add = partial(parser.add_argument, help="default %(default)s")
    add("--ladder", action="store_true", help="every rung and peer, in fixed sizes")
    add("--budget", type=float, default=600.0, help="seconds for the ladder; default %(default)s")
    add("--widths", type=widths, default="1-2-4", metavar="A-B-C", help="student; default 1-2-4")
    add("--teacher-widths", type=widths, default="64-128-256", metavar="A-B-C")
    add("--stack", type=int, default=30, help="models of the stack; default %(default)s")
    add("--images", type=int, default=200, help="images of a class; default %(default)s")
    add("--repeats", type=int, default=7)
    add("--seconds", type=float, default=2.0, help="of each repeat; default %(default)s")
    add("--threads", type=int, default=torch.get_num_threads(), help="of the CPU; default all")
    add("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    add("--json", type=Path, metavar="FILE", help="write the results to this file; default none")
    return parser.parse_args()


def save(args: argparse.Namespace, environment: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write --json atomically, if the option is given."""
    if args.json:
        options = {key: str(value) for key, value in vars(args).items() if key != "json"}
        result = {"options": options, "environment": environment, "rows": rows}
        with atomic_write(args.json) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def run_ladder(args: argparse.Namespace) -> int:
    """Print and save each cell as it is measured; return 1 if a rung failed, else 0."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit also ends child processes
    settings = Settings(args.device, args.teacher_widths, threads=args.threads)
    machine = environment(args.device) | {"copy_gb_per_s": copy_bandwidth(args.device)}
    print(f"{machine['device']}, torch {machine['versions']['torch']}")
    rows: list[dict[str, Any]] = []
    for cell, cell_rows in ladder.run(plan(args.device), settings, args.budget):
        rows += cell_rows
        save(args, machine, rows)
        print(f"\n{cell.title}\n{ladder.table(cell_rows)}", flush=True)
    return int(any(row["status"] == ladder.FAILED and not row["peer"] for row in rows))


def run_step(args: argparse.Namespace) -> int:
    """Measure one structure and student; exit if a contender differs from the plain loop."""
    setup = TrainingSetup(args.teacher_widths, args.widths, args.images, args.device)
    entries: dict[str, Contender] = {}
    for name, build in contenders(args.stack).items():
        entries[name] = build(setup)
        entries[name].advance(CHECK_STEPS)
        try:
            difference = check(setup, entries[name])
        except DisagreementError as error:
            raise SystemExit(f"{name}: {error}") from error
        print(f"{name}: {CHECK_STEPS} updates agree with the plain loop's within {difference:.1e}")
    steps = {name: steps_for(entry, args.seconds, args.device) for name, entry in entries.items()}
    times = interleaved(entries, steps, args.repeats, args.device)
    rows, machine = statistics(entries, times), environment(args.device)
    print(f"\n{machine['device']}, torch {machine['versions']['torch']}")
    print(table(rows))
    save(args, machine, rows)
    return 0


def main() -> int:
    """Run the benchmark; return the exit code."""
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = False  # full float32, as `pkd train` computes
    return run_ladder(args) if args.ladder else run_step(args)


if __name__ == "__main__":
    sys.exit(main())
