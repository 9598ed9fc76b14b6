"""Measure training steps of KDGAN-2 over the number of models in a stack.

    python -m bench.stacks --json bench/results/stacks-cpu.json

The images per second of all models together show from which stack on further models no longer
gain: `pkd sweep` makes no smaller shards than that. The teacher's outputs are cached, so its
widths do not matter to a step; it has the narrowest ones.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from bench.markdown import table
from bench.step import environment
from pkd.sweep.measure import step_seconds
from pkd.training.config import TrainConfig
from pkd.training.settings import parse_widths

STUDENTS = ("1-2-4", "8-16-64")
BATCH_SIZES = (1, 8)
REPEATS = 3  # the fastest counts
STACKS = (1, 2, 4, 8, 16, 30, 64, 128, 300)


def measure(stacks: tuple[int, ...], device: str) -> list[dict[str, Any]]:
    """Return a row for each student, batch size and stack, with the seconds of a step."""
    rows = []
    for student in STUDENTS:
        for batch_size in BATCH_SIZES:
            config = TrainConfig(
                structure="2",
                teacher_widths=(1, 1, 1),
                student_widths=parse_widths(student),
                batch_size=batch_size,
                device=device,
            ).resolved()
            for stack in stacks:
                phase = config.phases()[1]
                seconds = min(step_seconds(config, phase, 1, stack) for _ in range(REPEATS))
                row = {"student": student, "batch_size": batch_size, "stack": stack}
                rows.append({**row, "step_seconds": seconds})
                print(f"{student}, batch size {batch_size}, M = {stack}: {1e3 * seconds:.2f} ms")
    return rows


def stacks_table(result: dict[str, Any]) -> str:
    """Format images per second, stacks in rows."""
    rows = result["rows"]
    columns = list(dict.fromkeys((row["student"], row["batch_size"]) for row in rows))
    header = ["M", *(f"{student}, batch size {size}" for student, size in columns)]
    cells = {
        (row["student"], row["batch_size"], row["stack"]): (
            row["stack"] * row["batch_size"] / row["step_seconds"]
        )
        for row in rows
    }
    stacks = dict.fromkeys(row["stack"] for row in rows)
    body = [[str(m), *(f"{cells[(*column, m)]:,.0f}" for column in columns)] for m in stacks]
    return table(header, body)


def main() -> None:
    """Measure, print the table, and write --json."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.stacks", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    machine = environment(torch.device(args.device))
    result = {"environment": machine, "rows": measure(STACKS, args.device)}
    print(stacks_table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
