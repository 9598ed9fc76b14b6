"""Parameters and multiply-adds of the generators, as the paper's Table 4 counts them."""

from dataclasses import dataclass

from pkd.models.ganomaly import Architecture, LayerPlan, decoder_plan, encoder_plan


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
