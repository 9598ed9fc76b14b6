"""The ladder of training steps: its contenders do the same work, and its tables say what happened.

On small networks: what is proven does not depend on widths.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from pkd_kernels import dispatch

from bench import gpu
from bench import tables as report
from bench.baseline import largest_difference, member_parameters
from bench.ladder import cells as ladder
from bench.ladder import contenders as ladder_contenders
from bench.ladder import timing as ladder_timing
from bench.ladder.cells import Cell, Size
from bench.ladder.contenders import (
    BASE,
    COMPILE,
    CONTENDERS,
    FUSED_ADAM,
    Entry,
    Graphed,
    Plain,
    PlainNetwork,
    Problem,
    Vmap,
)
from bench.ladder.timing import CHECK_STEPS, Disagreement, check

CPU = torch.device("cpu")
SIZE = Size(CPU, (4, 8, 16), images=8, repeats=2, seconds=0.02)
ONE, STACK = (Cell("KDGAN-2", "1-2-4", stack) for stack in (1, 3))
LATE = 4e9  # seconds since 1970
AROUND = dict.fromkeys(("device", "cuda", "commit", "copy_gb_per_s")) | {
    "versions": {"torch": "2", "triton": "3"}
}


@pytest.fixture
def graphs_are_calls(monkeypatch) -> None:
    """A capture as it is without a GPU: the call runs three times, and a replay is a call."""

    def captured(call):
        for _ in range(3):
            call()
        return call

    monkeypatch.setattr(ladder_contenders, "captured", captured)


def problem(structure: str) -> Problem:
    return Cell(structure, "1-2-4", 1).problem(SIZE)


CASES = [
    pytest.param(structure, stack, name, id=f"{structure}, M = {stack}, {name}")
    for structure in ladder.STRUCTURES
    for stack in (1, 3)
    for name, entry in CONTENDERS.items()
    if name not in COMPILE and entry.applies(ladder.STRUCTURES[structure], stack, CPU)
]


@pytest.mark.parametrize(("structure", "stack", "name"), CASES)
def test_contenders_do_the_plain_loops_work(structure, stack, name):
    about = problem(structure)
    contender = CONTENDERS[name].build(about, about.members(stack))
    assert len(contender.members) == (1 if name == BASE else stack)
    contender.advance(CHECK_STEPS)
    check(about, contender)


def test_tf32_may_round_more_but_not_miss_a_term(monkeypatch):
    for found, exact, fine in ((1e-2, False, True), (1e-2, True, False), (1e-1, False, False)):
        monkeypatch.setattr(ladder_timing, "disagreement", lambda *_, d=found: {"student": d})
        if fine:
            assert check(problem("KDGAN-2"), None, exact) == found
        else:
            with pytest.raises(Disagreement):
                check(problem("KDGAN-2"), None, exact)


def test_grouped_convolution_is_the_definition_whatever_the_backend(monkeypatch):
    monkeypatch.setattr(dispatch, "BACKEND", "none such")
    about = problem("KDGAN-2")
    contender = CONTENDERS["grouped convolution"].build(about, about.members(3))
    contender.advance(CHECK_STEPS)
    check(about, contender)


@pytest.mark.parametrize("structure", ladder.STRUCTURES)
@pytest.mark.parametrize(
    "build",
    [
        lambda about: Plain(about, about.members(1), partial(PlainNetwork, adam=FUSED_ADAM)),
        lambda about: Plain(about, about.members(1), partial(PlainNetwork, adam=FUSED_ADAM), True),
        lambda about: Vmap(about, about.members(3)),
    ],
    ids=["plain", "plain, teacher cached", "vmap"],
)
def test_warming_up_for_a_graph_leaves_no_trace(graphs_are_calls, structure, build):
    about = problem(structure)
    contender = Graphed(build(about))
    contender.advance(CHECK_STEPS)
    check(about, contender)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["plain graph", "plain graph, teacher cached"])
def test_graphs_of_the_plain_loop(name, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # as where they are timed
    about = ONE.problem(Size(torch.device("cuda"), (4, 8, 16), images=8))
    contender = CONTENDERS[name].build(about, about.members(1))
    contender.advance(CHECK_STEPS)
    check(about, contender)


def test_a_members_first_weights_are_those_of_its_class_in_every_stack():
    about = problem("KDGAN-3")
    members = about.members(13)
    stack = about.gan("student", members)
    for m in (0, 2, 9, 12):
        alone = about.gan("student", [members[m]])
        assert largest_difference(alone, member_parameters(stack, m, 13)) == 0
    assert largest_difference(alone, member_parameters(stack, 2, 13)) == 0  # as class 2, seed 0
    assert largest_difference(alone, member_parameters(stack, 3, 13)) > 0
    for p in stack.parameters():
        p.data.zero_()
    assert any(p.any() for p in about.gan("student", members).parameters())


@pytest.mark.parametrize("term", range(6))
@pytest.mark.parametrize("structure", ["KDGAN-2", "KDGAN-3"])
def test_a_missing_term_is_seen(structure, term):
    about = problem(structure)
    plain = Plain(about, about.members(1))
    for network in filter(None, (plain.loop.learning_teacher, plain.loop.student)):
        network.weights = [0.0 if i == term else w for i, w in enumerate(network.weights)]
    plain.advance(CHECK_STEPS)
    with pytest.raises(Disagreement, match="differ from the plain loop's"):
        check(about, plain)


def test_a_peer_that_fails_is_a_row_and_the_others_are_measured(monkeypatch):
    def broken(problem, members):
        raise RuntimeError("no such | kernel\nand more")

    def lazy(problem, members):
        contender = Plain(problem, members)
        contender.advance = lambda steps: None
        return contender

    monkeypatch.setitem(CONTENDERS, "torch's fused Adam", Entry(broken))
    monkeypatch.setitem(CONTENDERS, "flat Adam", Entry(lazy))
    rows = {row["contender"]: row for row in ladder.measure(ONE, SIZE, LATE)}
    assert list(rows) == ONE.names(CPU)
    failed = [rows.pop(name) for name in ("torch's fused Adam", "flat Adam")]
    assert [row["status"] for row in failed] == [ladder.FAILED] * 2
    assert failed[0]["error"] == "RuntimeError: no such | kernel"
    assert "differ from the plain loop's by 1.0e+00" in failed[1]["error"]
    for row in rows.values():
        assert row["status"] == ladder.OK and len(row["ms_per_step"]) == SIZE.repeats
        assert row["launches"] > 100 and row["parameters"] > 1000
    text = ladder.table([*failed, *rows.values()])
    assert "failed: RuntimeError: no such | kernel" in text
    assert report.ladder_cells(failed[0])[0] == r"failed: RuntimeError: no such \| kernel"


def test_without_its_base_a_cell_has_no_ratios(monkeypatch):
    monkeypatch.setitem(CONTENDERS, BASE, Entry(lambda *_: 1 / 0, stacks=("one", "several")))
    rows = ladder.measure(STACK, SIZE, LATE)
    assert [row["status"] for row in rows] == [ladder.FAILED] + [ladder.NOT_RUN] * (len(rows) - 1)


def test_what_there_is_no_time_for_is_not_run():
    rows = ladder.measure(STACK, SIZE, time.time())
    rows += ladder.measured_apart(STACK, SIZE, deadline=time.time())
    found = list(ladder.run([ONE, STACK], SIZE, budget=0))
    assert [cell for cell, _ in found] == [ONE, STACK]
    rows += [row for _, mine in found for row in mine]
    assert {(row["status"], row.get("error")) for row in rows} == {(ladder.NOT_RUN, None)}


def test_what_takes_too_long_to_be_ready_leaves_time_for_the_others(monkeypatch):
    def slow(problem, members):
        try:
            time.sleep(600)
        except Exception as error:  # as a compiler may do with whatever happens inside
            raise RuntimeError from error

    monkeypatch.setitem(CONTENDERS, "vmap(grad)", Entry(slow, stacks=("several",)))
    rows = {row["contender"]: row for row in ladder.measure(STACK, SIZE, time.time() + 4)}
    late = rows.pop("vmap(grad)")
    assert report.ladder_cells(late)[0].startswith("not run: not ready after ")
    assert [row["status"] for row in rows.values()] == [ladder.OK] * 2
    assert all(len(row["ms_per_step"]) == SIZE.repeats for row in rows.values())


def test_times_stand_where_launches_cannot_be_counted(monkeypatch):
    monkeypatch.setattr(ladder, "counted", lambda *_: 1 / 0)
    for row in ladder.measure(STACK, SIZE, LATE):
        assert row["status"] == ladder.OK and len(row["ms_per_step"]) == SIZE.repeats
        assert row["uncounted"] == "ZeroDivisionError: division by zero"
        assert "launches" not in row


def test_a_process_that_does_not_end_is_stopped_and_its_cell_says_so(monkeypatch):
    monkeypatch.setattr(ladder, "LEAST_S", 0.0)
    rows = ladder.measured_apart(STACK, SIZE, time.time() + 0.01)
    assert {(row["status"], row["error"]) for row in rows} == {
        (ladder.NOT_RUN, "stopped after 0 s")
    }
    text = report.ladder_section({"environment": AROUND, "rows": rows})
    assert "| vmap(grad) | not run: stopped after 0 s |" in text


def test_a_process_that_breaks_down_costs_its_cell_alone():
    """Torch refuses -1 threads before anything is measured."""
    broken = Size(CPU, SIZE.teacher_widths, threads=-1)
    found = list(ladder.run([ONE, STACK], broken, budget=60))
    assert [cell for cell, _ in found] == [ONE, STACK]
    errors = {row["error"] for _, rows in found for row in rows}
    assert errors == {"the process ended with exit code 1"}


def test_a_contender_that_fails_when_it_is_timed(monkeypatch):
    monkeypatch.setattr(ladder, "interleaved", lambda *_: 1 / 0)
    rows = ladder.measure(STACK, SIZE, LATE)
    assert {row["error"] for row in rows} == {"ZeroDivisionError: division by zero"}


def test_rows_go_to_a_file_and_to_a_table(tmp_path):
    ((_, rows),) = ladder.run([STACK], SIZE, budget=60)
    assert [row["status"] for row in rows] == [ladder.OK] * 3
    result = {"environment": AROUND, "rows": rows}
    file = tmp_path / "ladder.json"
    file.write_text(json.dumps(result))
    assert json.loads(file.read_text()) == result
    text = report.ladder_text([json.loads(file.read_text())])
    assert "Not measured on a GPU yet." in text
    assert f"| vmap(grad) | {rows[2]['ms_per_step_median']:.3f} |" in text


def test_the_command_saves_what_it_had_no_time_for(tmp_path):
    file = tmp_path / "ladder.json"
    options = ["--ladder", "--budget", "1", "--device", "cpu", "--json", str(file)]
    code, _ = gpu.run([sys.executable, "-m", "bench.step", *options], timeout=60)
    rows = json.loads(file.read_text())["rows"]
    cells = ladder.plan(CPU)
    assert code == 0
    assert list(dict.fromkeys(row["cell"] for row in rows)) == [cell.title for cell in cells]
    assert {row["status"] for row in rows} == {ladder.NOT_RUN}
    assert list(tmp_path.iterdir()) == [file]


def test_the_plan_has_every_cell_once_and_on_a_cpu_what_a_cpu_can():
    cells = ladder.plan(torch.device("cuda"))
    titles = [cell.title for cell in cells]
    assert len(set(titles)) == len(titles) == 28 + 6
    one = "KDGAN-2, 8-16-64, M = 1"
    small = ["KDGAN-2, 1-2-4, M = 128", "KDGAN-2, 1-2-4, M = 1"]
    needed = [one, "KDGAN-2, 8-16-64, M = 30", *small, "teacher, M = 1"]
    assert titles[:8] == needed + [f"{one}, {name}" for name in COMPILE]
    for cell in cells:
        assert cell.names(torch.device("cuda"))[0] == BASE
    for cell in ladder.plan(CPU):
        assert cell in cells and cell.names(CPU)[0] == BASE
        assert not set(cell.names(CPU)) & {"pkd, one graph", "plain graph", "vmap(grad), graph"}


def measured_row(cell: Cell, name: str, images_per_second: float, **more) -> ladder.Row:
    found = {"images_per_second": images_per_second, "parameters": 10**6}
    return ladder.row(cell, name, status=ladder.OK, **found, **more)


def test_targets_from_rows():
    one, many = (Cell("KDGAN-2", "8-16-64", stack) for stack in (1, 30))
    mode = "torch.compile, reduce-overhead"
    compiled = Cell("KDGAN-2", "8-16-64", 1, (mode,))
    rows = [
        measured_row(one, BASE, 200.0),
        measured_row(one, "pkd, one graph", 8000.0, launches=48.0),
        measured_row(one, "plain graph", 4000.0),
        measured_row(compiled, "pkd, one graph", 7000.0),
        measured_row(compiled, mode, 1000.0),
        measured_row(many, BASE, 250.0),
        measured_row(many, "pkd, one graph", 50_000.0),
        ladder.row(one, "plain graph, teacher cached", status=ladder.FAILED, error="-"),
    ]
    text = report.ladder_targets(rows, gb_per_s=4000.0)
    for line in (
        "| 8-16-64, launches a step | <= 48 | 48.0 | yes |",
        "| 8-16-64, images/s by the plain loop's | >= 30 | 40.0 | yes |",
        "| 8-16-64, by torch.compile's best mode (1 of 3 measured) | >= 6 | 7.0 | yes |",
        "| 8-16-64, by a plain CUDA graph | >= 3 | 2.0 | no |",
        "| 8-16-64, by a plain CUDA graph, teacher cached | >= 3 | not run | – |",
        "| teacher, by the plain loop | >= 6 | not run | – |",
        "| 8-16-64, M = 30, by one plain loop | >= 300 | 200 | no |",
        # 4e12 bytes/s over 10 words of 4 bytes for a million parameters: 1e5 images/s
        "| the same at 10 words a parameter and the speed of a copy | – | 400 | – |",
    ):
        assert line in text


def test_the_tables_in_the_readme_are_those_of_the_files():
    text = report.ladder_text(report.saved("ladder-*.json"))
    readme = Path(report.LADDER_README).read_text(encoding="utf-8")
    assert f"{report.BEGIN}\n{text}\n{report.END}" in readme
