"""Measure file size and scoring time of teachers and students, in PyTorch and ONNX Runtime.

    python -m bench.deploy

Weights and pixels are random: neither size nor time depends on them. Every exported model is first
compared with PyTorch. Then all models score one image in turn, several times, on one thread. The
measured time is processor time, which on one thread equals the wall time of an idle machine.
"""

import argparse
import json
import time
from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Any

import numpy as np
import torch

from bench import markdown
from bench.step import environment, installed
from pkd.deploy.export import TOLERANCE, relative_difference, to_onnx
from pkd.deploy.inference import DetectorInfo, ScoreFunction
from pkd.models.architecture import Architecture
from pkd.models.cost import cost
from pkd.models.ganomaly import GAN
from pkd.models.paper import PAPER_STUDENTS, TEACHER_WIDTHS
from pkd.scoring.single import Scorer, score_function

# The paper's students, and its largest also for grey images; each group starts with its teacher.
NETWORKS = [
    (channels, widths)
    for channels, students in (
        (1, (PAPER_STUDENTS["fashion_mnist"], PAPER_STUDENTS["mnist"], PAPER_STUDENTS["cifar10"])),
        (3, (PAPER_STUDENTS["cifar10"],)),
    )
    for widths in (TEACHER_WIDTHS, *(student.widths for student in students))
]
BURST_SECONDS = 0.02


def build(architecture: Architecture) -> tuple[dict[str, ScoreFunction], int]:
    """Return a network's score function in every runtime, and the bytes of its ONNX file.

    Raises:
        SystemExit: the scores of ONNX Runtime differ from those of PyTorch.
    """
    scorer = Scorer(GAN(architecture, [0]).generator)
    info = DetectorInfo(
        "", "", 0, "", 0, architecture.channels, architecture.image_size, 1.0, 0.05, ""
    )
    content, in_onnx = to_onnx(scorer, info, torch.uint8)
    images = random_images(architecture, 8)
    in_pytorch = score_function(scorer, flops=cost(architecture).flops)
    error = relative_difference(in_onnx, images, in_pytorch(images))
    if not error <= TOLERANCE:
        raise SystemExit(f"{architecture.widths}: ONNX Runtime differs by {error:.1e}")
    return {"PyTorch": in_pytorch, "ONNX Runtime": in_onnx}, len(content)


def random_images(architecture: Architecture, count: int) -> np.ndarray:
    """Return images (count, C, H, W) uint8."""
    shape = (count, architecture.channels, architecture.image_size, architecture.image_size)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def interleaved(
    entries: dict[Hashable, Callable[[], Any]], repeats: int
) -> dict[Hashable, list[float]]:
    """Return the seconds per call of every entry in every repeat, in bursts of calls."""
    counts = {
        key: max(1, round(BURST_SECONDS / min(burst(entry, 3) for _ in range(3))))
        for key, entry in entries.items()
    }
    times: dict[Hashable, list[float]] = {key: [] for key in entries}
    for _ in range(repeats):
        for key, entry in entries.items():
            entry()  # the caches still hold data of the entry before
            times[key].append(burst(entry, counts[key]))
    return times


def burst(entry: Callable[[], Any], count: int) -> float:
    """Return the mean processor time of that many calls, in seconds."""
    start = time.process_time()
    for _ in range(count):
        entry()
    return (time.process_time() - start) / count


def measure(repeats: int) -> list[dict[str, Any]]:
    """Return a row for each network; `ms` has three quartiles in milliseconds by runtime."""
    rows, entries = [], {}
    for number, (channels, widths) in enumerate(NETWORKS):
        architecture = Architecture(channels, widths)
        runtimes, size = build(architecture)
        for name, score in runtimes.items():
            entries[number, name] = partial(score, random_images(architecture, 1))
        rows.append(
            {
                "network": "teacher" if widths == TEACHER_WIDTHS else "student",
                "widths": "-".join(map(str, widths)),
                "channels": channels,
                "flops": cost(architecture).flops,
                "bytes": size,
                "ms": {},
            }
        )
    for (number, name), seconds in interleaved(entries, repeats).items():
        rows[number]["ms"][name] = [1e3 * quartile for quartile in quantiles(seconds)]
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Format the rows in Markdown; each student is compared with the teacher above it."""
    runtimes = list(rows[0]["ms"])
    lines = []
    for row in rows:
        if row["network"] == "teacher":
            teacher = row
        ratios = {
            "flops": f"1/{teacher['flops'] / row['flops']:.0f}",
            **{name: f"{teacher['ms'][name][1] / row['ms'][name][1]:.1f}x" for name in runtimes},
        }
        lines.append(
            [
                f"{row['network']} {row['widths']}",
                "grey" if row["channels"] == 1 else "RGB",
                ratios["flops"],
                f"{row['bytes'] / 1e6:.2f} MB",
                *(f"{row['ms'][name][1]:.3f} ms, {ratios[name]}" for name in runtimes),
            ]
        )
    return markdown.table(["network", "images", "FLOPs", "ONNX file", *runtimes], lines)


def main() -> None:
    """Measure, print the table, and write --json."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.deploy", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--repeats", type=int, default=50, help="default %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows, machine = measure(args.repeats), environment(torch.device("cpu"))
    machine["versions"]["onnxruntime"] = installed("onnxruntime")
    print(table(rows))
    if args.json:
        result = {"repeats": args.repeats, "environment": machine, "rows": rows}
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
