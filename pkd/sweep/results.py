"""Results of a sweep, sweep.json and sweep.csv: a row for each member, curves of each cell."""

import csv
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from statistics import mean
from typing import Any

from pkd.models.stack import Member
from pkd.runs.folder import RunFolder
from pkd.sweep.cells import Cell
from pkd.sweep.plan import Plan, Shard, shard_folder
from pkd.sweep.read import common_settings
from pkd.training.settings import to_plain
from pkd.training.structures import PHASE_NAMES
from pkd.utils.errors import RESTORE, CheckpointError
from pkd.utils.files import atomic_write
from pkd.utils.text import csv_cell

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
        auc: (phase, AUC of each member) after each epoch, as in metrics.jsonl.
        positions: member -> its position in the run.

    Raises:
        CheckpointError: the run is not finished, or a file is damaged.
    """

    def __init__(self, path: Path):
        folder = RunFolder.open(path)
        results = folder.results()
        if results is None:
            raise CheckpointError(f"{path} is not finished")
        self.path, self.results = path, results
        self.auc = [(record["phase"], record["auc"]) for record in folder.metrics]
        self.positions = {
            Member(m["normal_class"], m["seed"]): k for k, m in enumerate(results["members"])
        }

    def seconds(self, phases: Sequence[str]) -> float | None:
        """Seconds of one member in the phases that were trained here; None if there are none."""
        trained = [v for name, v in self.results["seconds"].items() if name in phases]
        return round(sum(trained) / len(self.positions), 3) if trained else None

    def auc_by_epoch(self, phase: str, members: Sequence[Member]) -> list[list[float]]:
        """AUC of some members after each epoch of a phase."""
        positions = [self.positions[member] for member in members]
        return [[auc[k] for k in positions] for name, auc in self.auc if name == phase]


class SweepResults:
    """Collects the results of finished shards.

    Args:
        directory: folder of the sweep.
        plan: its plan.
    """

    def __init__(self, directory: Path, plan: Plan):
        self.directory, self.plan = directory, plan
        self._runs: dict[str, FinishedRun] = {}
        self._rows: dict[tuple[str, str], list[dict[str, Any]]] = {}  # by cell and shard

    def add(self, shard: Shard) -> None:
        """Load the results of a finished shard; CheckpointError if they are damaged."""
        run = FinishedRun(shard_folder(self.directory, shard.name))
        rows = {
            (cell.name, shard.name): self._shard_rows(cell, shard, run)
            for cell in self.plan.cells
            if any(other.name == shard.name for other in self.plan.shards_of(cell))
        }
        for phase in self.plan.cell_of(shard).config.phases():
            if sum(name == phase.name for name, _ in run.auc) != phase.epochs:
                raise CheckpointError(
                    f"{run.path / 'metrics.jsonl'} does not fit config.yaml: {RESTORE}"
                )
        self._runs[shard.name] = run
        self._rows |= rows

    def _common_settings(self) -> dict[str, Any]:
        """Settings that all cells share, without paths of this machine."""
        settings = common_settings([to_plain(cell.config) for cell in self.plan.cells])
        return {k: v for k, v in settings.items() if k not in ("data_dir", "teacher")}

    def write(self, failed: Mapping[str, str], command: str) -> None:
        """Write sweep.json and sweep.csv.

        Args:
            failed: name of a failed shard -> its error.
            command: command that continues the sweep.

        Raises:
            OutputError: a file cannot be written.
            CheckpointError: the results of a shard are damaged.
        """
        rows = [
            row
            for cell in self.plan.cells
            for shard in self.plan.shards_of(cell)
            for row in self._rows.get((cell.name, shard.name), [])
        ]
        content = {
            "format": FORMAT,
            "settings": self._common_settings(),
            "varied": sorted({name for cell in self.plan.cells for name in cell.varied}),
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
            writer.writerows({k: csv_cell(v) for k, v in row.items()} for row in rows)

    def _shard_rows(self, cell: Cell, shard: Shard, run: FinishedRun) -> list[dict[str, Any]]:
        """A row for each member of a cell that a finished shard has trained."""
        if cell.config.teacher:
            teachers = []
            for path in cell.config.teacher:
                with suppress(CheckpointError):  # moved or deleted: only its seconds are missing
                    teachers.append(FinishedRun(Path(path)))
        else:
            names = [name for name in shard.teachers if name in self._runs]
            teachers = [self._runs[name] for name in names] or [run]
        members = [member for member in shard.members if member in cell.members]
        try:
            return [_row(cell, shard, run, teachers, member) for member in members]
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{run.path / 'results.json'} is damaged, it lacks {error}: {RESTORE}"
            ) from error

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
            by_shard = [
                self._runs[shard.name].auc_by_epoch(
                    phase.name, [member for member in shard.members if member in cell.members]
                )
                for shard in shards
            ]
            epochs = [list(chain(*parts)) for parts in zip(*by_shard, strict=True)]
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


def _row(
    cell: Cell, shard: Shard, run: FinishedRun, teachers: Sequence[FinishedRun], member: Member
) -> dict[str, Any]:
    """Row of a member; KeyError or TypeError if the results are damaged."""
    record, costs = run.results["members"][run.positions[member]], run.results["cost"]
    trained = next((source for source in teachers if member in source.positions), None)
    return named_settings(cell) | {
        "normal_class": member.normal_class,
        "class_name": record["class_name"],
        "seed": member.seed,
        **{f"auc_{phase}": record["auc"].get(phase) for phase in PHASE_NAMES},
        **_auc_by_score(record.get("auc_by_score", {})),
        "student_steps": student_steps(cell, member),
        "seconds_teacher": trained.seconds(("teacher",)) if trained else None,
        "seconds_student": run.seconds(("step1", "step2")),
        "hardware": run.results["hardware"],
        "cell": cell.name,
        "shard": shard.name,
        "teacher_sha256": record.get("teacher_sha256"),
        **{
            f"{network}_{name}": costs[network][name] if network in costs else None
            for network in ("student", "teacher")
            for name in ("parameters", "flops")
        },
    }


def _auc_by_score(auc: dict[str, dict[str, float]]) -> dict[str, float | None]:
    """Columns with the AUC by every score; runs of earlier versions have the latent score alone."""
    return {
        f"auc_{phase}_{score}": by_phase.get(phase)
        for score, by_phase in auc.items()
        for phase in PHASE_NAMES
    }


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
