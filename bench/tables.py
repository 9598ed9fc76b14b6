"""`python -m bench.report`: the files of bench/results/ as tables.

Ops in kernels/README.md, the ladder of training steps in bench/README.md.
"""

import json
import operator
import re
from pathlib import Path
from statistics import median
from typing import Any

from bench.ladder.cells import LARGE, NOT_RUN, OK, SMALL, Cell, Row, number
from bench.ladder.contenders import BASE, COMPILE
from bench.shared_tests import in_words

ROOT = Path(__file__).parent.parent

RESULTS = ROOT / "bench" / "results"

OPS_README, LADDER_README = ROOT / "kernels" / "README.md", ROOT / "bench" / "README.md"

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def traffic_section(rows: list[dict]) -> str:
    """Launches and bytes of kernels and of the definitions in eager PyTorch."""
    header = ["op", "what", "N", "M", "launches", "eager", "bytes", "minimum", "eager"]
    keys = ("launches", "eager_launches", "bytes", "minimum", "eager_bytes")
    body = [
        [r["op"], r["what"], str(r["batch"]), str(r["stack"]), *(f"{r[k]:,}" for k in keys)]
        for r in rows
    ]
    return f"### Launches and bytes, counted in the interpreter\n\n{table(header, body)}"


def gpu_tests(result: dict) -> str:
    """What became of the tests, and the errors of those that failed."""
    tests, op_tests = result["tests"], result["op_tests"]
    parts = [
        f"GPU tests: {in_words(tests) if tests else 'not run'}; "
        f"compute-sanitizer: {result['sanitizer']}; "
        f"benchmarks: {in_words(op_tests) if op_tests else 'not run'}."
    ]
    for found in (tests, op_tests):
        parts += [f"- `{one['test']}`: {one['error']}" for one in (found or {}).get("failures", [])]
    return "\n".join(parts)


def gpu_section(result: dict) -> str:
    """Times of one `python -m bench.gpu`."""
    parts = [
        f"### {result['gpu']}",
        f"torch {result['torch']}, triton {result['triton']}, CUDA {result['cuda']}, commit "
        f"{result['commit']}. Microseconds a call, median and interquartile range; in "
        f"brackets the kernels a call runs. {gpu_tests(result)}",
    ]
    times = {
        (r["op"], r["direction"], r["batch"], r["stack"], r["contender"]): r for r in result["rows"]
    }
    for op, direction in dict.fromkeys(key[:2] for key in times):
        mine = [key for key in times if key[:2] == (op, direction)]
        contenders = list(dict.fromkeys(key[4] for key in mine))
        body = []
        for batch, stack in dict.fromkeys(key[2:4] for key in mine):
            found = (times.get((op, direction, batch, stack, c)) for c in contenders)
            cells = [
                f"{r['median_us']:.1f} ± {r['iqr_us']:.1f} [{number(r.get('launches'), 'd')}]"
                if r
                else "not run"
                for r in found
            ]
            body.append([str(batch), str(stack), *cells])
        parts.append(f"`{op}`, {direction.replace('_', ' and ')}")
        parts.append(table(["N", "M", *contenders], body))
    parts.append(targets(times))
    return "\n\n".join(parts)


