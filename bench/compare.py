"""Compare two result files: before and after a change, or two machines."""

import json
from pathlib import Path
from typing import Any

from bench.gpu.summary import load

Result = dict[str, Any]


def measurements(path: Path) -> dict[str, float]:
    """Read a result file; return its times by name, with their units.

    Args:
        path: facts of `python -m bench.gpu` (.jsonl), or the JSON file of `python -m bench.step`.
    """
    result = load(path) if path.suffix == ".jsonl" else {"ladder": json.loads(path.read_text())}
    steps = {
        f"{_step_name(row)}, ms": row["ms_per_step_median"]
        for row in result["ladder"]["rows"]
        if "ms_per_step_median" in row
    }
    return steps | _graph_times(result) | _op_times(result)


def _step_name(row: Result) -> str:
    """The contender, and the cell of a ladder."""
    return ", ".join(row[key] for key in ("cell", "contender", "name") if key in row)


def _graph_times(result: Result) -> dict[str, float]:
    """Times of graphs, and of the best tilings."""
    times = {
        f"{cell}, {key.removesuffix('_us')}, µs": graph[key]
        for cell, graph in result.get("replays", {}).items()
        for key in ("replay_us", "nodes_us", "gaps_us", "floor_us")
        if key in graph
    }
    tilings = result.get("tilings", {})
    return times | {f"{name}, best tiling, µs": best["us"] for name, best in tilings.items()}


def _op_times(result: Result) -> dict[str, float]:
    rows = result.get("ops", {}).get("rows", ())
    return {
        f"{r['op']}, {r['direction']}, N = {r['batch']}, M = {r['stack']}, {r['contender']}, µs": r[
            "median_us"
        ]
        for r in rows
        if "median_us" in r
    }


def comparison(a: Path, b: Path) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a table with the times of both files and their ratio.

    A time that only one file contains has a dash in the other column.
    """
    first, second = measurements(a), measurements(b)
    rows = []
    for name in dict.fromkeys([*first, *second]):
        x, y = first.get(name), second.get(name)
        ratio = f"{y / x:.2f}" if x and y else "–"
        rows.append([name, *("–" if v is None else f"{v:,.3f}" for v in (x, y)), ratio])
    return ["time", a.name, b.name, "ratio"], rows
