"""Parameters and multiply-adds of a generator, counted as in the paper's Table 4."""

from dataclasses import dataclass

from pkd.models.architecture import Architecture, LayerPlan, decoder_plan, encoder_plan


@dataclass(frozen=True)
class Cost:
    """Cost of one model.

    Attributes:
        parameters: number of weights.
        flops: multiply-adds for one image.
    """

    parameters: int
    flops: int


def cost(architecture: Architecture) -> Cost:
    """Count parameters, and multiply-adds of convolutions plus 2 per normalised element."""
    encoder = encoder_plan(architecture, architecture.latent)
    plans = [*encoder, *decoder_plan(architecture), *encoder]
    return Cost(sum(map(_parameters, plans)), sum(map(_flops, plans)))


def _parameters(plan: LayerPlan) -> int:
    return 16 * plan.inputs * plan.outputs + (2 * plan.outputs if plan.normalised else 0)


def _flops(plan: LayerPlan) -> int:
    # Every element of the smaller map takes part in 16 products for each pair of channels.
    smaller = min(plan.size_in, plan.size_out) ** 2
    normalisation = 2 * plan.outputs * plan.size_out**2 if plan.normalised else 0
    return 16 * plan.inputs * plan.outputs * smaller + normalisation
