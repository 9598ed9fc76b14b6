"""Kill trainings and sweeps: `python -m tests.kills --runs N --seed S` prints a table.

Each run is killed up to five times, by SIGKILL, SIGTERM or SIGINT, at a random file operation, in
the middle of a write, or at a random moment. It is then continued to its end, and its files are
compared with those of a run that was never killed.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

from kill_helpers import Pkd, assert_files_are_complete, final_files
from sweep_helpers import rows_without_times, weights


class Case(NamedTuple):
    """A command that is killed.

    Attributes:
        name: of the row in the table.
        command: train or sweep.
        settings: of the command.
    """

    name: str
    command: str
    settings: tuple[str, ...]


CASES = (
    Case("training", "train", ("--checkpoint-every", "0")),
    Case(
        "training, one model after the other", "train", ("--checkpoint-every", "0", "--stack", "1")
    ),
    Case(
        "training, batch statistics, KDGAN-4",
        "train",
        ("--checkpoint-every", "0.1", "--norm", "batch", "--structure", "4"),
    ),
    Case("sweep", "sweep", ("--checkpoint-every", "0", "--structure", "student-only,2")),
)
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
HEADER = ("command", "runs", "kills", "in the middle of a write", "files that differ")


def result_of(case: Case, folder: Path) -> dict[str, object]:
    """What a finished run or sweep leaves, without times."""
    if case.command == "train":
        return final_files(folder)
    return {**weights(folder / "shards"), "rows": rows_without_times(folder)}


def kill(pkd: Pkd, choose: Random, operations: int, seconds: float) -> int:
    """Start a process and send it a signal; return its exit code."""
    if choose.random() < 0.3:
        return pkd.kill_after(choose.uniform(0.05, 0.3) * seconds)
    # A continued run has fewer operations: most of the signals come before its end.
    return pkd.finish(pkd.start(choose.choice(SIGNALS), choose.randrange(operations // 6)))


def run_case(case: Case, runs: int, choose: Random, folder: Path) -> Counter[str]:
    """Kill and continue some runs; return the cells of a row of the table."""
    undisturbed, begin = Pkd(folder, *case.settings, command=case.command), time.monotonic()
    if undisturbed.finish(undisturbed.start()):
        raise RuntimeError(undisturbed.output())
    seconds = time.monotonic() - begin
    operations = int(undisturbed.output().rsplit(": ", 1)[1])
    expected, counts = result_of(case, undisturbed.run), Counter[str]()
    for k in range(runs):
        (folder / str(k)).mkdir()
        pkd = Pkd(folder / str(k), *case.settings, command=case.command)
        for _ in range(choose.randint(3, 5)):
            code = kill(pkd, choose, operations, seconds)
            if code in (-signal.SIGKILL, 130, 143):
                counts["kills"] += 1
            elif code:
                raise RuntimeError(pkd.output())
            if case.command == "train":
                assert_files_are_complete(pkd.run)
        if pkd.finish(pkd.start()):
            raise RuntimeError(pkd.output())
        counts["in the middle of a write"] += pkd.output().count("signal at: partial write")
        actual = result_of(case, pkd.run)
        names = actual.keys() | expected.keys()
        counts["files that differ"] += sum(actual.get(n) != expected.get(n) for n in names)
    return counts + Counter(runs=runs)


def main(print_line: Callable[[str], None] = print) -> int:
    """Run the command; return the exit code, 1 if a file differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    total = Counter[str]()
    print_line(f"| {' | '.join(HEADER)} |\n| --- |{' ---: |' * (len(HEADER) - 1)}")
    for k, case in enumerate(CASES):
        runs = args.runs * (k + 1) // len(CASES) - args.runs * k // len(CASES)
        with tempfile.TemporaryDirectory(prefix="pkd-kills-") as folder:
            counts = run_case(case, runs, Random(f"{args.seed} {k}"), Path(folder))
        print_line(f"| {case.name} | {' | '.join(str(counts[name]) for name in HEADER[1:])} |")
        total += counts
    print_line(f"| all | {' | '.join(str(total[name]) for name in HEADER[1:])} |")
    return int(total["files that differ"] > 0)


if __name__ == "__main__":
    sys.exit(main())
