"""`python -m bench.report`: the files of bench/results/ as tables in kernels/README.md."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
README = ROOT / "kernels" / "README.md"
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


def gpu_section(result: dict) -> str:
    """Times of one `python -m bench.gpu`."""
    parts = [
        f"### {result['gpu']}",
        f"torch {result['torch']}, triton {result['triton']}, CUDA {result['cuda']}, commit "
        f"{result['commit']}. Microseconds a call, median and interquartile range; in "
        f"brackets the kernels a call runs. GPU tests: {result['tests']}. "
        f"compute-sanitizer: {result['sanitizer']}.",
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
                f"{r['median_us']:.1f} ± {r['iqr_us']:.1f} [{r['launches']}]" if r else "not run"
                for r in found
            ]
            body.append([str(batch), str(stack), *cells])
        parts.append(f"`{op}`, {direction.replace('_', ' and ')}")
        parts.append(table(["N", "M", *contenders], body))
    parts += [targets(times), step_section(result["step"])]
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


def step_section(result: dict | None) -> str:
    """Whole training steps, as `python -m bench.step` measured them beside the ops."""
    if result is None:
        return "Training step: not run"
    header = ["KDGAN-2 training step", "ms", "images/s", "ratio"]
    body = [
        [
            row["name"],
            f"{row['ms_per_step_median']:.3f}",
            f"{row['images_per_second']:.0f}",
            f"{row['ratio']:.1f}",
        ]
        for row in result["rows"]
    ]
    return table(header, body)


def main() -> None:
    """Replace what stands between the markers."""
    traffic = json.loads((RESULTS / "traffic.json").read_text())
    gpus = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("gpu-*.json"))]
    sections = [traffic_section(traffic["rows"]), *map(gpu_section, gpus)]
    if not gpus:
        sections.append("### Times\n\nNot measured on a GPU yet.")
    text = "\n\n".join(sections)
    readme = README.read_text()
    pattern = re.compile(f"{BEGIN}.*{END}", re.DOTALL)
    README.write_text(pattern.sub(lambda _: f"{BEGIN}\n{text}\n{END}", readme))


if __name__ == "__main__":
    main()