def targets(times: dict) -> str:
    """What the kernels were asked for at batch 1, and what was measured: calls and graphs."""

    def median(op, direction, contender):
        row = times.get((op, direction, 1, 1, contender))
        return row["median_us"] if row else None

    step = ("generator_loss", "forward_backward")
    floor = ("floor", "two launches")
    adam = ("adam_step", "step")
    wanted = [
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
    for name, target, above, below in wanted:
        numerator, denominator = median(*above), median(*below)
        ratio = numerator / denominator if numerator and denominator else None
        rows.append([name, target, "not run" if ratio is None else f"{ratio:.2f}"])
    return table(["time of generator_loss at N = 1, M = 1", "target", "measured"], rows)


GRAPH = "pkd, one graph"

LADDER_COLUMNS = ["ms/step", "min – max", "images/s", "ratio"]

LADDER_COLUMNS += ["launches", "GPU ms", "first s", "MB"]

WORDS_MOVED = 10  # a parameter a step: weight 4, moments 4, gradient 2, each read or written


class Ladder:
    """Rows of a ladder, to be asked for."""

    def __init__(self, rows: list[Row]):
        self.rows = {(row["cell"], row["contender"]): row for row in rows if row["status"] == OK}

    def value(self, cell: Cell, name: str, key: str) -> float | None:
        """Of a row; None if it was not measured."""
        return self.rows.get((cell.title, name), {}).get(key)

    def speed(self, cell: Cell, peer: str) -> float | None:
        """Images/s of the graph by those of a peer that was timed beside it."""
        ours, theirs = (self.value(cell, name, "images_per_second") for name in (GRAPH, peer))
        return ours / theirs if ours and theirs else None

    def memory_bound(self, cell: Cell, gb_per_s: float | None) -> float | None:
        """Images/s by those of the plain loop if a step took only the time that memory takes."""
        parameters = self.value(cell, BASE, "parameters")
        plain = self.value(cell, BASE, "images_per_second")
        if not (parameters and plain and gb_per_s):
            return None
        return 1e9 * gb_per_s / (4 * WORDS_MOVED * parameters) / plain


def ladder_targets(rows: list[Row], gb_per_s: float | None) -> str:
    """What the training step was asked for, and what was measured."""
    ladder = Ladder(rows)
    one, many = (Cell("KDGAN-2", LARGE, stack) for stack in (1, 30))
    small, teacher = Cell("KDGAN-2", SMALL, 128), Cell("teacher", LARGE, 1)
    compiled = [ladder.speed(Cell("KDGAN-2", LARGE, 1, (mode,)), mode) for mode in COMPILE]
    modes = [speed for speed in compiled if speed]
    best = f"torch.compile's best mode ({len(modes)} of {len(COMPILE)} measured)"
    wanted = [
        ("8-16-64, launches a step", "<= 48", ladder.value(one, GRAPH, "launches")),
        ("8-16-64, images/s by the plain loop's", ">= 30", ladder.speed(one, BASE)),
        (f"8-16-64, by {best}", ">= 6", min(modes, default=None)),
        ("8-16-64, by a plain CUDA graph", ">= 3", ladder.speed(one, "plain graph")),
        (
            "8-16-64, by a plain CUDA graph, teacher cached",
            ">= 3",
            ladder.speed(one, "plain graph, teacher cached"),
        ),
        ("teacher, by the plain loop", ">= 6", ladder.speed(teacher, BASE)),
        ("1-2-4, M = 128, by one plain loop", ">= 1500", ladder.speed(small, BASE)),
        ("8-16-64, M = 30, by one plain loop", ">= 300", ladder.speed(many, BASE)),
    ]
    body = [[what, target, *judged(target, value)] for what, target, value in wanted]
    bound = ladder.memory_bound(many, gb_per_s)
    note = f"the same at {WORDS_MOVED} words a parameter and the speed of a copy"
    body.append([note, "–", *judged("", bound)])
    return table(["KDGAN-2 at batch 1, one CUDA graph a step", "target", "measured", "met"], body)


def judged(target: str, value: float | None) -> tuple[str, str]:
    """A measured value and whether it meets "<= number" or ">= number"."""
    if value is None:
        return "not run", "–"
    sign, _, limit = target.partition(" ")
    met = {"<=": operator.le, ">=": operator.ge}
    verdict = ("yes" if met[sign](value, float(limit)) else "no") if sign else "–"
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}", verdict


def ladder_section(result: dict[str, Any]) -> str:
    """One `python -m bench.step --ladder`."""
    around, rows = result["environment"], result["rows"]
    versions = around["versions"]
    parts = [
        f"### {around['device']}",
        f"torch {versions['torch']}, triton {versions['triton']}, CUDA {around['cuda']}, "
        f"commit {around['commit']}.",
    ]
    gb_per_s = around["copy_gb_per_s"]
    if gb_per_s:
        parts[-1] += f" A large copy reads and writes {gb_per_s:,.0f} GB/s."
        parts.append(ladder_targets(rows, gb_per_s))
    cells: dict[str, list[Row]] = {}
    for row in rows:
        cells.setdefault(row["cell"], []).append(row)
    idle = [
        name
        for name, mine in cells.items()
        if all(r["status"] == NOT_RUN and "error" not in r for r in mine)
    ]
    for name in (name for name in cells if name not in idle):
        body = [[row["contender"], *ladder_cells(row)] for row in cells[name]]
        parts.append(table([name, *LADDER_COLUMNS], body))
    if idle:
        parts.append(f"Not run for lack of time: {'; '.join(idle)}.")
    return "\n\n".join(parts)


def ladder_cells(row: Row) -> list[str]:
    """What was measured, or why not."""
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
    """All ladders; where none is of a GPU, the targets for one."""
    sections = [ladder_section(result) for result in results]
    if not any(result["environment"]["copy_gb_per_s"] for result in results):
        sections.insert(
            0, f"### Targets\n\nNot measured on a GPU yet.\n\n{ladder_targets([], None)}"
        )
    return "\n\n".join(sections)


def saved(pattern: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob(pattern))]


def ops_text() -> str:
    """Traffic, and times of the ops on every GPU."""
    traffic = json.loads((RESULTS / "traffic.json").read_text())
    gpus = saved("gpu-*.json")
    sections = [traffic_section(traffic["rows"]), *map(gpu_section, gpus)]
    if not gpus:
        sections.append("### Times\n\nNot measured on a GPU yet.")
    return "\n\n".join(sections)


def insert(readme: Path, text: str) -> None:
    """Replace what stands between the markers."""
    pattern = re.compile(f"{BEGIN}.*{END}", re.DOTALL)
    filled = pattern.sub(lambda _: f"{BEGIN}\n{text}\n{END}", readme.read_text())
    readme.write_text(filled)


def main() -> None:
    insert(OPS_README, ops_text())
    insert(LADDER_README, ladder_text(saved("ladder-*.json")))


if __name__ == "__main__":
    main()
