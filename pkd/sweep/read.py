"""Read the results of sweeps, sweep.json, and group their rows by method."""

import json
import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pkd.models.stack import Member
from pkd.sweep.schema import check_sweep
from pkd.training.settings import BEFORE
from pkd.training.structures import SCHEDULES
from pkd.utils.errors import CheckpointError
from pkd.utils.files import read_text

FILE, FORMAT = "sweep.json", 1
RESTORE = "restore it from a copy, or write it again with pkd sweep --resume FOLDER"

IDENTITY = ("dataset", "structure", "student_widths")
MEMBER = ("normal_class", "class_name", "seed")
AUC = ("auc_teacher", "auc_step1", "auc_step2")
# Columns of a row that are results, beside the AUC by every score, `auc_<phase>_<score>`. Every
# other column is a setting.
MEASURED = (
    *("student_steps", "seconds_teacher", "seconds_student", "hardware", "cell", "shard"),
    *("teacher_sha256", "student_parameters", "student_flops"),
    *("teacher_parameters", "teacher_flops"),
)
# Settings that distinguish no methods: they change no result, or rows have columns for them.
BY_ROW = ("normal_class", "seeds", "members")
PRACTICAL = (
    *("data_dir", *BY_ROW, "teacher", "device", "stack", "graph"),
    *("checkpoint_every", "preset", *IDENTITY),
)

Settings = dict[str, Any]
Row = dict[str, Any]


class Curve(NamedTuple):
    """AUC over the epochs of a phase.

    Attributes:
        auc: (epochs,) means over the members.
        low: (epochs,) lowest of the members.
        high: (epochs,) highest of the members.
        members: number of members.
    """

    auc: np.ndarray
    low: np.ndarray
    high: np.ndarray
    members: int


@dataclass(frozen=True, eq=False)
class Method:
    """A method on one data set: the rows with equal settings, one for each class and seed.

    Attributes:
        dataset: name of the data set.
        structure: value of the setting `structure`.
        student_widths: such as 1-2-4.
        settings: the other settings in which the methods of the sweeps differ.
        rows: member -> row.
        curves: phase -> AUC over epochs.
    """

    dataset: str
    structure: str
    student_widths: str
    settings: Settings
    rows: dict[Member, Row] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)

    @property
    def auc(self) -> dict[Member, float]:
        """AUC of the student after its last phase, of each member that has a student."""
        last = {
            member: row["auc_step1"] if row["auc_step2"] is None else row["auc_step2"]
            for member, row in self.rows.items()
        }
        return {member: auc for member, auc in last.items() if auc is not None}

    @property
    def teacher_auc(self) -> dict[Member, float]:
        """AUC of the teacher after its own training, of each member that has a teacher."""
        return {
            member: row["auc_teacher"]
            for member, row in self.rows.items()
            if row["auc_teacher"] is not None
        }

    def auc_by(self, score: str, network: str) -> dict[Member, float]:
        """AUC by one of the scores, of "teacher" or "student" after its last phase.

        Members without it are left out: sweeps of early versions have the score of the run alone.
        """
        phases = ("teacher",) if network == "teacher" else ("step2", "step1")
        columns = [f"auc_{phase}_{score}" for phase in phases]
        found = {
            member: [row[column] for column in columns if row.get(column) is not None]
            for member, row in self.rows.items()
        }
        return {member: values[0] for member, values in found.items() if values}

    def seconds(self, network: str) -> float:
        """Mean seconds that training "teacher" or "student" took per model, 0 if it did not."""
        rows = self.rows.values()
        return sum(row.get(f"seconds_{network}") or 0.0 for row in rows) / len(rows)

    def number(self, column: str) -> int | None:
        """A column that is equal in all rows, such as student_flops; None if it is missing."""
        return next(iter(self.rows.values())).get(column)


@dataclass(frozen=True, eq=False)
class MergedSweeps:
    """The methods of one or several sweeps, with their results.

    Attributes:
        methods: in the order of `SCHEDULES`.
        failed: failed shards: "shard", "cell", "error" and "command".
        settings: settings that all methods share, as far as sweep.json has them.
    """

    methods: list[Method]
    failed: list[dict[str, str]]
    settings: Settings

    @property
    def rows(self) -> list[Row]:
        """The rows of all methods."""
        return [row for method in self.methods for row in method.rows.values()]

    @property
    def on_test_split(self) -> bool:
        """Whether all AUCs are those of the test split, not of development images."""
        settings = [self.settings | method.settings for method in self.methods]
        return all(values.get("evaluate_on", "test") == "test" for values in settings)


class _File(NamedTuple):
    """Content of a sweep.json."""

    path: Path
    rows: list[Row]
    curves: list[dict[str, Any]]
    failed: list[dict[str, str]]
    settings: Settings  # that all of its cells share
    varied: list[str]  # settings in which its cells may differ


def is_sweep(path: Path) -> bool:
    """Whether a path is a sweep.json, or the folder of a sweep with or without results."""
    return path.name == FILE or any((path / name).is_file() for name in (FILE, "plan.json"))


