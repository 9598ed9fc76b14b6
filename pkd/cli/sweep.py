"""`pkd sweep`: train many cells of settings, classes and seeds, and collect their results."""

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from statistics import mean
from typing import Any

from jsonargparse import Namespace
from rich.table import Table

from pkd.cli.console import console, print_stopped, print_table
from pkd.cli.parser import Parser, with_flags
from pkd.cli.settings import add_settings, read_settings
from pkd.sweep.cells import Cell, combine_settings, resolve_cells
from pkd.sweep.driver import Driver, Outcome, check_unused, lock, new_folder, sweep_command
from pkd.sweep.engines import Engine, LocalEngine
from pkd.sweep.plan import Plan, Shard
from pkd.sweep.planning import make_plan
from pkd.sweep.progress import ProgressDisplay
from pkd.training.config import TrainConfig
from pkd.training.structures import PHASE_NAMES
from pkd.utils.duration import format_duration
from pkd.utils.errors import ConfigError, PkdError
from pkd.utils.files import read_text, unused_folder

# Settings whose values on the command line may be lists, separated by commas.
LISTS = ("structure", "student_widths")
NAMES = tuple(field.name for field in fields(TrainConfig))
SINGLE: tuple[Mapping[str, Any], ...] = ({},)  # cells of a sweep without explicit ones


def sweep_parser() -> Parser:
    """Parser of the command."""
    parser = Parser(description="Train every combination of settings, and share the teachers.")
    parser.add_argument(
        "--config",
        type=Path | None,
        help="YAML file with settings, axes (setting: list of values) and cells (a list of "
        "settings); flags override it",
    )
    add_settings(parser, only_given=True, lists=LISTS)
    parser.add_argument("--out", type=Path | None, help="new folder for this sweep")
    parser.add_argument("--resume", type=Path | None, help="folder of a sweep to continue")
    parser.add_argument(
        "--dry-run", action="store_true", help="measure, print the plan, and train nothing"
    )
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="this process, or Ray"
    )
    parser.add_argument(
        "--address", type=str | None, help="of a Ray cluster; default: Ray is started here"
    )
    parser.add_argument(
        "--workers", type=int | None, help="shards that Ray trains at the same time; default: all"
    )
    return parser


def run_sweep(args: Namespace) -> int:
    """Train the cells of a new sweep, or continue one; return the exit code."""
    given = {name: args[name] for name in NAMES if name in args}
    for name in ("address", "workers"):
        if args.engine == "local" and args[name] is not None:
            raise ConfigError(name, "is a setting of the engine 'ray': add `engine` ray")
    if args.resume:
        if given or args.config or args.out or args.dry_run:
            raise PkdError(
                "`resume` takes every setting from the sweep's plan.json: give no other flag than "
                "`engine`, `address` and `workers`"
            )
        return _resume(args)
    cells = resolve_cells(*_settings(args.config, given))
    if args.dry_run:
        with closing(_engine(args, cells)) as engine:
            print_plan(make_plan(cells, engine), engine.workers)
        return 0
    if args.out:
        check_unused(args.out)  # before the measurement
    with closing(_engine(args, cells)) as engine:
        plan = make_plan(cells, engine)
        directory = args.out or unused_folder("sweep")
        with new_folder(directory):
            plan.write(directory)
            return _run(directory, plan, engine, _continue_command(args, directory))


def _continue_command(args: Namespace, directory: Path) -> str:
    """Command that continues a sweep with the same engine."""
    command = sweep_command(directory)
    if args.engine == "ray":
        options = {name: args[name] for name in ("address", "workers") if args[name] is not None}
        flags = {"engine": "ray"} | options
        command += "".join(f" --{name} {shlex.quote(str(v))}" for name, v in flags.items())
    return command


def _resume(args: Namespace) -> int:
    Plan.read(args.resume)  # refuses other folders before they get a lock file
    with lock(args.resume):
        plan = Plan.read(args.resume)
        with closing(_engine(args, plan.cells)) as engine:
            return _run(args.resume, plan, engine, _continue_command(args, args.resume))


def _run(directory: Path, plan: Plan, engine: Engine, command: str) -> int:
    """Run the shards of a plan; return the exit code."""
    console.print(f"sweep folder: {directory}", soft_wrap=True)
    print_plan(plan, engine.workers)
    display = ProgressDisplay(directory, plan, console, with_flags)
    outcome = Driver(directory, plan, engine, display, command).run()
    return _report(directory, outcome, command)


def _report(directory: Path, outcome: Outcome, command: str) -> int:
    """Print how a sweep ended; return the exit code."""
    for name, error in outcome.failed.items():
        console.print(f"failed: {name}: {with_flags(error)}", soft_wrap=True)
    if outcome.interrupted:
        return print_stopped(command, outcome.signal)
    if outcome.failed:
        console.print(
            f"{len(outcome.failed)} shards failed; continue them with: {command}",
            soft_wrap=True,
        )
    print_results(directory)
    return 1 if outcome.failed else 0


def _engine(args: Namespace, cells: Sequence[Cell]) -> Engine:
    """The engine of the command line."""
    if args.engine == "local":
        return LocalEngine()
    from pkd.sweep.ray_engine import RayEngine  # an optional package

    # The workers may have GPUs where this machine has none.
    use_gpu = any(cell.config.device != "cpu" for cell in cells)
    return RayEngine(args.workers, args.address, use_gpu)


