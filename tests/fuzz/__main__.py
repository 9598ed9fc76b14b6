"""Hostile inputs of every kind: `python -m tests.fuzz --cases N --seed S` prints a table.

`--kind NAME --case K` repeats one case and prints what happened.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.kinds import Inputs
from tests.fuzz.runner import FINDING, REFUSED, RIGHT, Kind, Outcome, run_cases

HEADER = ("input", "tried", REFUSED, RIGHT, FINDING, "longest, s", "memory, MiB")


PART = 50  # cases of a task


def fuzz(kinds: Sequence[Kind], cases: int, seed: int, jobs: int) -> dict[str, Outcome]:
    """Run cases, divided evenly among the kinds of input.

    Args:
        kinds: of input.
        cases: number of all cases.
        seed: selects the cases.
        jobs: processes that fork the processes of the cases.

    Returns:
        Name of each kind -> its outcome.
    """
    _kinds[:] = kinds
    bounds = [cases * k // len(kinds) for k in range(len(kinds) + 1)]
    tasks = [
        (k, range(first, min(first + PART, bounds[k + 1] - bounds[k])), seed)
        for k in range(len(kinds))
        for first in range(0, bounds[k + 1] - bounds[k], PART)
    ]
    outcomes = {kind.name: Outcome() for kind in kinds}
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        for name, outcome in pool.imap_unordered(_run_task, tasks):
            outcomes[name].add(outcome)
    return outcomes


_kinds: list[Kind] = []  # of the processes of the pool, which inherit them


def _run_task(task: tuple[int, range, int]) -> tuple[str, Outcome]:
    k, cases, seed = task
    return _kinds[k].name, run_cases(_kinds[k], cases, seed)


def table(outcomes: dict[str, Outcome]) -> str:
    """The outcomes as a table in Markdown."""
    rows = [HEADER, ["---"] + ["---:"] * (len(HEADER) - 1)]
    rows += [
        [
            name,
            f"{o.counts.total():,}",
            *(f"{o.counts[result]:,}" for result in (REFUSED, RIGHT, FINDING)),
            f"{o.seconds:.1f}",
            f"{o.mebibytes:.0f}",
        ]
        for name, o in outcomes.items()
    ]
    totals = [
        f"{sum(o.counts[result] for o in outcomes.values()):,}"
        for result in (REFUSED, RIGHT, FINDING)
    ]
    tried = sum(o.counts.total() for o in outcomes.values())
    longest = max(o.seconds for o in outcomes.values())
    memory = max(o.mebibytes for o in outcomes.values())
    rows.append(["all", f"{tried:,}", *totals, f"{longest:.1f}", f"{memory:.0f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _select(kinds: list[Kind], name: str) -> Kind:
    (kind,) = (kind for kind in kinds if kind.name == name)
    return kind


def main() -> int:
    """Run the command; return the exit code, 1 if there are findings."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes that fork the cases")
    parser.add_argument("--kind", help="of the case to repeat")
    parser.add_argument("--case", type=int, default=0)
    args = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pkd-fuzz-inputs-") as folder:
        kinds = Inputs(Path(folder)).kinds()
        if args.kind:
            kind = _select(kinds, args.kind)
            outcomes = {kind.name: run_cases(kind, range(args.case, args.case + 1), args.seed)}
        else:
            outcomes = fuzz(kinds, args.cases, args.seed, args.jobs)
    print(table(outcomes))
    for name, outcome in outcomes.items():
        for case, finding in sorted(outcome.findings.items()):
            print(f"\n{name}, case {case}: {finding}", file=sys.stderr)
    print(f"{time.monotonic() - begin:.0f} s", file=sys.stderr)
    return int(any(outcome.findings for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
