"""The proofs of docs/reliability.md: hostile inputs, kills, and memory that does not grow."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.runner import FINDING, REFUSED, RIGHT, Kind, WrongError, run_cases

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "reliability.md"


def output_of(*argv: object) -> str:
    """Output of a Python module; its findings are the message of a failure."""
    command = [sys.executable, "-m", *map(str, argv)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def rows(table: str) -> dict[str, list[str]]:
    """First cell -> other cells of the rows of a table in Markdown."""
    lines = [line for line in table.splitlines() if line.startswith("| ")][1:]
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {name: values for name, *values in cells if not name.startswith("---")}


# -- The runner of hostile inputs ------------------------------------------------------------------


def refuse(choose, folder):
    raise ValueError("refused")


def accept(choose, folder):
    (folder / "file").touch()


def give_a_wrong_result(choose, folder):
    raise WrongError("other scores")


def fail(choose, folder):
    raise ZeroDivisionError


def fill_the_memory(choose, folder):
    bytearray(2**33)


def compute_forever(choose, folder):
    while True:
        pass


def crash(choose, folder):
    os.abort()


@pytest.mark.parametrize(
    ("check", "result", "words"),
    [
        (refuse, REFUSED, ""),
        (accept, RIGHT, ""),
        (give_a_wrong_result, FINDING, "other scores"),
        (fail, FINDING, "ZeroDivisionError"),
        (fill_the_memory, FINDING, "MemoryError"),
        (compute_forever, FINDING, "SIGXCPU|SIGKILL"),
        (crash, FINDING, "SIGABRT"),
    ],
)
def test_the_runner_finds_what_is_neither_refused_nor_right(check, result, words, monkeypatch):
    monkeypatch.setattr("tests.fuzz.runner.CPU_SECONDS", 1)
    outcome = run_cases(Kind("kind", check, (ValueError,)), range(3), seed=0)
    assert outcome.counts == {result: 3}
    assert list(outcome.findings) == ([0, 1, 2] if result == FINDING else [])
    assert all(re.search(words, finding) for finding in outcome.findings.values())


def test_a_case_is_repeated_by_its_number(tmp_path):
    def check(choose, folder):
        raise WrongError(str(choose.random()))

    kind = Kind("kind", check, (ValueError,))
    several, one = run_cases(kind, range(4), seed=7), run_cases(kind, range(2, 3), seed=7)
    assert one.findings[2].splitlines()[-1] == several.findings[2].splitlines()[-1]
    assert len({finding.splitlines()[-1] for finding in several.findings.values()}) == 4


# -- Slow lane -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_2000_hostile_inputs_are_refused_or_right():
    table = rows(output_of("tests.fuzz", "--cases", 2000, "--seed", 1))
    assert table["all"][0] == "2,000"
    refused, right = ({name: int(cells[k].replace(",", "")) for name, cells in table.items()}
                      for k in (1, 2))  # fmt: skip
    assert [name for name, count in refused.items() if not count] == ["image folder"]
    assert right["all"] > 100
    assert {cells[3] for cells in table.values()} == {"0"}


@pytest.mark.slow
def test_killed_runs_and_sweeps_end_with_the_same_files():
    table = rows(output_of("tests.kills", "--runs", 4, "--seed", 2))
    runs, kills, _, differ = map(int, table["all"])
    assert (runs, differ) == (4, 0)
    assert kills >= 4


# -- The document ----------------------------------------------------------------------------------


def test_the_tables_of_the_document_are_those_of_its_commands():
    document = DOCUMENT.read_text()
    tables = dict(re.findall(r"<!-- (fuzz|kills) -->\n(.*?)<!-- /\1 -->", document, re.S))
    cases = int(re.search(r"tests\.fuzz --cases (\d+) --seed", document)[1])
    runs = int(re.search(r"tests\.kills --runs (\d+) --seed", document)[1])
    fuzz, kills = rows(tables["fuzz"]), rows(tables["kills"])
    assert fuzz["all"][0] == f"{cases:,}"
    assert int(kills["all"][0]) == runs
    assert int(kills["all"][1]) >= runs
    assert {cells[3] for cells in kills.values()} == {"0"}