# -- Settings --------------------------------------------------------------------------------------


def _settings(
    path: Path | None, given: Mapping[str, Any]
) -> tuple[list[TrainConfig], tuple[str, ...]]:
    """Settings of all cells, from the YAML file and the flags, which override it.

    Args:
        path: the file.
        given: setting -> value of its flag; a list for those of `LISTS`.

    Raises:
        PkdError: the file or a setting cannot be used.
    """
    file = read_settings(path) if path else {}
    axes = _mapping(file.pop("axes", {}), "axes")
    cells = file.pop("cells", SINGLE)
    if not isinstance(cells, (list, tuple)):
        raise ConfigError("cells", f"is {cells!r}, but must be a list of settings for each cell")
    for name in axes:
        if name in file:
            raise ConfigError(name, f"is an axis and a common setting in {path}: keep one")
    axes = {name: _typed_list(name, values) for name, values in axes.items() if name not in given}
    cells = [_typed(_without(_mapping(cell, "cells"), given)) for cell in cells]
    common = _typed(_without(file, given))
    for name, value in given.items():
        if name in LISTS and len(value) > 1:
            axes[name] = value
        else:
            common[name] = value[0] if name in LISTS else _without_lists(value)
    return combine_settings(common, axes, cells)


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConfigError(name, f"has {value!r}, but must have settings with their values")
    return dict(value)


def _without(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in given}


def _typed_list(name: str, values: Any) -> list[Any]:
    if not isinstance(values, list):
        raise ConfigError(name, f"is an axis with the value {values!r}, but must be a list")
    return [_typed({name: value}).get(name) for value in values]


def _typed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a YAML file, converted and checked as in the configuration of `pkd train`."""
    unknown = [name for name in values if name not in NAMES]
    if unknown:
        raise ConfigError(unknown[0], f"is no setting of a training run: {', '.join(NAMES)}")
    parser = Parser(prog="pkd sweep")
    add_settings(parser, only_given=True)
    typed = parser.parse_object(dict(values), defaults=False)
    return {name: _without_lists(typed.get(name)) for name in values}


def _without_lists(value: Any) -> Any:
    """Value of a setting: the parser returns several run folders as a list."""
    return tuple(value) if isinstance(value, list) else value


# -- Plan and results ------------------------------------------------------------------------------


def print_plan(plan: Plan, workers: int) -> None:
    """Print cells, teachers, shards, steps and the estimated time."""
    columns = ("cell", "members", "shards", "stack", "steps")
    several = len(plan.groups) > 1
    table = Table(*columns, *(("teachers",) if several else ()), title="Sweep")
    for column in table.columns:
        column.overflow = "fold"  # a name is shown completely
    for column in table.columns[1:5]:
        column.justify = "right"
    for cell in (*plan.groups, *plan.cells):
        shards = [shard for shard in plan.shards if shard.cell == cell.name]
        stacks = sorted({shard.stack for shard in shards})
        stack = "-".join(map(str, dict.fromkeys(stacks[:1] + stacks[-1:])))
        cell_steps = f"{sum(map(plan.total_steps, shards)):,}"
        teachers = (plan.group_of.get(cell.name, ""),) if several else ()
        figures = (str(len(cell.members)), str(len(shards)), stack, cell_steps)
        table.add_row(cell.name, *figures, *teachers)
    print_table(table)
    steps = sum(plan.total_steps(shard) for shard in plan.shards)
    console.print(
        f"cells: {len(plan.cells)}, shards: {len(plan.shards)}, groups of shared teachers: "
        f"{len(plan.groups)}; {steps:,} steps, about "
        f"{format_duration(estimated_seconds(plan.shards, workers))} of training on {workers} "
        f"worker{'s' * (workers > 1)}",
        soft_wrap=True,
    )


def print_results(directory: Path) -> None:
    """Print the mean AUC of each cell after each phase."""
    rows = json.loads(read_text(directory / "sweep.json"))["rows"]
    table = Table("cell", "members", *PHASE_NAMES, title="Mean AUC, last epoch")
    table.columns[0].overflow = "fold"
    for cell in dict.fromkeys(row["cell"] for row in rows):
        members = [row for row in rows if row["cell"] == cell]
        columns = [[row[f"auc_{phase}"] for row in members] for phase in PHASE_NAMES]
        means = ("" if None in values else f"{mean(values):.4f}" for values in columns)
        table.add_row(cell, str(len(members)), *means)
    print_table(table)
    folder = shlex.quote(str(directory))
    console.print(
        f"results: {directory / 'sweep.json'}; tables and charts: pkd report {folder}",
        soft_wrap=True,
    )


def estimated_seconds(shards: Sequence[Shard], workers: int) -> float:
    """Estimated duration: all shards on all workers, at least the longest chain of two."""
    alone = [shard.seconds for shard in shards if not shard.teachers]
    after = [shard.seconds for shard in shards if shard.teachers]
    longest = max(alone, default=0.0) + max(after, default=0.0)
    return max(sum(alone + after) / workers, longest)
