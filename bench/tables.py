"""`python -m bench.tables`: write the results of bench/results/ into Markdown tables.

The tables of the ops are in kernels/README.md, those of the training steps in bench/README.md, and
those of the sweeps in README.md and docs/science/results.md, beside a picture of their curves.
`python -m bench.tables --compare A B` prints two result files side by side instead.
"""

import argparse
import json
import operator
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bench.compare import comparison
from bench.curves import write_curves
from bench.fused_weights import weights_table
from bench.gpu.summary import load
from bench.ladder.cells import LARGE, SMALL, Cell
from bench.ladder.contenders import BASE, COMPILE
from bench.ladder.measure import NOT_RUN, OK, Row, number
from bench.markdown import table
from bench.paper import detail_tables, method_tables, score_texts
from bench.pytest_gpu import describe
from pkd.sweep.read import read_sweeps
from pkd.sweep.summary import Comparison, summarize

ROOT = Path(__file__).parent.parent

RESULTS = ROOT / "bench" / "results"

CURVES = ROOT / "docs" / "images" / "curves.png"

# The sweeps that README and docs report, by data set and seed; all others lie in folders that name
# their purpose.
FINAL_SWEEPS, OTHER_SWEEPS = "sweeps/*-seed[0-9]", "sweeps/*/*/sweep.json"


def traffic_section(rows: list[Row]) -> str:
    """Format launches and bytes of the kernels and of their eager PyTorch peers."""
    header = ["op", "what", "N", "M", "launches", "eager", "bytes", "minimum", "eager"]
    keys = ("launches", "eager_launches", "bytes", "minimum", "eager_bytes")
    body = [
        [r["op"], r["what"], str(r["batch"]), str(r["stack"]), *(f"{r[k]:,}" for k in keys)]
        for r in rows
    ]
    return f"### Launches and bytes, counted in the interpreter\n\n{table(header, body)}"


def gpu_tests(result: dict[str, Any]) -> str:
    """Format the numbers of tests by outcome, and the errors of failed tests."""
    tests, op_tests = result["tests"], result["op_tests"]
    lines = [
        f"GPU tests: {describe(tests) if tests else 'not run'}; "
        f"compute-sanitizer: {result['sanitizer']}; "
        f"benchmarks: {describe(op_tests) if op_tests else 'not run'}."
    ]
    for counts in filter(None, (tests, op_tests)):
        lines += [f"- `{failure['test']}`: {failure['error']}" for failure in counts["failures"]]
    return "\n".join(lines)


def gpu_section(result: dict[str, Any]) -> str:
    """Format the times of the ops from one `python -m bench.gpu`."""
    parts = [
        f"### {result['gpu']}",
        f"torch {result['torch']}, triton {result['triton']}, CUDA {result['cuda']}, commit "
        f"{result['commit']}. Microseconds per call, median and interquartile range; in "
        f"brackets the kernels per call. {gpu_tests(result)}",
    ]
    times = {
        (r["op"], r["direction"], r["batch"], r["stack"], r["contender"]): r for r in result["rows"]
    }
    for op, direction in dict.fromkeys(key[:2] for key in times):
        keys = [key for key in times if key[:2] == (op, direction)]
        contenders = list(dict.fromkeys(key[4] for key in keys))
        body = []
        for batch, stack in dict.fromkeys(key[2:4] for key in keys):
            rows = (times.get((op, direction, batch, stack, c)) for c in contenders)
            body.append([str(batch), str(stack), *map(op_cell, rows)])
        parts.append(f"`{op}`, {direction.replace('_', ' and ')}")
        parts.append(table(["N", "M", *contenders], body))
    parts.append(op_targets(times))
    return "\n\n".join(parts)


def op_cell(row: Row | None) -> str:
    """Format the time and the launches of one op."""
    if row is None:
        return "not run"
    return f"{row['median_us']:.1f} ± {row['iqr_us']:.1f} [{number(row.get('launches'), 'd')}]"


