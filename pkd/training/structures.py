"""The distillation structures as data: which of Eq. 7's five losses are on."""

from dataclasses import dataclass


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
    def trained(self) -> tuple[str, ...]:
        """Names of the networks whose weights change."""
        student = self.student or self.distill
        return ("teacher",) * self.teacher + ("student",) * student

    @property
    def cached_teacher(self) -> bool:
        """Whether the teacher's outputs are cached: those of a frozen teacher never change."""
        return self.distill and not self.teacher


TEACHER = Structure(teacher=True)

KDGAN = {
    1: Structure(distill=True),
    2: Structure(student=True, distill=True),
    3: Structure(teacher=True, distill=True),
    4: Structure(teacher=True, student=True, distill=True),
}

PHASE_NAMES = ("teacher", "step1", "step2")

# Value of the setting `structure` -> structures of step 1 and, if progressive, of step 2
# (Algorithm 1).
SCHEDULES = {
    "1": (KDGAN[1],),
    "2": (KDGAN[2],),
    "3": (KDGAN[3],),
    "4": (KDGAN[4],),
    "progressive-23": (KDGAN[2], KDGAN[3]),
    "progressive-24": (KDGAN[2], KDGAN[4]),
}
