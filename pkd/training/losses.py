"""TODO."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pkd_kernels import (
    TERMS,
    discriminator_loss,
    generator_loss,
)
from torch import Tensor

from pkd.models.ganomaly import GAN, Reconstruction

LOSSES = ("generator", "discriminator", *TERMS)


@dataclass(frozen=True)
class Objective:
    """Weights and reading of the losses.

    Attributes:
        weights: of con, enc, adv, k1, kx, k2 (Eqs. 5 and 6): six numbers, or six for each member.
        reduction: "mean" or "norm", see `pkd_kernels.generator_loss`.
    """

    weights: Sequence[float] | Sequence[Sequence[float]] = (10.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    reduction: str = "mean"


class NetworkLosses(NamedTuple):
    """Losses of one network of the stack."""

    generator: Tensor  # (M,) what its generator minimises
    discriminator: Tensor | None  # (M,) what its discriminator minimises
    terms: Tensor  # (M, 6) for display


def network_losses(
    gan: GAN, x: Tensor, target: Reconstruction | None, weights: Tensor, reduction: str, own: bool
) -> tuple[Reconstruction, NetworkLosses]:
    """Forward of one network and its losses.

    Args:
        target: the teacher's outputs, for K_l; None without distillation.
        own: whether L_g and L_d are on; without them the discriminator is not run.
    """
    made = gan.generator(x)
    judged = gan.discriminator(x, made.xh) if own else None
    total, terms = generator_loss(
        x if own else None,
        made.xh,
        made.z1,
        made.z2,
        judged.f_real.detach() if own else None,
        judged.f_fake if own else None,
        teacher=target,
        weights=weights,
        reduction=reduction,
        stack=gan.stack,
    )
    d_loss = (
        discriminator_loss(judged.logits_real, judged.logits_fake, stack=gan.stack) if own else None
    )
    return made, NetworkLosses(total, d_loss, terms)
