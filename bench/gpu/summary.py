"""Facts as results: training steps, ops and tests for `bench.tables`, replays, best tilings."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.gpu.facts import Fact, Facts

Result = dict[str, Any]

LADDER_STAGES = ("headline", "compile", "ladder")  # a later one replaces rows of an earlier one


def load(path: Path) -> Result:
    """Read a file of facts; return all of its results."""
    facts = Facts(path).read()
    return {
        "ladder": ladder_result(facts),
        "ops": op_result(facts),
        "replays": replays(facts),
        "tilings": tilings(facts),
    }


def latest(facts: Iterable[Fact], stage: str, key: str, default: Any = None) -> Any:
    """Return the last value of a key in a stage."""
    values = [fact[key] for fact in facts if fact["stage"] == stage and key in fact]
    return values[-1] if values else default


def environment(facts: list[Fact]) -> Result:
    """Return hardware and versions as `bench.step.environment` does."""
    call = next((fact for fact in facts if fact["stage"] == "call"), {})
    packages = latest(facts, "machine", "packages", {})
    unknown = {
        "device": call.get("gpu"),
        "versions": {name: packages.get(name) for name in ("torch", "triton", "numpy")},
        "cuda": None,
        "commit": call.get("commit"),
    }
    return unknown | latest(facts, "machine", "environment", {})


def ladder_result(facts: list[Fact]) -> Result:
    """Return the training steps as `python -m bench.step --ladder` writes them."""
    rows = {
        (fact["cell"], fact["contender"]): fact
        for stage in LADDER_STAGES
        for fact in facts
        if fact["stage"] == stage and "contender" in fact
    }
    machine = environment(facts) | {"copy_gb_per_s": latest(facts, "machine", "copy_gb_per_s")}
    return {"environment": machine, "rows": list(rows.values())}


def op_result(facts: list[Fact]) -> Result:
    """Return tests and ops: the input of `bench.tables.gpu_section`."""
    machine = environment(facts)
    counts = {
        stage: next((f for f in reversed(facts) if f["stage"] == stage and "passed" in f), None)
        for stage in ("tests", "ops")
    }
    return {
        "gpu": machine["device"],
        "torch": machine["versions"]["torch"],
        "triton": machine["versions"]["triton"],
        "cuda": machine["cuda"],
        "commit": machine["commit"],
        "tests": counts["tests"],
        "op_tests": counts["ops"],
        "sanitizer": latest(facts, "sanitizer", "sanitizer", "not run"),
        "rows": joined(fact["row"] for fact in facts if fact["stage"] == "ops" and "row" in fact),
    }


def joined(rows: Iterable[Fact]) -> list[Fact]:
    """Join the row of a call's times with the later row of its launches."""
    calls: dict[tuple, Fact] = {}
    for row in rows:
        labels = tuple(row[key] for key in ("op", "direction", "batch", "stack", "contender"))
        calls[labels] = calls.get(labels, {}) | row
    return list(calls.values())


def replays(facts: list[Fact]) -> dict[str, Result]:
    """Return times and nodes of the graphs by cell."""
    cells: dict[str, Result] = defaultdict(dict)
    for fact in facts:
        if fact["stage"] == "replay" and "cell" in fact:
            cells[fact["cell"]] |= fact
    for cell in cells.values():
        if "nodes" in cell:
            cell["nodes_us"] = sum(node["us"] for node in cell["nodes"])
            cell["gaps_us"] = sum(node["gap_us"] for node in cell["nodes"])
    return dict(cells)


def tilings(facts: list[Fact]) -> dict[str, Result]:
    """Return the best tiling by its function and arguments, and its time in all launches.

    The forward and the backward pass can have a tiling in common: the sum of their times counts.
    """
    times: dict[str, dict[str, dict[tuple, float]]] = defaultdict(lambda: defaultdict(dict))
    present: dict[str, str] = {}
    for fact in facts:
        if fact["stage"] != "sweep" or "tiling" not in fact:
            continue
        subject = f"{fact['function']}({', '.join(map(repr, fact['arguments']))})"
        if fact["present"]:
            present[subject] = fact["tiling"]
        if "us" in fact:
            launch = fact["cell"], fact["direction"]
            times[subject][fact["tiling"]][launch] = fact["us"]
    return {
        subject: best
        for subject in times
        if (best := _best_tiling(times[subject], present.get(subject)))
    }


def _best_tiling(times: dict[str, dict[tuple, float]], present: str | None) -> Result | None:
    if present not in times:
        return None
    complete = {t: by for t, by in times.items() if by.keys() >= times[present].keys()}
    totals = {tiling: sum(by[k] for k in times[present]) for tiling, by in complete.items()}
    best = min(totals, key=lambda tiling: totals[tiling])
    return {
        "tiling": best,
        "us": totals[best],
        "present_us": totals[present],
        "launches": [", ".join(launch) for launch in times[present]],
    }


def tiling_table(best: dict[str, Result]) -> str:
    """Format the tilings that are faster than the present ones, for `conv/tiling.py`."""
    lines = ["# Measured: arguments of the function -> tiling."]
    for function in ("tap_tiling", "weight_tiling"):
        lines.append(f"{function.upper()}S = {{")
        for subject, row in best.items():
            if subject.startswith(function) and row["us"] < row["present_us"]:
                key = subject.removeprefix(function)
                lines.append(f"    # {'; '.join(row['launches'])}")
                lines.append(f"    # {row['us']:.2f} us, before {row['present_us']:.2f} us")
                lines.append(f"    {key}: {row['tiling']},")
        lines.append("}")
    return "\n".join(lines)


def replay_table(cells: dict[str, Result]) -> str:
    """Format the times of the graphs for the terminal."""
    lines = [f"{'graph':28}{'us':>9}{'nodes':>7}{'nodes us':>10}{'gaps us':>9}{'floor us':>10}"]
    for name, cell in cells.items():
        lines.append(
            f"{name:28}{cell.get('replay_us', 0):9.1f}{len(cell.get('nodes', ())):7}"
            f"{cell.get('nodes_us', 0):10.1f}{cell.get('gaps_us', 0):9.1f}"
            f"{cell.get('floor_us', 0):10.1f}"
        )
    return "\n".join(lines)


def failures(facts: list[Fact]) -> list[str]:
    """Describe failed tests and failed rungs of the ladder, one a line."""
    ops = op_result(facts)
    tests = [f for counts in (ops["tests"], ops["op_tests"]) if counts for f in counts["failures"]]
    lines = [f"{failure['test']}: {failure['error']}" for failure in tests]
    if latest(facts, "sanitizer", "sanitizer_failed"):
        lines.append(f"compute-sanitizer: {ops['sanitizer']}")
    return lines + [
        f"{row['cell']}, {row['contender']}: {row['error']}"
        for row in ladder_result(facts)["rows"]
        if row["status"] == "failed" and not row["peer"]
    ]


def text(facts: list[Fact]) -> str:
    """Format replays, tilings and failures for the terminal."""
    parts = [replay_table(replays(facts)), tiling_table(tilings(facts)), *failures(facts)]
    return "\n\n" + "\n\n".join(parts) + "\n"
