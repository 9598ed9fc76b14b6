"""The distillation structures as data: which of Eq. 7's five losses are on, phase by phase."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Structure:
    """A subset of {L_g^T, L_d^T, L_g^S, L_d^S, K_l}.

    A GAN trains generator and discriminator together, so L_g and L_d of a network are on together.

    Attributes:
        teacher: L_g^T and L_d^T train the teacher; without them it is frozen.
        student: L_g^S and L_d^S train the student.
        distill: K_l trains the student (never the teacher).
    """

    teacher: bool = False
    student: bool = False
    distill: bool = False

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that take part, the frozen teacher included."""
        student = self.student or self.distill
        return ("teacher",) * (self.teacher or self.distill) + ("student",) * student

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the networks whose weights change."""
        student = self.student or self.distill
        return ("teacher",) * self.teacher + ("student",) * student

    @property
    def cached_teacher(self) -> bool:
        """Whether the teacher's outputs are cached: those of a frozen teacher never change."""
        return self.distill and not self.teacher


TEACHER = Structure(teacher=True)  # GANomaly
STUDENT = Structure(student=True)  # GANomaly with the student's widths

KDGAN = {
    1: Structure(distill=True),
    2: Structure(student=True, distill=True),
    3: Structure(teacher=True, distill=True),
    4: Structure(teacher=True, student=True, distill=True),
}

PHASE_NAMES = ("teacher", "step1", "step2")
NETWORKS = ("teacher", "student")

# Value of the setting `structure` -> structures of the phases, in order. The progressive ones are
# Algorithm 1; "student-only" is the student without distillation of the paper's Table 4.
SCHEDULES: dict[str, dict[str, Structure]] = {
    "teacher-only": {"teacher": TEACHER},
    "student-only": {"step1": STUDENT},
    "1": {"teacher": TEACHER, "step1": KDGAN[1]},
    "2": {"teacher": TEACHER, "step1": KDGAN[2]},
    "3": {"teacher": TEACHER, "step1": KDGAN[3]},
    "4": {"teacher": TEACHER, "step1": KDGAN[4]},
    "progressive-23": {"teacher": TEACHER, "step1": KDGAN[2], "step2": KDGAN[3]},
    "progressive-24": {"teacher": TEACHER, "step1": KDGAN[2], "step2": KDGAN[4]},
}


@dataclass(frozen=True)
class Phase:
    """Consecutive epochs with one structure.

    Attributes:
        name: one of `PHASE_NAMES`.
        structure: the losses that are on.
        epochs: epochs of the phase.
        batch_size: images per step and model.
        lr: learning rate.
        max_train_images: only the first of each class are used; None uses all.
        lr_factors: trained network -> factor of the learning rate, where it is not 1.
    """

    name: str
    structure: Structure
    epochs: int
    batch_size: int
    lr: float
    max_train_images: int | None
    lr_factors: dict[str, float] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """Number of the phase, which seeds its data order: 0, 1 or 2, also if phases are absent."""
        return PHASE_NAMES.index(self.name)

    @property
    def network(self) -> str:
        """Name of the network whose AUC this phase reports."""
        return self.structure.trained[-1]
