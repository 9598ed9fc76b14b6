"""Results of a sweep, sweep.json and sweep.csv: a row for each member, curves of each cell."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from pkd.models.stack import Member
from pkd.runs.folder import RunFolder
from pkd.sweep.cells import Cell
from pkd.sweep.plan import Plan, Shard, shard_folder
from pkd.training.settings import to_plain
from pkd.training.structures import PHASE_NAMES
from pkd.utils.errors import RESTORE, CheckpointError
from pkd.utils.files import atomic_write

FORMAT = 1
CURVE_DIGITS = 5
COLUMNS = (
    *("dataset", "structure", "student_widths", "normal_class", "class_name", "seed"),
    *("auc_teacher", "auc_step1", "auc_step2", "student_steps"),
    *("seconds_teacher", "seconds_student", "hardware", "cell", "shard", "teacher_sha256"),
    *("student_parameters", "student_flops", "teacher_parameters", "teacher_flops"),
)


class FinishedRun:
    """Results and curves of a finished run folder.

    Args:
        path: the folder.

    Attributes:
        results: content of results.json.
        metrics: records of metrics.jsonl.
        positions: member -> its position in the run.

    Raises:
        CheckpointError: the run is not finished, or a file is damaged.
    """

    def __init__(self, path: Path):
        folder = RunFolder.open(path)
        results = folder.results()
        if results is None:
            raise CheckpointError(f"{path} is not finished")
        self.path, self.results, self.metrics = path, results, folder.metrics
        try:
            self.positions = {
                Member(m["normal_class"], m["seed"]): k for k, m in enumerate(results["members"])
            }
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path / 'results.json'} is damaged, it lacks {error}: {RESTORE}"
            ) from error

    def seconds(self, phases: Sequence[str]) -> float | None:
        """Seconds of one member in the phases that were trained here; None if there are none."""
        trained = [v for name, v in self.results["seconds"].items() if name in phases]
        return round(sum(trained) / len(self.positions), 3) if trained else None


class SweepResults:
    """Collects the results of finished shards.

    Args:
        directory: folder of the sweep.
        plan: its plan.
    """

    def __init__(self, directory: Path, plan: Plan):
        self.directory, self.plan = directory, plan
        self._runs: dict[str, FinishedRun] = {}

    def add(self, shard: Shard) -> None:
        """Load the results of a finished shard; CheckpointError if they are damaged."""
        self._runs[shard.name] = FinishedRun(shard_folder(self.directory, shard.name))

    def write(self, failed: Mapping[str, str], command: str) -> None:
        """Write sweep.json and sweep.csv.

        Args:
            failed: name of a failed shard -> its error.
            command: command that continues the sweep.

        Raises:
            OutputError: a file cannot be written.
            CheckpointError: the results of a shard are damaged.
        """
        rows = [row for cell in self.plan.cells for row in self._rows(cell)]
        content = {
            "format": FORMAT,
            "rows": rows,
            "curves": [curve for cell in self.plan.cells for curve in self._curves(cell)],
            "failed": [
                {
                    "shard": name,
                    "cell": self.plan.shard(name).cell,
                    "error": error,
                    "command": command,
                }
                for name, error in failed.items()
            ],
        }
        with atomic_write(self.directory / "sweep.json") as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        names = dict.fromkeys((*COLUMNS, *(name for row in rows for name in row)))
        with (
            atomic_write(self.directory / "sweep.csv") as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    def _rows(self, cell: Cell) -> list[dict[str, Any]]:
        """A row for each member of a cell whose shard is finished."""
        rows = []
        for shard in self.plan.shards_of(cell):
            run = self._runs.get(shard.name)
            if run is not None:
                members = [member for member in shard.members if member in cell.members]
                rows += [self._row(cell, shard, run, member) for member in members]
        return rows

    def _row(self, cell: Cell, shard: Shard, run: FinishedRun, member: Member) -> dict[str, Any]:
        path = run.path / "results.json"
        try:
            record = run.results["members"][run.positions[member]]
            cost = run.results["cost"]
            costs = {
                f"{network}_{name}": cost[network][name] if network in cost else None
                for network in ("student", "teacher")
                for name in ("parameters", "flops")
            }
            trained = self._teacher_run(cell, shard, run, member)
            row = {
                "normal_class": member.normal_class,
                "class_name": record["class_name"],
                "seed": member.seed,
                **{f"auc_{phase}": record["auc"].get(phase) for phase in PHASE_NAMES},
                "student_steps": student_steps(cell, member),
                "seconds_teacher": trained.seconds(("teacher",)) if trained else None,
                "seconds_student": run.seconds(("step1", "step2")),
                "hardware": run.results["hardware"],
                "cell": cell.name,
                "shard": shard.name,
                "teacher_sha256": record.get("teacher_sha256"),
                **costs,
            }
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged, it lacks {error}: {RESTORE}") from error
        return named_settings(cell) | row

    def _teacher_run(
        self, cell: Cell, shard: Shard, run: FinishedRun, member: Member
    ) -> FinishedRun | None:
        """The run that trained the teacher of a member."""
        if cell.config.teacher:
            runs = [FinishedRun(Path(path)) for path in cell.config.teacher]
        else:
            runs = [self._runs[name] for name in shard.teachers if name in self._runs] or [run]
        return next((source for source in runs if member in source.positions), None)

    def _curves(self, cell: Cell) -> list[dict[str, Any]]:
        """Mean AUC by epoch of each phase of a cell, once all of its shards are finished."""
        shards = self.plan.shards_of(cell)
        if any(shard.name not in self._runs for shard in shards):
            return []
        plain = to_plain(cell.config)
        common = {"cell": cell.name}
        common |= {name: plain[name] for name in ("dataset", "structure", "student_widths")}
        curves = []
        for phase in cell.config.phases():
            epochs = self._auc_by_epoch(cell, shards, phase.name)
            curves.append(
                common
                | {
                    "phase": phase.name,
                    "network": phase.network,
                    "auc": [round(mean(values), CURVE_DIGITS) for values in epochs],
                    "auc_low": [round(min(values), CURVE_DIGITS) for values in epochs],
                    "auc_high": [round(max(values), CURVE_DIGITS) for values in epochs],
                }
            )
        return curves

    def _auc_by_epoch(self, cell: Cell, shards: Sequence[Shard], phase: str) -> list[list[float]]:
        """AUC of the members of a cell after each epoch of a phase."""
        epochs: list[list[float]] = []
        for shard in shards:
            run = self._runs[shard.name]
            positions = [run.positions[m] for m in shard.members if m in cell.members]
            records = [record["auc"] for record in run.metrics if record["phase"] == phase]
            epochs = epochs or [[] for _ in records]
            for values, auc in zip(epochs, records, strict=True):
                values += [auc[k] for k in positions]
        return epochs


def named_settings(cell: Cell) -> dict[str, Any]:
    """Settings of a cell that its rows name: setting -> plain value."""
    plain = to_plain(cell.config)
    return {
        name: "-".join(map(str, plain[name])) if isinstance(plain[name], list) else plain[name]
        for name in ("dataset", "structure", "student_widths", *cell.varied)
    }


def student_steps(cell: Cell, member: Member) -> int:
    """Updates of a member's student over all phases."""
    phases = [phase for phase in cell.config.phases() if "student" in phase.structure.trained]
    return sum(cell.steps(phase, member) for phase in phases)
