"""Statistics of sweeps: the numbers of the paper's Tables 2, 3 and 4 and of its Figure 2."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pkd.models.paper import PAPER_CLASSES, PAPER_MEANS, Compression, table4
from pkd.models.stack import Member
from pkd.scoring.metrics import Average, average
from pkd.sweep.read import MergedSweeps, Method

RESAMPLES, INTERVAL = 10_000, 0.95
ALONE = ("student-only", "teacher-only")  # structures without distillation
# Settings that decide on which images and by which score an AUC is computed.
EVALUATION = (
    *("score", "fused_weights", "evaluate_on", "image_size", "channels", "held_out", "skip_bad"),
    "data_dir",
)
CLASSES = 10  # over which the means of the paper are


@dataclass(frozen=True)
class Difference:
    """Mean difference of two AUCs over the members that both have.

    Attributes:
        mean: over the pairs.
        low, high: ends of the bootstrap 95 % interval; None for a single pair.
        pairs: number of members that both have.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True, eq=False)
class MethodResult:
    """Result of a method.

    Attributes:
        method: settings and rows.
        auc: of the students after their last phase.
        difference: to the students trained alone; None for these, and where they were not run.
        paper: mean AUC that the paper reports; None if it is not comparable.
    """

    method: Method
    auc: Average
    difference: Difference | None
    paper: float | None


@dataclass(frozen=True, eq=False)
class Comparison:
    """All methods on one data set with one student.

    Attributes:
        dataset: name of the data set.
        student_widths: such as 1-2-4.
        results: of the methods that train a student.
        teachers: method whose teachers stand for all: that of the best distilled student.
        on_test_split: whether the AUCs are those of the test split, as in the paper.
    """

    dataset: str
    student_widths: str
    results: list[MethodResult]
    teachers: Method | None
    on_test_split: bool = True

    @property
    def teacher_auc(self) -> dict[Member, float]:
        """Member -> AUC of its teacher; empty if there is none."""
        return {} if self.teachers is None else self.teachers.teacher_auc

    @property
    def teacher_size(self) -> tuple[int, int] | None:
        """Parameters and FLOPs of the teacher."""
        return None if self.teachers is None else _size(self.teachers, "teacher")

    @property
    def student_only(self) -> MethodResult | None:
        """Result of the student trained alone: that with the highest AUC if there are several."""
        return _best([r for r in self.results if r.method.structure == "student-only"])

    @property
    def best(self) -> MethodResult | None:
        """Result of the distilled student with the highest mean AUC on the test split."""
        return _best([r for r in self.results if r.method.structure not in ALONE])

    @cached_property
    def shared(self) -> dict[str, Any]:
        """Settings in which methods of the sweeps differ, with the value of most methods here."""
        every = [result.method.settings for result in self.results]
        shared: dict[str, Any] = {}
        for name in every[0]:
            values = [settings.get(name) for settings in every]
            value = max(values, key=values.count)
            if 2 * values.count(value) > len(values):
                shared[name] = value
        return shared

    @cached_property
    def classes(self) -> dict[int, str]:
        """Label -> name of the classes that are normal for some member."""
        names = {
            member.normal_class: row["class_name"]
            for result in self.results
            for member, row in result.method.rows.items()
        }
        return dict(sorted(names.items()))

    def drop(self, result: MethodResult) -> Difference | None:
        """Difference of a student to its teacher, negative if the student is worse."""
        return difference(result.method.auc, result.method.teacher_auc or self.teacher_auc)

    @property
    def teacher_paper(self) -> float | None:
        """Mean AUC of the teacher in the paper; None if it is not comparable."""
        paper = table4().get(self.dataset)
        size = paper and (paper.teacher.parameters, paper.teacher.flops)
        if size is None or size != self.teacher_size:
            return None
        if len(self.classes) < CLASSES or not self.on_test_split:
            return None
        return PAPER_MEANS["teacher"][self.dataset]

    def teacher_class_paper(self, normal_class: int) -> float | None:
        """AUC of the teacher of a class in the paper; None if it is not comparable."""
        if self.teacher_paper is None or self.dataset not in PAPER_CLASSES:
            return None
        return PAPER_CLASSES[self.dataset][normal_class]

    @property
    def student_size(self) -> tuple[int, int] | None:
        """Parameters and FLOPs of the student."""
        return _size(self.results[0].method, "student")

    @property
    def compression_paper(self) -> Compression | None:
        """The row of the paper's Table 4; None if teacher or student have another size."""
        paper = table4().get(self.dataset)
        if paper is None or self.teacher_size is None or self.student_size is None:
            return None
        sizes = [(cost.parameters, cost.flops) for cost in (paper.teacher, paper.student)]
        return paper if sizes == [self.teacher_size, self.student_size] else None


