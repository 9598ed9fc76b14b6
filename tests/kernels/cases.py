"""Inputs for the ops, runs of them, and the one table of tolerances."""

from typing import NamedTuple

import torch
from torch import Tensor

# Largest error over the largest expected value, the definition in float64 being what is expected.
# Values of 16-bit inputs are float32 and judged as such; their gradients may be wrong by one unit
# in the last place, which the interpreter needs: it truncates where a GPU rounds.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-6,
    torch.bfloat16: 2**-7,
    torch.float16: 2**-10,
}
DTYPES = tuple(TOLERANCE)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type that values of this type are summed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Sizes(NamedTuple):
    batch: int
    stack: int
    image: int
    latent: int
    feature: int


class Inputs(NamedTuple):
    x: Tensor
    xh: Tensor
    z1: Tensor
    z2: Tensor
    f_real: Tensor
    f_fake: Tensor
    t1: Tensor
    tx: Tensor
    t2: Tensor
    weights: Tensor
    upstream: Tensor

    def to(self, *args) -> "Inputs":
        return Inputs(*(t.to(*args) for t in self))


def make_inputs(sizes: Sizes, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> Inputs:
    """Random inputs; weights per model, upstream gradients far from one and of both signs."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    n, m, p, d, f = sizes
    return Inputs(
        *(normal(n, m * p, 1, 1) for _ in range(2)),
        *(normal(n, m * d) for _ in range(2)),
        *(normal(n, m * f, 1, 1) for _ in range(2)),
        normal(n, m * d),
        normal(n, m * p, 1, 1),
        normal(n, m * d),
        (0.5 + torch.rand(m, 6, generator=generator)).to(device, dtype),
        (3 * torch.randn(m, generator=generator)).to(device, accumulator(dtype)),
    )


def generator_results(
    op, inputs: Inputs, *, reduction: str = "mean", own=True, features=True, taught=True
) -> list[Tensor]:
    """Total, terms and the gradients to xh, z1, z2 (and f_fake), u·total going backward."""
    features = features and own
    leaves = [t.detach().clone().requires_grad_() for t in inputs[1:4]]
    if features:
        leaves.append(inputs.f_fake.detach().clone().requires_grad_())
    total, terms = op(
        inputs.x if own else None,
        *leaves[:3],
        inputs.f_real if features else None,
        leaves[3] if features else None,
        teacher=inputs[6:9] if taught else None,
        weights=inputs.weights,
        reduction=reduction,
        stack=len(inputs.upstream),
    )
    grads = torch.autograd.grad(total, leaves, inputs.upstream, allow_unused=True)
    zeros = (torch.zeros_like(t) if g is None else g for g, t in zip(grads, leaves, strict=True))
    return [total.detach(), terms, *zeros]


def assert_close(
    results: list[Tensor], expected: list[Tensor], dtype: torch.dtype, roundings: int = 1
) -> None:
    """Every result within the tolerance of its own type, and of the expectation's shape.

    Args:
        roundings: of values one behind the other: what was stored on the way, and itself.
    """
    for result, expectation in zip(results, expected, strict=True):
        tolerance = TOLERANCE[result.dtype] * roundings
        assert result.dtype in (dtype, accumulator(dtype))
        assert result.shape == expectation.shape
        error = (result.to(expectation.dtype) - expectation).abs().max()
        assert error <= tolerance * expectation.abs().max(), (error, expectation.abs().max())
