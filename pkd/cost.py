"""Parameters and multiply-adds of the generators, as the paper's Table 4 counts them."""

from dataclasses import dataclass

from pkd.models import Architecture, LayerPlan, decoder_plan, encoder_plan

TEACHER_WIDTHS = (64, 128, 256)
# Data set -> image channels, widths of the paper's student, compression of parameters and FLOPs
# that the paper prints (Table 4).
PAPER_STUDENTS = {
    "cifar10": (3, (8, 16, 64), 6.22, 24.45),
    "mnist": (1, (2, 4, 8), 52.22, 311.11),
    "fashion_mnist": (1, (1, 2, 4), 105.45, 700.0),
}


@dataclass(frozen=True)
class Cost:
    """Cost of one model: numbers of weights, and multiply-adds for one image."""

    parameters: int
    flops: int


def cost(architecture: Architecture) -> Cost:
    """Generator of one model: multiply-adds of convolutions plus 2 per normalised element."""
    encoder = encoder_plan(architecture, architecture.latent)
    plans = [*encoder, *decoder_plan(architecture), *encoder]
    return Cost(sum(map(_parameters, plans)), sum(map(_flops, plans)))


def _parameters(plan: LayerPlan) -> int:
    return 16 * plan.inputs * plan.outputs + (2 * plan.outputs if plan.normalised else 0)


def _flops(plan: LayerPlan) -> int:
    # Every element of the smaller map meets all 16 taps of all channels on the other side.
    smaller = min(plan.size_in, plan.size_out) ** 2
    normalisation = 2 * plan.outputs * plan.size_out**2 if plan.normalised else 0
    return 16 * plan.inputs * plan.outputs * smaller + normalisation


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