def summarize(results: MergedSweeps) -> list[Comparison]:
    """Compare the methods of sweeps, for each data set and student."""
    groups: dict[tuple[str, str], list[Method]] = {}
    for method in results.methods:
        if method.auc:
            groups.setdefault((method.dataset, method.student_widths), []).append(method)
    alone = {m.dataset: m for m in results.methods if m.structure == "teacher-only"}
    return [
        _compare(dataset, widths, methods, alone.get(dataset), results.on_test_split)
        for (dataset, widths), methods in groups.items()
    ]


def _compare(
    dataset: str,
    widths: str,
    methods: Sequence[Method],
    teacher_only: Method | None,
    on_test_split: bool,
) -> Comparison:
    results = []
    for method in methods:
        reference = student_only_of(method, methods)
        paired = None if reference is None else difference(method.auc, reference.auc)
        paper = _paper(method) if on_test_split else None
        results.append(MethodResult(method, average(method.auc), paired, paper))
    best = _best([r for r in results if r.method.structure not in ALONE])
    teachers = best.method if best else teacher_only
    return Comparison(dataset, widths, results, teachers, on_test_split)


def student_only_of(method: Method, methods: Sequence[Method]) -> Method | None:
    """The student trained alone that a method is compared with.

    Args:
        method: a method.
        methods: all methods on the same data set with the same student.

    Returns:
        The one that agrees in all other settings. If there is none, the only one that is evaluated
        on the same images by the same score. None for a student trained alone, and if none fits.
    """
    if method.structure == "student-only":
        return None
    students = [other for other in methods if other.structure == "student-only"]
    equal = [other for other in students if other.settings == method.settings]
    candidates = equal or [
        other
        for other in students
        if all(other.settings.get(name) == method.settings.get(name) for name in EVALUATION)
    ]
    return candidates[0] if len(candidates) == 1 else None


def difference(
    values: Mapping[Member, float], reference: Mapping[Member, float]
) -> Difference | None:
    """Compare the AUCs of two methods, member by member.

    The interval is the percentile bootstrap, with a fixed seed, over the classes, each the mean of
    its seeds; over the seeds if there is only one class.

    Args:
        values: member -> AUC.
        reference: member -> AUC that is subtracted.

    Returns:
        None if no member has both.
    """
    members = sorted(values.keys() & reference.keys(), key=lambda m: (m.normal_class, m.seed))
    if not members:
        return None
    by_class: dict[int, list[float]] = {}
    for member in members:
        by_class.setdefault(member.normal_class, []).append(values[member] - reference[member])
    # The seeds of a class are not independent: they share its images.
    units = [float(np.mean(seeds)) for seeds in by_class.values()]
    pairs = np.array(units if len(units) > 1 else by_class[members[0].normal_class])
    if len(pairs) == 1:
        return Difference(float(pairs[0]), None, None, 1)
    rows = np.random.default_rng(0).integers(len(pairs), size=(RESAMPLES, len(pairs)))
    tail = (1 - INTERVAL) / 2
    low, high = np.quantile(pairs[rows].mean(1), [tail, 1 - tail])
    return Difference(float(pairs.mean()), float(low), float(high), len(members))


def average_by_class(auc: Mapping[Member, float]) -> dict[int, Average]:
    """Label -> mean AUC of the members with this normal class."""
    by_class: dict[int, dict[Member, float]] = {}
    for member, value in auc.items():
        by_class.setdefault(member.normal_class, {})[member] = value
    return {normal_class: average(values) for normal_class, values in by_class.items()}


def _best(results: Sequence[MethodResult]) -> MethodResult | None:
    return max(results, key=lambda result: result.auc.mean, default=None)


def _paper(method: Method) -> float | None:
    """Mean AUC of a method in the paper, over ten classes and with a student of the same size."""
    paper = table4().get(method.dataset)
    classes = {member.normal_class for member in method.auc}
    if paper is None or len(classes) < CLASSES:
        return None
    if _size(method, "student") != (paper.student.parameters, paper.student.flops):
        return None
    return PAPER_MEANS[method.structure][method.dataset]


def _size(method: Method, network: str) -> tuple[int, int] | None:
    parameters, flops = (method.number(f"{network}_{size}") for size in ("parameters", "flops"))
    return None if parameters is None or flops is None else (parameters, flops)
