"""Plan of a sweep, plan.json: cells, shared teachers and shards; it never changes afterwards.

Only the stack of a shard becomes smaller where the memory of a GPU turns out to be too small.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pkd.models.stack import Member, split_into_stacks
from pkd.sweep.cells import Cell
from pkd.training.config import ResolvedConfig
from pkd.training.settings import from_plain, to_plain
from pkd.training.structures import Phase
from pkd.utils.checksums import dump_checked, load_checked
from pkd.utils.errors import CheckpointError, OutputError
from pkd.utils.files import atomic_write, read_text

FORMAT, UNVERIFIED = 2, 1  # the first format had no SHA-256
FILE = "plan.json"


@dataclass
class Shard:
    """A run of the sweep: some members of one cell, or some of the teachers that cells share.

    Attributes:
        name: folder below DIR/shards.
        cell: name of the cell, or of the group of teachers.
        members: models of the run.
        stack: models that are trained together.
        teachers: names of the shards that train the teachers of this one.
        seconds: estimated duration.
    """

    name: str
    cell: str
    members: tuple[Member, ...]
    stack: int
    teachers: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass
class Plan:
    """Plan of a sweep.

    Attributes:
        threads: CPU threads of a shard.
        cells: cells of the sweep.
        groups: groups of teachers, each shared by the cells with the same teacher settings.
        shards: runs of the sweep, those of teachers first.
        group_of: cell -> group of its teachers; without the cells that train no teacher.
    """

    threads: int
    cells: Sequence[Cell]
    groups: Sequence[Cell]
    shards: Sequence[Shard]
    group_of: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def _trained(self) -> dict[str, Cell]:
        return {cell.name: cell for cell in (*self.groups, *self.cells)}

    @cached_property
    def _by_name(self) -> dict[str, Shard]:
        return {shard.name: shard for shard in self.shards}

    def shard(self, name: str) -> Shard:
        """Shard with a name."""
        return self._by_name[name]

    def cell_of(self, shard: Shard) -> Cell:
        """Cell or group of teachers that a shard belongs to."""
        return self._trained[shard.cell]

    def trains_teachers(self, shard: Shard) -> bool:
        """Whether a shard belongs to a group of teachers."""
        return any(shard.cell == group.name for group in self.groups)

    def shards_of(self, cell: Cell) -> list[Shard]:
        """Shards with the results of a cell; those of its group for the structure teacher-only."""
        alone = cell.config.structure == "teacher-only"
        name = self.group_of[cell.name] if alone else cell.name
        return [shard for shard in self.shards if shard.cell == name]

    def config(self, shard: Shard, directory: Path) -> ResolvedConfig:
        """Settings of a shard's run.

        Args:
            shard: the shard.
            directory: folder of the sweep.
        """
        config = self.cell_of(shard).config
        folders = tuple(str(shard_folder(directory, name)) for name in shard.teachers)
        return replace(
            config,
            normal_class="all",
            seeds=1,
            members=tuple((member.normal_class, member.seed) for member in shard.members),
            teacher=folders or config.teacher,
            stack=shard.stack,
        )

    def phases(self, shard: Shard) -> list[Phase]:
        """Phases that a shard trains."""
        return [
            phase
            for phase in self.cell_of(shard).config.trained_phases()
            if not (phase.name == "teacher" and shard.teachers)
        ]

    def steps(self, shard: Shard) -> dict[str, list[int]]:
        """Steps of a shard: trained phase -> steps of each stack."""
        cell, slices = self.cell_of(shard), split_into_stacks(len(shard.members), shard.stack)
        stacks = [shard.members[part] for part in slices]
        return {
            phase.name: [max(cell.steps(phase, member) for member in stack) for stack in stacks]
            for phase in self.phases(shard)
        }

    def total_steps(self, shard: Shard) -> int:
        """Steps of a shard over all phases and stacks."""
        return sum(map(sum, self.steps(shard).values()))

    def write(self, directory: Path) -> None:
        """Write plan.json; OutputError if that fails."""
        with atomic_write(directory / FILE) as temporary:
            try:
                temporary.write_text(dump_checked(self._to_plain()), "utf-8")
            except OSError as error:
                raise OutputError.from_os_error(directory / FILE, error) from error

    def _to_plain(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "threads": self.threads,
            "cells": [
                _cell_to_plain(cell) | {"teachers": self.group_of.get(cell.name)}
                for cell in self.cells
            ],
            "teachers": [_cell_to_plain(group) for group in self.groups],
            "shards": [
                vars(shard) | {"members": _pairs(shard.members), "teachers": list(shard.teachers)}
                for shard in self.shards
            ],
        }

    @classmethod
    def read(cls, directory: Path) -> "Plan":
        """Read plan.json.

        Raises:
            CheckpointError: it is missing, damaged or of another version of pkd.
        """
        path = directory / FILE
        if not path.is_file():
            raise CheckpointError(
                f"{directory} holds no sweep, it has no {FILE}: give the folder that pkd sweep "
                "named, or start a sweep with pkd sweep --out FOLDER"
            )
        try:
            plan = _parse(load_checked(read_text(path), _has_checksum), path)
            plan._check()
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"{path} is damaged or of another version of pkd ({error}): restore it from a "
                "copy, or start a new sweep in another folder"
            ) from error
        return plan

    def _check(self) -> None:
        """Raise ValueError or KeyError if the parts do not belong together."""
        trained = [cell.name for cell in (*self.groups, *self.cells)]
        names = [shard.name for shard in self.shards]
        if len(set(trained)) < len(trained) or len(set(names)) < len(names):
            raise ValueError("a name occurs twice")
        for shard in self.shards:
            members = set(self.cell_of(shard).members)
            if not shard.members or not members.issuperset(shard.members) or shard.stack < 1:
                raise ValueError(f"the shard {shard.name} does not fit its cell")
            available = {m for name in shard.teachers for m in self.shard(name).members}
            if shard.teachers and not available.issuperset(shard.members):
                raise ValueError(f"the shard {shard.name} lacks teachers")
        for cell in self.cells:
            trained_members = {m for shard in self.shards_of(cell) for m in shard.members}
            if not trained_members.issuperset(cell.members):
                raise ValueError(f"the cell {cell.name} lacks shards")


def shard_folder(directory: Path, name: str) -> Path:
    """Run folder of a shard."""
    return directory.absolute() / "shards" / name


def _pairs(members: Sequence[Member]) -> list[list[int]]:
    return [[member.normal_class, member.seed] for member in members]


def _cell_to_plain(cell: Cell) -> dict[str, Any]:
    return {
        "name": cell.name,
        "varied": list(cell.varied),
        "members": _pairs(cell.members),
        "images": {str(k): images for k, images in cell.images.items()},
        "data_sha256": cell.data_sha256,
        "config": to_plain(cell.config),
    }


def _has_checksum(values: dict[str, Any]) -> bool:
    return values["format"] != UNVERIFIED


def _parse(values: dict[str, Any], path: Path) -> Plan:
    """Convert the content of plan.json; ValueError, TypeError or KeyError if it is damaged."""
    if values["format"] not in (UNVERIFIED, FORMAT):
        raise ValueError(f"its format is {values['format']!r}")
    threads = values["threads"]
    if type(threads) is not int or threads < 1:
        raise ValueError(f"threads is {threads!r}")
    shards = [
        Shard(
            **shard | {"members": _members(shard["members"]), "teachers": tuple(shard["teachers"])}
        )
        for shard in values["shards"]
    ]
    group_of = {cell["name"]: cell["teachers"] for cell in values["cells"] if cell["teachers"]}
    cells = [_parse_cell(cell, path) for cell in values["cells"]]
    groups = [_parse_cell(group, path) for group in values["teachers"]]
    return Plan(threads, cells, groups, shards, group_of)


def _parse_cell(values: dict[str, Any], path: Path) -> Cell:
    return Cell(
        values["name"],
        from_plain(values["config"], path),
        tuple(values["varied"]),
        _members(values["members"]),
        {int(k): int(images) for k, images in values["images"].items()},
        values["data_sha256"],
    )


def _members(pairs: Sequence[Sequence[int]]) -> tuple[Member, ...]:
    return tuple(Member(int(normal_class), int(seed)) for normal_class, seed in pairs)
