"""Losses of one network of a stack (Eqs. 2 to 6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pkd_kernels import TERMS, gan_losses, generator_loss
from torch import Tensor

from pkd.models.ganomaly import GANOutput, Reconstruction

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


def term_weights(objective: Objective, stack: int) -> tuple[Tensor, Tensor]:
    """Weights (M, 6) of the terms of L_g (Eq. 5) and of K_l (Eq. 6), zero for the other terms."""
    weights = torch.tensor(objective.weights).expand(stack, len(TERMS))
    generator, distillation = weights.clone(), weights.clone()
    generator[:, 3:] = 0
    distillation[:, :3] = 0
    return generator, distillation


class NetworkLosses(NamedTuple):
    """Losses of one network for the M members of a stack."""

    generator: Tensor  # (M,) weighted sum that the generator minimises
    discriminator: Tensor | None  # (M,) loss that the discriminator minimises
    terms: Tensor  # (M, 6) unweighted terms, for display


def network_losses(
    output: GANOutput,
    x: Tensor,
    target: Reconstruction | None,
    weights: Tensor,
    reduction: str,
) -> NetworkLosses:
    """Losses of one network.

    Args:
        output: of the network for x. Without its discriminator's, L_g and L_d are off.
        x: (N, M*C, H, W) images in [-1, 1].
        target: outputs of the teacher for K_l; None without distillation.
        weights: (M, 6) weights of the terms.
        reduction: "mean" or "norm".
    """
    (z1, xh, z2), scored = output
    options: Any = {"weights": weights, "reduction": reduction, "stack": len(weights)}
    if scored is None:
        total, terms = generator_loss(None, xh, z1, z2, teacher=target, **options)
        return NetworkLosses(total, None, terms)
    real, fake, f_real, f_fake = scored
    inputs = (x, xh, z1, z2, f_real, f_fake, real, fake)
    return NetworkLosses(*gan_losses(*inputs, teacher=target, **options))
