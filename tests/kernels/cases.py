"""Inputs of the ops, their results, and the table of tolerances."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

# Largest error divided by the largest expected value, computed by the definition in float64.
# Values of 16-bit inputs are float32 and are compared as such; their gradients may err by one unit
# in the last place, because the interpreter truncates where a GPU rounds.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-6,
    torch.bfloat16: 2**-7,
    torch.float16: 2**-10,
}
DTYPES = tuple(TOLERANCE)
FLOAT32_FIRST = [
    torch.float32,
    *(pytest.param(d, marks=pytest.mark.slow) for d in DTYPES if d != torch.float32),
]
FAST_MODE = pytest.mark.parametrize(
    "fast_mode", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["fast", "full"]
)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type in which values of this type are summed."""
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
    """Random inputs: weights for each model, upstream gradients of both signs, none of them 1."""
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
    op, inputs: Inputs, *, reduction: str = "mean", gan=True, features=True, teacher=True
) -> list[Tensor]:
    """Total, terms and the gradients of xh, z1, z2 (and f_fake) for an upstream gradient.

    Without `gan` the terms con, enc and adv are absent, without `features` adv, without `teacher`
    k1, kx and k2.
    """
    features = features and gan
    leaves = [t.detach().clone().requires_grad_() for t in inputs[1:4]]
    if features:
        leaves.append(inputs.f_fake.detach().clone().requires_grad_())
    total, terms = op(
        inputs.x if gan else None,
        *leaves[:3],
        inputs.f_real if features else None,
        leaves[3] if features else None,
        teacher=inputs[6:9] if teacher else None,
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
    """Assert that every result has the expected shape, and a value within its type's tolerance.

    Args:
        results: computed values.
        expected: values in float64.
        dtype: of the inputs.
        roundings: consecutive roundings: of stored intermediate values, and of the result.
    """
    for result, expectation in zip(results, expected, strict=True):
        tolerance = TOLERANCE[result.dtype] * roundings
        assert result.dtype in (dtype, accumulator(dtype))
        assert result.shape == expectation.shape
        error = (result.to(expectation.dtype) - expectation).abs().max()
        assert error <= tolerance * expectation.abs().max(), (error, expectation.abs().max())
