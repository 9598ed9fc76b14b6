"""Tilings of the layers: candidates, and the best one in the facts."""

import os
import subprocess
import sys

import pytest
from pkd_kernels.conv import tiling

from bench.gpu import summary
from bench.gpu.runner import ROOT
from bench.gpu.sweep import TAP, WEIGHT, Subject, candidates


def subject(function: str, *arguments) -> Subject:
    return Subject(function, arguments, None, None, 1)


@pytest.mark.parametrize(
    "one",
    [
        subject(TAP, False, 16, 3, 8, True, 1),
        subject(TAP, True, 8, 64, 128, True, 30),
        subject(TAP, False, 1, 64, 256, False, 1),
        subject(WEIGHT, 16, 8, 3, 1, 1),
        subject(WEIGHT, 1, 64, 256, 1, 30),
    ],
    ids=str,
)
def test_candidates_are_distinct_and_begin_with_the_present_tiling(one):
    constants = dict(vars(tiling))
    found = candidates(one)
    assert found[0] == getattr(tiling, one.function)(*one.arguments)
    assert len(set(found)) == len(found) >= 3
    assert len(found) <= 12
    assert dict(vars(tiling)) == constants


def fact(direction: str, tiling_text: str, present: bool = False, **result) -> dict:
    labels = {"stage": "sweep", "cell": "8-16-64, M = 1", "direction": direction}
    labels |= {"function": TAP, "arguments": [False, 16, 3, 8, True, 1], "tiling": tiling_text}
    return labels | {"present": present} | result


def test_the_best_tiling_is_the_fastest_in_all_launches_that_use_it():
    facts = [
        fact("forward", "Tiling(1)", present=True, us=4.0),
        fact("backward", "Tiling(1)", present=True, us=6.0),
        fact("forward", "Tiling(2)", us=1.0),
        fact("backward", "Tiling(2)", us=7.5),
        fact("forward", "Tiling(3)", us=0.5),
        fact("backward", "Tiling(3)", error="OutOfResources: shared memory"),
    ]
    best = summary.tilings(facts)
    (row,) = best.values()
    assert (row["tiling"], row["us"], row["present_us"]) == ("Tiling(2)", 8.5, 10.0)
    text = summary.tiling_table(best)
    assert "    (False, 16, 3, 8, True, 1): Tiling(2),\n" in text
    compile(text, "table", "exec")
    assert summary.tilings(facts[2:]) == {}  # nothing to compare with


SWEEP = """
import torch
from bench.gpu import sweep
from bench.gpu.steps import settings_and_cells
from bench.ladder.loops import Pkd
settings, (cell, *_) = settings_and_cells(rehearse=True, interpret=True)
setup = cell.training_setup(settings)
subjects = sweep.recorded(Pkd(setup, setup.members(1)).trainer.step)
kinds = {(s.labels["direction"], s.function): s for s in subjects}
assert len(kinds) == 3, kinds
for one in kinds.values():
    expected = one.outputs(sweep.present_tiling(one))
    assert all(t.isfinite().all() for t in expected)
    for candidate in sweep.candidates(one):
        result = sweep.timed(one, candidate, settings)
        assert result.get("us", 0) > 0, result
    assert "AttributeError" in sweep.timed(one, None, settings)["error"]
good = [torch.tensor([1.0, 2.0])]
assert sweep.largest_error([torch.tensor([1.0, 2.5])], good) == 0.25
assert not sweep.largest_error([torch.tensor([1.0, float("nan")])], good) <= 1
"""


@pytest.mark.slow
def test_all_tilings_of_recorded_launches_compute_the_same():
    """In another process: `rehearsal.install` replaces functions, and kernels are interpreted."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", SWEEP], cwd=ROOT, env=environment, check=True)
