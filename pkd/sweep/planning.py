"""Make the plan of a sweep: groups of teachers, sizes of shards, estimated time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from typing import Any

from pkd.models.stack import Member, split_into_stacks
from pkd.runs.teachers import teacher_settings
from pkd.sweep.cells import Cell, cell_name, unique_name
from pkd.sweep.engines import Engine
from pkd.sweep.measure import Measurement, measure_cells
from pkd.sweep.plan import Plan, Shard
from pkd.utils.errors import PkdError

# Settings that separate groups of teachers, beside `teacher_settings` and the images.
GROUP_SETTINGS = ("device", "skip_bad", "stack")
TEACHERS_IN_OTHER_RUNS = ("another run",)


def make_plan(cells: Sequence[Cell], engine: Engine) -> Plan:
    """Plan a sweep for the workers of an engine, after a short measurement on one of them.

    Args:
        cells: cells of the sweep.
        engine: runs the measurement.

    Raises:
        PkdError: the measurement failed.
    """
    groups, group_of = _group_teachers(cells)
    students = [cell for cell in cells if cell.config.structure != "teacher-only"]
    names = [cell.name for cell in (*groups, *students)]
    # The time of these cells excludes teachers, which other shards train.
    measured = [
        replace(cell, config=replace(cell.config, teacher=TEACHERS_IN_OTHER_RUNS))
        if cell.name in group_of
        else cell
        for cell in (*groups, *students)
    ]
    speeds = dict(zip(names, _measure(measured, engine), strict=True))
    costed = dict(zip(names, measured, strict=True))
    teachers, shards = (
        _split([(costed[cell.name], speeds[cell.name]) for cell in stage], engine.workers)
        for stage in (groups, students)
    )
    for shard in shards:
        group = group_of.get(shard.cell)
        shard.teachers = tuple(
            teacher.name
            for teacher in teachers
            if teacher.cell == group and not set(teacher.members).isdisjoint(shard.members)
        )
    return Plan(engine.threads, cells, groups, [*teachers, *shards], group_of)


def _measure(cells: Sequence[Cell], engine: Engine) -> list[Measurement]:
    handle = engine.submit(measure_cells, cells, engine.threads)
    _, result = engine.wait([handle])
    if result["status"] != "finished":
        raise PkdError(result["error"])
    measurements: list[Measurement] = result["measurements"]
    return measurements


@dataclass
class _Group:
    """Cells whose teachers have the same settings and images."""

    key: dict[str, Any]
    cells: list[Cell]


def _group_teachers(cells: Sequence[Cell]) -> tuple[list[Cell], dict[str, str]]:
    """Groups of teachers as cells with the structure teacher-only, and cell -> its group."""
    shared: list[_Group] = []
    for cell in cells:
        if cell.config.structure == "student-only" or cell.config.teacher:
            continue
        key = teacher_settings(cell.config) | {"data_sha256": cell.data_sha256}
        key |= {name: getattr(cell.config, name) for name in GROUP_SETTINGS}
        same = next((group for group in shared if group.key == key), None)
        if same:
            same.cells.append(cell)
        else:
            shared.append(_Group(key, [cell]))
    groups: list[Cell] = []
    group_of: dict[str, str] = {}
    names = [cell.name for cell in cells]
    for group in shared:
        first = group.cells[0]
        name = unique_name("teacher_" + cell_name(first.config, ("dataset",)), names)
        names.append(name)
        groups.append(
            replace(
                first,
                name=name,
                config=replace(first.config, structure="teacher-only"),
                members=tuple(dict.fromkeys(m for cell in group.cells for m in cell.members)),
                images={k: n for cell in group.cells for k, n in cell.images.items()},
            )
        )
        group_of |= {cell.name: name for cell in group.cells}
    return groups, group_of


def _split(cells: Sequence[tuple[Cell, Measurement]], workers: int) -> list[Shard]:
    """Split cells into shards that give all workers work.

    A cell with much work is split into more shards than one with little. A shard has no more
    members than fit the device, and no fewer than the knee of its cell if so many fit.

    Args:
        cells: cells that are trained in the same stage, with their speed.
        workers: shards that run at the same time.
    """
    work = [speed.seconds(cell, cell.members) for cell, speed in cells]
    shards = []
    for (cell, speed), seconds in zip(cells, work, strict=True):
        wanted = ceil(seconds / sum(work) * workers)
        count = len(cell.members)
        parts = max(ceil(count / speed.fit), min(wanted, max(1, count // speed.knee)))
        shards += [
            _shard(cell, speed, members, number)
            for number, members in enumerate(_even_parts(cell.members, parts), 1)
        ]
    return shards


def _shard(cell: Cell, speed: Measurement, members: tuple[Member, ...], number: int) -> Shard:
    stack = min(cell.config.stack or len(members), len(members))
    stacks = split_into_stacks(len(members), stack)
    seconds = sum(speed.seconds(cell, members[part]) for part in stacks)
    name = f"{cell.name}_part{number}"
    return Shard(name, cell.name, members, stack, seconds=round(seconds, 3))


def _even_parts(members: tuple[Member, ...], parts: int) -> list[tuple[Member, ...]]:
    """Split into consecutive parts whose sizes differ by at most one."""
    bounds = [len(members) * k // parts for k in range(parts + 1)]
    return [members[start:stop] for start, stop in pairwise(bounds)]
