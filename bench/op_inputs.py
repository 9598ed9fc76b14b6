"""Inputs and PyTorch peers of the op benchmarks, in the sizes of the 8-16-64 student."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pkd_kernels import reference, unit_grad
from torch import Tensor

IMAGE, LATENT, FEATURE = 3 * 32 * 32, 256, 64 * 16

SHAPES = ((1, 1), (16, 1), (64, 1), (1, 30), (1, 128))  # (batch size, stacked models)


def plain_generator_loss(
    x: Tensor,
    xh: Tensor,
    z1: Tensor,
    z2: Tensor,
    f_real: Tensor,
    f_fake: Tensor,
    *,
    teacher: tuple[Tensor, Tensor, Tensor],
    weights: Tensor,
    reduction: str = "mean",
    stack: int = 1,
) -> tuple[Tensor, Tensor]:
    """All six terms of the generator loss in the fewest PyTorch operations known to us."""
    t1, tx, t2 = teacher

    def distance(a: Tensor, b: Tensor, elementwise: Callable, order: int) -> Tensor:
        if reduction == "mean" and stack == 1:
            return elementwise(a, b)
        if reduction == "norm":
            rows = (a - b).view(len(a), stack, -1)
            return torch.linalg.vector_norm(rows, order, dim=2).mean(0)
        return elementwise(a, b, reduction="none").view(len(a), stack, -1).mean((0, 2))

    distances = (
        distance(xh, x, F.l1_loss, 1),
        distance(z1, z2, F.mse_loss, 2),
        distance(f_fake, f_real, F.mse_loss, 2),
        distance(z1, t1, F.mse_loss, 2),
        distance(xh, tx, F.l1_loss, 1),
        distance(z2, t2, F.mse_loss, 2),
    )
    terms = torch.stack(distances, -1).view(stack, len(distances))
    return terms @ weights, terms.detach()


def plain_novelty_score(z1: Tensor, z2: Tensor, *, stack: int = 1) -> Tensor:
    """The novelty score in two PyTorch operations."""
    return F.mse_loss(z1, z2, reduction="none").view(len(z1), stack, -1).mean(2)


PLAIN = {
    "generator_loss": plain_generator_loss,
    "discriminator_loss": reference.discriminator_loss,
    "novelty_score": plain_novelty_score,
}


@dataclass
class OpCase:
    """One op with fixed inputs.

    Attributes:
        loss: binds the constant inputs to an op that has the signature of `reference`'s; returns a
            function of the leaves.
        leaves: tensors with gradients.
        grad_output: gradient of the loss; the unit gradient for the losses of a training step.
    """

    loss: Callable[[Callable], Callable[..., Tensor]]
    leaves: list[Tensor]
    grad_output: Tensor

    def forward(self, op: Callable) -> Callable[[], list[Tensor]]:
        """Return a call that computes values only, as in validation."""
        loss = self.loss(op)

        def run() -> list[Tensor]:
            with torch.no_grad():
                return [loss(*self.leaves)]

        return run

    def forward_backward(self, op: Callable) -> Callable[[], list[Tensor]]:
        """Return a call that computes values and gradients, as in a training step."""
        loss = self.loss(op)

        def run() -> list[Tensor]:
            value = loss(*self.leaves)
            return [value.detach(), *torch.autograd.grad(value, self.leaves, self.grad_output)]

        return run


def generator_case(batch: int, stack: int, device: str, reduction: str = "mean") -> OpCase:
    """The generator loss of KDGAN-2, with all six terms."""
    x, xh, tx = (torch.randn(batch, stack * IMAGE, device=device) for _ in range(3))
    z1, z2, t1, t2 = (torch.randn(batch, stack * LATENT, device=device) for _ in range(4))
    real, fake = (torch.randn(batch, stack * FEATURE, device=device) for _ in range(2))
    weights = torch.tensor([10.0, 1, 1, 1, 1, 1], device=device)

    options = {"teacher": (t1, tx, t2), "weights": weights, "reduction": reduction, "stack": stack}

    def loss(op: Callable) -> Callable[..., Tensor]:
        return lambda xh, z1, z2, fake: op(x, xh, z1, z2, real, fake, **options)[0]

    leaves = [t.requires_grad_() for t in (xh, z1, z2, fake)]
    return OpCase(loss, leaves, unit_grad(torch.empty(stack, device=device)))


def discriminator_case(batch: int, stack: int, device: str) -> OpCase:
    """The discriminator loss, with one logit for each image and model."""
    leaves = [torch.randn(batch, stack, device=device).requires_grad_() for _ in range(2)]

    def loss(op: Callable) -> Callable[..., Tensor]:
        return lambda real, fake: op(real, fake, stack=stack)

    return OpCase(loss, leaves, unit_grad(torch.empty(stack, device=device)))


def novelty_case(batch: int, stack: int, device: str) -> OpCase:
    """The novelty scores of a batch."""
    leaves = [torch.randn(batch, stack * LATENT, device=device).requires_grad_() for _ in range(2)]

    def loss(op: Callable) -> Callable[..., Tensor]:
        return lambda z1, z2: op(z1, z2, stack=stack)

    return OpCase(loss, leaves, torch.rand(batch, stack, device=device))


CASES = {
    "generator_loss": generator_case,
    "discriminator_loss": discriminator_case,
    "novelty_score": novelty_case,
}


def network_shapes(stack: int) -> list[tuple[int, ...]]:
    """Shapes of the parameters of M stacked 8-16-64 students for CIFAR-10, with discriminators."""
    widths = (3, 8, 16, 64)
    down = list(zip(widths[1:], widths[:-1], strict=True))
    hidden = [(stack * width,) for width in widths[1:] for _ in ("scale", "shift")]
    encoder = [(stack * out, of, 4, 4) for out, of in down] + hidden
    latent = [(stack * LATENT, widths[-1], 4, 4)]
    decoder = [(stack * LATENT, widths[-1], 4, 4)]
    decoder += [(stack * out, of, 4, 4) for out, of in reversed(down)] + hidden
    classifier = [(stack, widths[-1], 4, 4)]
    return (encoder + latent) + decoder + (encoder + latent) + (encoder + classifier)
