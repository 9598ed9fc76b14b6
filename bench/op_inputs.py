"""What the benchmarks of the ops compute, in the sizes of the 8-16-64 student; graph capture."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pkd_kernels import reference, unit_grad
from torch import Tensor

IMAGE, LATENT, FEATURE = 3 * 32 * 32, 256, 64 * 16

SHAPES = ((1, 1), (16, 1), (64, 1), (1, 30), (1, 128))  # images, stacked models


def plain_generator_loss(
    x, xh, z1, z2, f_real, f_fake, *, teacher, weights, reduction="mean", stack=1
) -> tuple[Tensor, Tensor]:
    """The six terms in as few of PyTorch's operations as we know, all of them on: the peer."""
    t1, tx, t2 = teacher

    def distance(a: Tensor, b: Tensor, elementwise: Callable, order: int) -> Tensor:
        if reduction == "mean" and stack == 1:
            return elementwise(a, b)
        if reduction == "norm":
            rows = (a - b).view(len(a), stack, -1)
            return torch.linalg.vector_norm(rows, order, dim=2).mean(0)
        return elementwise(a, b, reduction="none").view(len(a), stack, -1).mean((0, 2))

    terms = (
        distance(xh, x, F.l1_loss, 1),
        distance(z1, z2, F.mse_loss, 2),
        distance(f_fake, f_real, F.mse_loss, 2),
        distance(z1, t1, F.mse_loss, 2),
        distance(xh, tx, F.l1_loss, 1),
        distance(z2, t2, F.mse_loss, 2),
    )
    terms = torch.stack(terms, -1).view(stack, len(terms))
    return terms @ weights, terms.detach()


def plain_novelty_score(z1: Tensor, z2: Tensor, *, stack: int = 1) -> Tensor:
    """The novelty score in two operations of PyTorch: the peer."""
    return F.mse_loss(z1, z2, reduction="none").view(len(z1), stack, -1).mean(2)


PLAIN = {
    "generator_loss": plain_generator_loss,
    "discriminator_loss": reference.discriminator_loss,
    "novelty_score": plain_novelty_score,
}


@dataclass
class Problem:
    """One op on given inputs.

    Attributes:
        loss: makes of an op with the signature of `reference`'s the function of the leaves.
        leaves: tensors that it is differentiated in.
        upstream: gradient that arrives at the loss; the unit one for what a step minimises.
    """

    loss: Callable[[Callable], Callable[..., Tensor]]
    leaves: list[Tensor]
    upstream: Tensor

    def forward(self, op: Callable) -> Callable[[], list[Tensor]]:
        """Values alone, as in validation."""
        loss = self.loss(op)

        def run() -> list[Tensor]:
            with torch.no_grad():
                return [loss(*self.leaves)]

        return run

    def forward_backward(self, op: Callable) -> Callable[[], list[Tensor]]:
        """Values and gradients, as in a training step."""
        loss = self.loss(op)

        def run() -> list[Tensor]:
            value = loss(*self.leaves)
            return [value.detach(), *torch.autograd.grad(value, self.leaves, self.upstream)]

        return run


def generator_problem(batch: int, stack: int, device: str, reduction: str = "mean") -> Problem:
    """KDGAN-2's generator loss: all six terms."""
    x, xh, tx = (torch.randn(batch, stack * IMAGE, device=device) for _ in range(3))
    z1, z2, t1, t2 = (torch.randn(batch, stack * LATENT, device=device) for _ in range(4))
    real, fake = (torch.randn(batch, stack * FEATURE, device=device) for _ in range(2))
    weights = torch.tensor([10.0, 1, 1, 1, 1, 1], device=device)

    def loss(op):
        def total(xh, z1, z2, fake):
            return op(
                x,
                xh,
                z1,
                z2,
                real,
                fake,
                teacher=(t1, tx, t2),
                weights=weights,
                reduction=reduction,
                stack=stack,
            )[0]

        return total

    leaves = [t.requires_grad_() for t in (xh, z1, z2, fake)]
    return Problem(loss, leaves, unit_grad(torch.empty(stack, device=device)))


def discriminator_problem(batch: int, stack: int, device: str) -> Problem:
    """One logit an image."""
    leaves = [torch.randn(batch, stack, device=device).requires_grad_() for _ in range(2)]
    loss = lambda op: lambda real, fake: op(real, fake, stack=stack)  # noqa: E731
    return Problem(loss, leaves, unit_grad(torch.empty(stack, device=device)))


def novelty_problem(batch: int, stack: int, device: str) -> Problem:
    """Scores of a batch."""
    leaves = [torch.randn(batch, stack * LATENT, device=device).requires_grad_() for _ in range(2)]
    loss = lambda op: lambda z1, z2: op(z1, z2, stack=stack)  # noqa: E731
    return Problem(loss, leaves, torch.rand(batch, stack, device=device))


PROBLEMS = {
    "generator_loss": generator_problem,
    "discriminator_loss": discriminator_problem,
    "novelty_score": novelty_problem,
}


def network_shapes(stack: int) -> list[tuple[int, ...]]:
    """Parameters of the 8-16-64 student for CIFAR-10, M times, and of its discriminator."""
    widths = (3, 8, 16, 64)
    down = list(zip(widths[1:], widths[:-1], strict=True))
    hidden = [(stack * width,) for width in widths[1:] for _ in ("scale", "shift")]
    encoder = [(stack * out, of, 4, 4) for out, of in down] + hidden
    latent = [(stack * LATENT, widths[-1], 4, 4)]
    decoder = [(stack * LATENT, widths[-1], 4, 4)]
    decoder += [(stack * out, of, 4, 4) for out, of in reversed(down)] + hidden
    classifier = [(stack, widths[-1], 4, 4)]
    return (encoder + latent) + decoder + (encoder + latent) + (encoder + classifier)


def captured(call: Callable[[], list[Tensor]]) -> Callable[[], list[Tensor]]:
    """The call as a CUDA graph; its outputs stay where they are and are overwritten."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            outputs = call()
    finally:
        torch.cuda.set_stream(current)  # a capture that breaks off leaves its own behind

    def replay() -> list[Tensor]:
        graph.replay()
        return outputs

    return replay
