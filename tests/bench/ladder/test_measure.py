"""Measurement of cells: errors, hangs and missing time become rows, and the other rows are kept."""

import json
import sys
import time

import pytest
import torch

from bench import tables
from bench.gpu.runner import run
from bench.ladder import measure as ladder
from bench.ladder.cells import Cell, Settings, plan
from bench.ladder.contenders import BASE, CONTENDERS, Entry
from bench.ladder.loops import Plain

CPU = torch.device("cpu")
SETTINGS = Settings(CPU, (4, 8, 16), images=8, repeats=2, seconds=0.02)
ONE, STACK = (Cell("KDGAN-2", "1-2-4", stack) for stack in (1, 3))
FAR_DEADLINE = 4e9  # seconds since 1970
ENVIRONMENT = dict.fromkeys(("device", "cuda", "commit", "copy_gb_per_s")) | {
    "versions": {"torch": "2", "triton": "3"}
}


def test_a_failed_peer_is_a_row_and_the_others_are_measured(monkeypatch):
    def fail(setup, members):
        raise RuntimeError("no such | kernel\nand more")

    def without_steps(setup, members):
        contender = Plain(setup, members)
        contender.advance = lambda steps: None
        return contender

    monkeypatch.setitem(CONTENDERS, "torch's fused Adam", Entry(fail))
    monkeypatch.setitem(CONTENDERS, "flat Adam", Entry(without_steps))
    rows = {row["contender"]: row for row in ladder.measure(ONE, SETTINGS, FAR_DEADLINE)}
    assert list(rows) == ONE.names(CPU)
    failed = [rows.pop(name) for name in ("torch's fused Adam", "flat Adam")]
    assert [row["status"] for row in failed] == [ladder.FAILED] * 2
    assert failed[0]["error"] == "RuntimeError: no such | kernel"
    assert "differ from the plain loop's by 1.0e+00" in failed[1]["error"]
    for row in rows.values():
        assert row["status"] == ladder.OK
        assert len(row["ms_per_step"]) == SETTINGS.repeats
        assert row["launches"] > 100
        assert row["parameters"] > 1000
    text = ladder.table([*failed, *rows.values()])
    assert "failed: RuntimeError: no such | kernel" in text
    assert tables.ladder_cells(failed[0])[0] == r"failed: RuntimeError: no such \| kernel"


def test_a_cell_without_its_base_has_no_ratios(monkeypatch):
    monkeypatch.setitem(CONTENDERS, BASE, Entry(lambda *_: 1 / 0, stacks=("one", "several")))
    rows = ladder.measure(STACK, SETTINGS, FAR_DEADLINE)
    assert [row["status"] for row in rows] == [ladder.FAILED] + [ladder.NOT_RUN] * (len(rows) - 1)


def test_rows_without_time_are_not_run():
    rows = ladder.measure(STACK, SETTINGS, time.time())
    rows += ladder.measure_in_process(STACK, SETTINGS, deadline=time.time())
    measured = list(ladder.run([ONE, STACK], SETTINGS, budget=0))
    assert [cell for cell, _ in measured] == [ONE, STACK]
    rows += [row for _, cell_rows in measured for row in cell_rows]
    assert {(row["status"], row.get("error")) for row in rows} == {(ladder.NOT_RUN, None)}


def test_a_slow_contender_leaves_time_for_the_others(monkeypatch):
    def slow(setup, members):
        try:
            time.sleep(600)
        except Exception as error:  # a compiler may convert all exceptions like this
            raise RuntimeError from error

    monkeypatch.setitem(CONTENDERS, "vmap(grad)", Entry(slow, stacks=("several",)))
    deadline = time.time() + 2
    rows = {row["contender"]: row for row in ladder.measure(STACK, SETTINGS, deadline)}
    late = rows.pop("vmap(grad)")
    assert tables.ladder_cells(late)[0].startswith("not run: not ready after ")
    assert [row["status"] for row in rows.values()] == [ladder.OK] * 2
    assert all(len(row["ms_per_step"]) == SETTINGS.repeats for row in rows.values())


def test_times_are_kept_if_launches_cannot_be_counted(monkeypatch):
    monkeypatch.setattr(ladder, "count_launches", lambda *_: 1 / 0)
    for row in ladder.measure(STACK, SETTINGS, FAR_DEADLINE):
        assert row["status"] == ladder.OK
        assert len(row["ms_per_step"]) == SETTINGS.repeats
        assert row["uncounted"] == "ZeroDivisionError: division by zero"
        assert "launches" not in row


def test_a_process_that_hangs_is_killed_and_its_rows_give_the_reason(monkeypatch):
    monkeypatch.setattr(ladder, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(ladder, "GRACE_S", -3600.0)  # the process does not stop by itself
    rows = ladder.measure_in_process(STACK, SETTINGS, time.time() + 0.01)
    assert {(row["status"], row["error"]) for row in rows} == {
        (ladder.NOT_RUN, "stopped after 0 s")
    }
    text = tables.ladder_section({"environment": ENVIRONMENT, "rows": rows})
    assert "| vmap(grad) | not run: stopped after 0 s |" in text


def test_a_process_that_crashes_costs_its_cell_alone():
    """Torch refuses -1 threads before anything is measured."""
    broken = Settings(CPU, SETTINGS.teacher_widths, threads=-1)
    measured = list(ladder.run([ONE, STACK], broken, budget=60))
    assert [cell for cell, _ in measured] == [ONE, STACK]
    errors = {row["error"] for _, rows in measured for row in rows}
    assert errors == {"the process ended with exit code 1"}


def test_an_error_during_timing_is_in_all_rows(monkeypatch):
    monkeypatch.setattr(ladder, "interleaved", lambda *_: 1 / 0)
    rows = ladder.measure(STACK, SETTINGS, FAR_DEADLINE)
    assert {row["error"] for row in rows} == {"ZeroDivisionError: division by zero"}


def test_measured_rows_survive_json_and_appear_in_the_table(tmp_path):
    ((_, rows),) = ladder.run([STACK], SETTINGS, budget=60)
    assert [row["status"] for row in rows] == [ladder.OK] * 3
    result = {"environment": ENVIRONMENT, "rows": rows}
    file = tmp_path / "ladder.json"
    file.write_text(json.dumps(result))
    assert json.loads(file.read_text()) == result
    text = tables.ladder_text([json.loads(file.read_text())])
    assert "Not measured on a GPU yet." in text
    assert f"| vmap(grad) | {rows[2]['ms_per_step_median']:.3f} |" in text


@pytest.mark.slow
def test_the_command_saves_rows_without_time(tmp_path):
    file = tmp_path / "ladder.json"
    options = ["--ladder", "--budget", "1", "--device", "cpu", "--json", str(file)]
    code, _ = run([sys.executable, "-m", "bench.step", *options], timeout=60)
    rows = json.loads(file.read_text())["rows"]
    cells = plan(CPU)
    assert code == 0
    assert list(dict.fromkeys(row["cell"] for row in rows)) == [cell.title for cell in cells]
    assert {row["status"] for row in rows} == {ladder.NOT_RUN}
    assert list(tmp_path.iterdir()) == [file]