def op_targets(times: dict[tuple, Row]) -> str:
    """Format targets and measured ratios of times at batch size 1, of calls and of graphs.

    Args:
        times: rows by op, direction, batch size, stack and contender.
    """

    def median_us(op: str, direction: str, contender: str) -> float | None:
        row = times.get((op, direction, 1, 1, contender))
        return row["median_us"] if row else None

    step = ("generator_loss", "forward_backward")
    floor = ("floor", "two launches")
    adam = ("adam_step", "step")
    ratios = [
        ("eager / pkd", ">= 8", (*step, "eager"), (*step, "pkd")),
        ("eager graph / pkd graph", ">= 8", (*step, "eager graph"), (*step, "pkd graph")),
        ("max-autotune / pkd", ">= 2.5", (*step, "max-autotune"), (*step, "pkd")),
        ("max-autotune / pkd graph", ">= 2.5", (*step, "max-autotune"), (*step, "pkd graph")),
        ("pkd / two empty kernels", "<= 2", (*step, "pkd"), (*floor, "two empty kernels")),
        (
            "pkd graph / two empty kernels graph",
            "<= 2",
            (*step, "pkd graph"),
            (*floor, "two empty kernels graph"),
        ),
        ("Adam: torch fused / pkd", ">= 2", (*adam, "torch fused"), (*adam, "pkd")),
        (
            "Adam: torch fused graph / pkd graph",
            ">= 2",
            (*adam, "torch fused graph"),
            (*adam, "pkd graph"),
        ),
    ]
    rows = []
    for name, target, above, below in ratios:
        numerator, denominator = median_us(*above), median_us(*below)
        ratio = numerator / denominator if numerator and denominator else None
        rows.append([name, target, "not run" if ratio is None else f"{ratio:.2f}"])
    return table(["time of generator_loss at N = 1, M = 1", "target", "measured"], rows)


GRAPH = "pkd, one graph"

LADDER_COLUMNS = ["ms/step", "min – max", "images/s", "ratio"]

LADDER_COLUMNS += ["launches", "GPU ms", "first s", "MB"]

REPLAY_COLUMNS = ("replay_us", "launches", "nodes_us", "gaps_us", "floor_us")

# Reads and writes of each parameter in a step: weight 4, moments 4, gradient 2.
WORDS_MOVED = 10


class Ladder:
    """Measured values of a ladder, by cell and contender."""

    def __init__(self, rows: list[Row]):
        self.rows = {(row["cell"], row["contender"]): row for row in rows if row["status"] == OK}

    def value(self, cell: Cell, name: str, key: str) -> float | None:
        """Return a value of a row; None if it was not measured."""
        return self.rows.get((cell.title, name), {}).get(key)

    def speed(self, cell: Cell, peer: str) -> float | None:
        """Return the images/s of pkd's graph divided by those of a peer in the same cell."""
        graph, other = (self.value(cell, name, "images_per_second") for name in (GRAPH, peer))
        return graph / other if graph and other else None

    def memory_bound(self, cell: Cell, gb_per_s: float | None) -> float | None:
        """Return the speedup over the plain loop if memory traffic alone took time."""
        parameters = self.value(cell, BASE, "parameters")
        plain = self.value(cell, BASE, "images_per_second")
        if not (parameters and plain and gb_per_s):
            return None
        return 1e9 * gb_per_s / (4 * WORDS_MOVED * parameters) / plain


