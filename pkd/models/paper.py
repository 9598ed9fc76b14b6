"""The results of the P-KDGAN paper (Tables 2 to 4), to compare with ours."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from pkd.models.architecture import Architecture
from pkd.models.cost import Cost, cost

TEACHER_WIDTHS = (64, 128, 256)


class PaperStudent(NamedTuple):
    """A student of Table 4."""

    channels: int  # of the images
    widths: tuple[int, int, int]
    parameters_ratio: float  # teacher over student, as printed
    flops_ratio: float


PAPER_STUDENTS = {
    "cifar10": PaperStudent(3, (8, 16, 64), 6.22, 24.45),
    "mnist": PaperStudent(1, (2, 4, 8), 52.22, 311.11),
    "fashion_mnist": PaperStudent(1, (1, 2, 4), 105.45, 700.0),
}

# Mean AUC over ten classes: of the teacher and of the student without distillation (Table 4, which
# prints the student's drop to the teacher), and of the student by structure (Table 3).
PAPER_MEANS = {
    "teacher": {"cifar10": 0.7376, "mnist": 0.9780, "fashion_mnist": 0.9311},
    "student-only": {"cifar10": 0.7061, "mnist": 0.9548, "fashion_mnist": 0.9120},
    "1": {"cifar10": 0.7159, "mnist": 0.9670, "fashion_mnist": 0.9248},
    "2": {"cifar10": 0.7243, "mnist": 0.9675, "fashion_mnist": 0.9241},
    "3": {"cifar10": 0.7094, "mnist": 0.9718, "fashion_mnist": 0.9290},
    "4": {"cifar10": 0.7258, "mnist": 0.9687, "fashion_mnist": 0.9242},
    "progressive-23": {"cifar10": 0.7305, "mnist": 0.9725, "fashion_mnist": 0.9293},
    "progressive-24": {"cifar10": 0.7252, "mnist": 0.9667, "fashion_mnist": 0.9257},
}

# AUC of the teacher by class (Table 2, which has no Fashion-MNIST).
PAPER_CLASSES = {
    "cifar10": (0.825, 0.744, 0.703, 0.605, 0.765, 0.652, 0.797, 0.723, 0.827, 0.735),
    "mnist": (0.996, 0.999, 0.969, 0.969, 0.970, 0.951, 0.992, 0.982, 0.965, 0.987),
}


@dataclass(frozen=True)
class Compression:
    """Cost of a student of Table 4 and of its teacher.

    Ratios are teacher over student, as (parameters, FLOPs).

    Attributes:
        widths: widths of the student.
        teacher, student: cost for the image channels of the data set.
        exact: ratios of these costs.
        paper_style: ratios as the paper seems to have computed them: 5.12M parameters and 56M FLOPs
            of the three-channel teacher, over the student's parameters in units of 1024 and its
            FLOPs rounded to 0.01M.
        printed: ratios that the paper prints.
    """

    widths: tuple[int, int, int]
    teacher: Cost
    student: Cost
    exact: tuple[float, float]
    paper_style: tuple[float, float]
    printed: tuple[float, float]


def table4() -> dict[str, Compression]:
    """Compute the paper's Table 4: data set -> compression."""
    return {name: _compression(student) for name, student in PAPER_STUDENTS.items()}


def _compression(row: PaperStudent) -> Compression:
    teacher = cost(Architecture(row.channels, TEACHER_WIDTHS))
    student = cost(Architecture(row.channels, row.widths))
    return Compression(
        row.widths,
        teacher,
        student,
        exact=(teacher.parameters / student.parameters, teacher.flops / student.flops),
        paper_style=(5120 / (student.parameters / 1024), 56 / round(student.flops / 1e6, 2)),
        printed=(row.parameters_ratio, row.flops_ratio),
    )


def paper_mean(results: dict[str, Any], phase: str) -> float | None:
    """Return the paper's mean AUC over ten classes for a phase of a run.

    Args:
        results: content of the run's results.json.
        phase: "teacher", "step1" or "step2".

    Returns:
        None if the run is not comparable: it lacks the phase, has fewer than ten classes, or has
        another data set or other widths than the paper.
    """
    classes = {member["normal_class"] for member in results["members"]}
    comparable = phase in results["mean_auc"] and len(classes) == 10
    if not comparable or not _is_comparable(results, phase):
        return None
    method = results["config"]["structure"]
    if phase == "teacher":
        method = "teacher"
    elif phase == "step1" and method.startswith("progressive"):
        method = "2"  # P-KDGAN-I
    return PAPER_MEANS[method][results["dataset"]]


def paper_class(results: dict[str, Any], normal_class: int, phase: str) -> float | None:
    """Return the paper's AUC of a class for a phase of a run, printed for some teachers only.

    Args:
        results: content of the run's results.json.
        normal_class: label of the normal class.
        phase: "teacher", "step1" or "step2".

    Returns:
        None if the paper prints no value, or the run has other widths than the paper.
    """
    printed = phase == "teacher" and results["dataset"] in PAPER_CLASSES
    if not printed or not _is_comparable(results, phase):
        return None
    return PAPER_CLASSES[results["dataset"]][normal_class]


def _is_comparable(results: dict[str, Any], phase: str) -> bool:
    """Whether a phase evaluates a network with the paper's widths, on the test split."""
    dataset = results["dataset"]
    on_test_split = results["config"].get("evaluate_on", "test") == "test"
    if dataset not in PAPER_STUDENTS or not on_test_split:
        return False
    if phase == "teacher":
        network, widths = "teacher", TEACHER_WIDTHS
    else:
        network, widths = "student", PAPER_STUDENTS[dataset].widths
    return results["config"][f"{network}_widths"] == "-".join(map(str, widths))
