"""Overhead of Ray, computed from measured seconds."""

import pytest

from bench.engines import START, WORKERS, engines_table, overhead, write_plan
from pkd.sweep.plan import Plan

TIMES = {
    "local": [100.0, 104.0, 108.0],
    "imports": [4.0, 4.0, 4.0],
    "ray 1": [120.0, 119.2, 200.0],
    "start 1": [14.0, 10.0, 20.0],
    "ray 2": [72.0, 72.0, 72.0],
    "start 2": [16.0, 16.0, 16.0],
}


def test_the_overhead_is_the_share_beyond_start_and_ideal():
    """Medians: 120 s, of which 10 s are Ray's start, where the local engine takes 104 s."""
    assert overhead(TIMES, 1) == pytest.approx(110 / 104 - 1)
    assert overhead(TIMES, 2) == pytest.approx(60 / 54 - 1)
    rows = engines_table({"seconds": TIMES}).splitlines()[2:]
    assert rows[0] == "| local | 104.0 | – | – |"
    assert rows[2] == "| ray, 2 workers | 72.0 | 12.0 | 11.1 % |"


def test_the_shards_of_the_plan_have_equal_work(tmp_path, monkeypatch):
    monkeypatch.setattr("pkd.sweep.measure.SECONDS", 0.0)
    path = write_plan(tmp_path, epochs=3)
    plan = Plan.read(path.parent)
    assert plan.threads == 1
    assert len(plan.shards) % max(WORKERS) == 0
    assert len({plan.total_steps(shard) for shard in plan.shards}) == 1


def test_the_program_that_starts_ray_is_valid():
    compile(START.format(workers=1), "start", "exec")