def ladder_targets(rows: list[Row], gb_per_s: float | None) -> str:
    """Format targets and measured values of the training step."""
    ladder = Ladder(rows)
    one, many = (Cell("KDGAN-2", LARGE, stack) for stack in (1, 30))
    small, teacher = Cell("KDGAN-2", SMALL, 128), Cell("teacher", LARGE, 1)
    compiled = [ladder.speed(Cell("KDGAN-2", LARGE, 1, (mode,)), mode) for mode in COMPILE]
    speeds = [speed for speed in compiled if speed]
    best = f"the best mode of torch.compile ({len(speeds)} of {len(COMPILE)} measured)"
    targets = [
        ("8-16-64, launches per step", "<= 48", ladder.value(one, GRAPH, "launches")),
        ("8-16-64, speedup over the plain loop", ">= 30", ladder.speed(one, BASE)),
        (f"8-16-64, speedup over {best}", ">= 6", min(speeds, default=None)),
        ("8-16-64, speedup over a plain CUDA graph", ">= 3", ladder.speed(one, "plain graph")),
        (
            "8-16-64, speedup over a plain CUDA graph, teacher cached",
            ">= 3",
            ladder.speed(one, "plain graph, teacher cached"),
        ),
        ("teacher, speedup over the plain loop", ">= 6", ladder.speed(teacher, BASE)),
        ("1-2-4, M = 128, speedup over one plain loop", ">= 1500", ladder.speed(small, BASE)),
        ("8-16-64, M = 30, speedup over one plain loop", ">= 300", ladder.speed(many, BASE)),
    ]
    body = [[what, target, *compared(value, target)] for what, target, value in targets]
    bound = ladder.memory_bound(many, gb_per_s)
    note = f"upper bound of the row above: {WORDS_MOVED} words per parameter, speed of a copy"
    body.append([note, "–", *compared(bound, "")])
    return table(
        ["KDGAN-2 at batch size 1, one CUDA graph per step", "target", "measured", "met"], body
    )


def compared(value: float | None, target: str) -> tuple[str, str]:
    """Format a value, and whether it meets a target such as "<= 48" or ">= 3"."""
    if value is None:
        return "not run", "–"
    sign, _, limit = target.partition(" ")
    comparisons = {"<=": operator.le, ">=": operator.ge}
    met = ("yes" if comparisons[sign](value, float(limit)) else "no") if sign else "–"
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}", met


def ladder_section(result: dict[str, Any]) -> str:
    """Format one `python -m bench.step --ladder`."""
    machine, rows = result["environment"], result["rows"]
    versions = machine["versions"]
    parts = [
        f"### {machine['device']}",
        f"torch {versions['torch']}, triton {versions['triton']}, CUDA {machine['cuda']}, "
        f"commit {machine['commit']}.",
    ]
    gb_per_s = machine["copy_gb_per_s"]
    if gb_per_s:
        parts[-1] += f" A large copy reads and writes {gb_per_s:,.0f} GB/s."
        parts.append(ladder_targets(rows, gb_per_s))
    cells: dict[str, list[Row]] = {}
    for row in rows:
        cells.setdefault(row["cell"], []).append(row)
    omitted = [
        name
        for name, cell_rows in cells.items()
        if all(r["status"] == NOT_RUN and "error" not in r for r in cell_rows)
    ]
    for name in (name for name in cells if name not in omitted):
        body = [[row["contender"], *ladder_cells(row)] for row in cells[name]]
        parts.append(table([name, *LADDER_COLUMNS], body))
    if omitted:
        parts.append(f"Not run for lack of time: {'; '.join(omitted)}.")
    return "\n\n".join(parts)


def ladder_cells(row: Row) -> list[str]:
    """Format the measured values of a row, or the reason why there are none."""
    if row["status"] != OK:
        error = row.get("error", "").replace("|", "\\|")
        return [": ".join(filter(None, [row["status"], error])), *[""] * (len(LADDER_COLUMNS) - 1)]
    times = row["ms_per_step"]
    return [
        f"{median(times):.3f}",
        f"{min(times):.3f} – {max(times):.3f}",
        f"{row['images_per_second']:,.0f}",
        f"{row['ratio']:.1f}",
        number(row.get("launches"), ".0f"),
        number(row.get("gpu_ms"), ".3f"),
        f"{row['first_s']:.1f}",
        number(row["memory_mb"], ",.0f"),
    ]


def ladder_text(results: list[dict[str, Any]]) -> str:
    """Format all ladders; if none was measured on a GPU, also the targets."""
    sections = [ladder_section(result) for result in results]
    if not any(result["environment"]["copy_gb_per_s"] for result in results):
        sections.insert(
            0, f"### Targets\n\nNot measured on a GPU yet.\n\n{ladder_targets([], None)}"
        )
    return "\n\n".join(sections)


