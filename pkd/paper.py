"""The paper's figures of novelty detection, to stand beside ours (Tables 2 to 4)."""

from typing import Any

from pkd.cost import PAPER_STUDENTS, TEACHER_WIDTHS

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
