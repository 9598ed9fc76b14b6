"""The paper's figures of novelty detection, to stand beside ours (Tables 2 to 4)."""

from dataclasses import dataclass
from typing import Any

from pkd.models.cost import Cost, cost
from pkd.models.ganomaly import Architecture

# Mean AUC of ten classes: the teacher (Table 4), and the students of each structure (Table 3).
PAPER_MEANS = {
    "teacher": {"cifar10": 0.7376, "mnist": 0.9780, "fashion_mnist": 0.9311},
    "1": {"cifar10": 0.7159, "mnist": 0.9670, "fashion_mnist": 0.9248},
    "2": {"cifar10": 0.7243, "mnist": 0.9675, "fashion_mnist": 0.9241},
    "3": {"cifar10": 0.7094, "mnist": 0.9718, "fashion_mnist": 0.9290},
    "4": {"cifar10": 0.7258, "mnist": 0.9687, "fashion_mnist": 0.9242},
    "progressive-23": {"cifar10": 0.7305, "mnist": 0.9725, "fashion_mnist": 0.9293},
    "progressive-24": {"cifar10": 0.7252, "mnist": 0.9667, "fashion_mnist": 0.9257},
}

# Teacher's AUC by class, Table 2; the paper has none for Fashion-MNIST.
PAPER_CLASSES = {
    "cifar10": (0.825, 0.744, 0.703, 0.605, 0.765, 0.652, 0.797, 0.723, 0.827, 0.735),
    "mnist": (0.996, 0.999, 0.969, 0.969, 0.970, 0.951, 0.992, 0.982, 0.965, 0.987),
}


def paper_mean(run: dict[str, Any], phase: str) -> float | None:
    """The paper's mean AUC of ten classes; None where a run is not comparable.

    Comparable is a run of the paper's data set and widths with all ten classes.

    Args:
        run: what its results.json holds.
        phase: one of PHASE_NAMES.
    """
    classes = {member["normal_class"] for member in run["members"]}
    if phase not in run["mean_auc"] or len(classes) < 10 or not _same_widths(run, phase):
        return None
    structure = run["config"]["structure"]
    first_step = phase == "step1" and structure.startswith("progressive")
    method = "teacher" if phase == "teacher" else "2" if first_step else structure
    return PAPER_MEANS[method][run["dataset"]]


def paper_class(run: dict[str, Any], normal_class: int, phase: str) -> float | None:
    """The paper's AUC of a class, printed for some teachers; None where there is none to compare.

    Arguments as of `paper_mean`.
    """
    if phase != "teacher" or run["dataset"] not in PAPER_CLASSES or not _same_widths(run, phase):
        return None
    return PAPER_CLASSES[run["dataset"]][normal_class]


def _same_widths(run: dict[str, Any], phase: str) -> bool:
    """Whether the network that a phase is about has the widths of the paper's."""
    if run["dataset"] not in PAPER_STUDENTS:
        return False
    network = "teacher" if phase == "teacher" else "student"
    widths = {"teacher": TEACHER_WIDTHS, "student": PAPER_STUDENTS[run["dataset"]][1]}[network]
    return run["config"][f"{network}_widths"] == "-".join(map(str, widths))


TEACHER_WIDTHS = (64, 128, 256)

# Data set -> image channels, widths of the paper's student, compression of parameters and FLOPs
# that the paper prints (Table 4).
PAPER_STUDENTS = {
    "cifar10": (3, (8, 16, 64), 6.22, 24.45),
    "mnist": (1, (2, 4, 8), 52.22, 311.11),
    "fashion_mnist": (1, (1, 2, 4), 105.45, 700.0),
}


@dataclass(frozen=True)
class Compression:
    """A student of Table 4 against its teacher; ratios are (parameters, FLOPs).

    Attributes:
        honest: teacher's over student's, both for the data set's own channels.
        paper_style: as the paper seems to have counted: 5.12M and 56M of the three-channel
            teacher, over parameters in units of 1024 and FLOPs rounded to 0.01M.
        printed: what the paper prints.
    """

    widths: tuple[int, int, int]
    teacher: Cost
    student: Cost
    honest: tuple[float, float]
    paper_style: tuple[float, float]
    printed: tuple[float, float]


def table4() -> dict[str, Compression]:
    """The paper's Table 4 by data set."""
    return {name: _compression(*row) for name, row in PAPER_STUDENTS.items()}


def _compression(channels: int, widths: tuple[int, int, int], *printed: float) -> Compression:
    teacher = cost(Architecture(channels, TEACHER_WIDTHS))
    student = cost(Architecture(channels, widths))
    return Compression(
        widths,
        teacher,
        student,
        honest=(teacher.parameters / student.parameters, teacher.flops / student.flops),
        paper_style=(5120 / (student.parameters / 1024), 56 / round(student.flops / 1e6, 2)),
        printed=printed,
    )