def saved(pattern: str) -> list[dict[str, Any]]:
    """Read the result files with such a name."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob(pattern))]


def gpu_results() -> list[dict[str, Any]]:
    """Read the results of `python -m bench.gpu` on every GPU."""
    return [load(path) for path in sorted(RESULTS.glob("gpu-*.jsonl"))]


def ladders() -> list[dict[str, Any]]:
    """Return all measured training steps."""
    return saved("ladder-*.json") + [result["ladder"] for result in gpu_results()]


def replay_section(result: dict[str, Any]) -> str:
    """Format the graphs of `python -m bench.gpu`; the nodes are in its file."""
    body = [
        [cell, *(f"{graph[key]:,.1f}" if key in graph else "–" for key in REPLAY_COLUMNS)]
        for cell, graph in result["replays"].items()
    ]
    header = ["replay of one step", *(key.replace("_us", ", µs") for key in REPLAY_COLUMNS)]
    return f"### Graphs, {result['ops']['gpu']}\n\n{table(header, body)}"


def ops_text() -> str:
    """Format the traffic of the ops, and their times on every GPU."""
    traffic = json.loads((RESULTS / "traffic.json").read_text())
    gpus = [result["ops"] for result in gpu_results()]
    sections = [traffic_section(traffic["rows"]), *map(gpu_section, gpus)]
    if not gpus:
        sections.append("### Times\n\nNot measured on a GPU yet.")
    return "\n\n".join(sections)


def steps_text() -> str:
    """Format all training steps, and the graphs on every GPU."""
    measured = [result for result in gpu_results() if result["replays"]]
    return "\n\n".join([ladder_text(ladders()), *map(replay_section, measured)])


def final_comparisons() -> list[Comparison]:
    """Compare the methods of the final sweeps."""
    return summarize(read_sweeps(sorted(RESULTS.glob(FINAL_SWEEPS))))


def methods_text() -> str:
    """Format Table 3 of the final sweeps."""
    return "\n\n".join(method_tables(final_comparisons()))


def details_text() -> str:
    """Format the other tables of the final sweeps."""
    return "\n\n".join(detail_tables(final_comparisons()))


def other_sweeps_text() -> str:
    """Format Table 3 and the AUC by score of every other sweep."""
    parts = []
    for path in sorted(RESULTS.glob(OTHER_SWEEPS)):
        comparisons = summarize(read_sweeps([path]))
        parts += [f"### {path.parent.relative_to(RESULTS / 'sweeps')}", *method_tables(comparisons)]
        parts += [text for comparison in comparisons for text in score_texts(comparison)]
    return "\n\n".join(parts)


def fused_text() -> str:
    """Format the comparison of the weights of the fused score."""
    return weights_table(json.loads((RESULTS / "fused-weights.json").read_text())["rows"])


# Name of the markers -> file, and function that formats the text between them.
SECTIONS: dict[str, tuple[Path, Callable[[], str]]] = {
    "ops": (ROOT / "kernels" / "README.md", ops_text),
    "steps": (ROOT / "bench" / "README.md", steps_text),
    "sweeps": (ROOT / "bench" / "README.md", other_sweeps_text),
    "fused": (ROOT / "bench" / "README.md", fused_text),
    "methods": (ROOT / "README.md", methods_text),
    "details": (ROOT / "docs" / "science" / "results.md", details_text),
}


def markers(name: str) -> tuple[str, str]:
    """Return the lines around a section."""
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def insert(name: str) -> None:
    """Replace the text between the markers of a section."""
    file, text = SECTIONS[name]
    begin, end = markers(name)
    pattern = re.compile(f"{begin}.*{end}", re.DOTALL)
    updated = pattern.sub(lambda _: f"{begin}\n{text()}\n{end}", file.read_text())
    file.write_text(updated)


def main() -> None:
    """Write all tables, or compare two files."""
    parser = argparse.ArgumentParser(prog="python -m bench.tables", description=__doc__)
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"))
    files = parser.parse_args().compare
    if files:
        print(table(*comparison(*files)))
        return
    for name in SECTIONS:
        insert(name)
    write_curves(final_comparisons(), CURVES)


if __name__ == "__main__":
    main()
