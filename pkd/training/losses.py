"""Losses of one network of a stack (Eqs. 2 to 6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pkd_kernels import TERMS, discriminator_loss, generator_loss
from torch import Tensor

from pkd.models.ganomaly import GAN, Reconstruction

# Columns of the loss history of a network.
LOSSES = ("generator", "discriminator", *TERMS)


@dataclass(frozen=True)
class Objective:
    """Weights and reduction of the losses.

    Attributes:
        weights: of con, enc, adv, k1, kx, k2 (Eqs. 5 and 6): six numbers, or six for each member.
        reduction: "mean" or "norm", see `pkd_kernels.generator_loss`.
    """

    weights: Sequence[float] | Sequence[Sequence[float]] = (10.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    reduction: str = "mean"


class NetworkLosses(NamedTuple):
    """Losses of one network for the M members of a stack."""

    generator: Tensor  # (M,) weighted sum that the generator minimises
    discriminator: Tensor | None  # (M,) loss that the discriminator minimises
    terms: Tensor  # (M, 6) unweighted terms, for display


def network_losses(
    gan: GAN,
    x: Tensor,
    target: Reconstruction | None,
    weights: Tensor,
    reduction: str,
    adversarial: bool,
) -> tuple[Reconstruction, NetworkLosses]:
    """Forward pass of one network and its losses.

    Args:
        gan: the network.
        x: (N, M*C, H, W) images in [-1, 1].
        target: outputs of the teacher for K_l; None without distillation.
        weights: (M, 6) weights of the terms.
        reduction: "mean" or "norm".
        adversarial: whether L_g and L_d are on; without them the discriminator does not run.

    Returns:
        The outputs of the generator, and the losses.
    """
    outputs = gan.generator(x)
    scored = gan.discriminator(x, outputs.xh) if adversarial else None
    total, terms = generator_loss(
        x if scored else None,
        outputs.xh,
        outputs.z1,
        outputs.z2,
        # f(x) is a constant for the generator: Eq. 4 has no gradient through the real branch.
        scored.f_real.detach() if scored else None,
        scored.f_fake if scored else None,
        teacher=target,
        weights=weights,
        reduction=reduction,
        stack=gan.stack,
    )
    if scored is None:
        return outputs, NetworkLosses(total, None, terms)
    d_loss = discriminator_loss(scored.logits_real, scored.logits_fake, stack=gan.stack)
    return outputs, NetworkLosses(total, d_loss, terms)