def read_sweeps(paths: Sequence[Path]) -> MergedSweeps:
    """Read the results of sweeps and merge their rows.

    Args:
        paths: folders of sweeps, or their files sweep.json.

    Raises:
        CheckpointError: a file is missing, damaged or of another version of pkd, or two files have
            different results of the same model.
    """
    files = [_read(path / FILE if path.is_dir() else path) for path in paths]
    known = {name for file in files for name in file.settings}
    files = [file._replace(settings=_with_earlier(file, known)) for file in files]
    common = common_settings([file.settings for file in files])
    methods: dict[str, Method] = {}
    for file in files:
        differing = {
            name: value
            for name, value in file.settings.items()
            if name not in common and name not in PRACTICAL
        }
        _add(file, differing, methods)
    order = list(SCHEDULES)
    ordered = sorted(methods.values(), key=lambda method: order.index(method.structure))
    shared = common_settings([method.settings for method in ordered])
    by_dataset = {(method.dataset, method.settings.get("channels")) for method in ordered}
    if len(by_dataset) == len({method.dataset for method in ordered}):
        for method in ordered:  # the channels distinguish data sets, no methods
            method.settings.pop("channels", None)
    for method in ordered:
        for name in shared:
            method.settings.pop(name, None)
    failed = [shard for file in files for shard in file.failed]
    return MergedSweeps(ordered, failed, common | shared)


def _with_earlier(file: _File, known: Collection[str]) -> Settings:
    """Settings of a file; of those that did not exist at its time, the behaviour of that time."""
    if not file.settings:
        return {}
    in_rows = {name for row in file.rows for name in row}
    return {k: BEFORE[k] for k in known if k in BEFORE and k not in in_rows} | file.settings


def common_settings(settings: Sequence[Settings]) -> Settings:
    """Return the settings that all mappings have with equal values."""
    first, *others = settings or [{}]
    return {k: v for k, v in first.items() if all(k in o and o[k] == v for o in others)}


def _read(path: Path) -> _File:
    """Read a sweep.json and check what the summary needs of it."""
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist: give the folder of a sweep with results, or continue "
            f"the sweep with pkd sweep --resume {shlex.quote(str(path.parent))}"
        )
    try:
        content = json.loads(read_text(path))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}")
        check_sweep(content)
        rows, curves = content["rows"], content["curves"]
        settings = content.get("settings", {})
        varied = content.get("varied", [])
        return _File(path, rows, curves, content["failed"], settings, varied)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged or of another version of pkd ({error}): {RESTORE}"
        ) from error


def _add(file: _File, differing: Settings, methods: dict[str, Method]) -> None:
    """Add the rows and curves of a file to the methods; create missing methods.

    Args:
        file: content of a sweep.json.
        differing: common settings of the sweep in which the sweeps differ.
        methods: settings as text -> method.
    """
    cells: dict[str, Method] = {}
    new_rows: dict[str, int] = {}
    practical = set(PRACTICAL) - (set(file.varied) - {*IDENTITY, *BY_ROW})
    for row in file.rows:
        columns = {*MEMBER, *AUC, *MEASURED, *practical}
        settings = differing | {
            k: v for k, v in row.items() if k not in columns and not k.startswith("auc_")
        }
        dataset, structure, widths = (row[name] for name in IDENTITY)
        key = json.dumps([dataset, structure, widths, settings], sort_keys=True)
        method = methods.setdefault(key, Method(dataset, structure, widths, settings))
        new_rows[row["cell"]] = new_rows.get(row["cell"], 0) + _add_row(method, row, file.path)
        cells[row["cell"]] = method
    for curve in file.curves:
        if new_rows.get(curve["cell"]):
            _add_curve(cells[curve["cell"]], curve, new_rows[curve["cell"]])


def _add_row(method: Method, row: Row, path: Path) -> bool:
    """Add a row; return whether it is new. CheckpointError if it contradicts an earlier one."""
    member = Member(row["normal_class"], row["seed"])
    known = method.rows.setdefault(member, row)
    if any(known[name] != row[name] for name in AUC):
        raise CheckpointError(
            f"{path} has other results of {method.dataset}, {method.structure}, "
            f"{method.student_widths}, {member} than the sweeps before it: give only one of them"
        )
    return known is row


def _add_curve(method: Method, values: dict[str, Any], members: int) -> None:
    """Add a curve; average it with the curve of other members of the method if there is one."""
    auc, low, high = (np.array(values[name], float) for name in ("auc", "auc_low", "auc_high"))
    new = Curve(auc, low, high, members)
    old = method.curves.get(values["phase"])
    if old and len(old.auc) == len(new.auc):
        new = _merged([old, new])
    method.curves[values["phase"]] = new


def _merged(curves: Iterable[Curve]) -> Curve:
    auc, low, high, members = zip(*curves, strict=True)
    mean = np.average(auc, axis=0, weights=members)
    return Curve(mean, np.min(low, 0), np.max(high, 0), sum(members))
