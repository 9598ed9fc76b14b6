"""torch.compile sees the ops as single operators: one graph, the same numbers."""

import os
import shutil

import pytest
import torch
from cases import Sizes, make_inputs
from pkd_kernels import (
    FlatAdam,
    adam_step,
    discriminator_loss,
    dispatch,
    generator_loss,
    novelty_score,
)

SIZES = Sizes(2, 3, 8, 4, 5)
NEEDS_COMPILER = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler"
)
BACKENDS = ["aot_eager", pytest.param("inductor", marks=NEEDS_COMPILER)]


def losses(x, xh, z1, z2, f_real, f_fake, t1, tx, t2, weights, real, fake):
    xh, z1 = torch.tanh(xh), 2 * z1
    total, terms = generator_loss(
        x, xh, z1, z2, f_real, f_fake, teacher=(t1, tx, t2), weights=weights, stack=3
    )
    d_loss = discriminator_loss(real * 3, fake, stack=3)
    return total * 2, terms, d_loss, novelty_score(z1, z2, stack=3)


def run(function, arguments: list[torch.Tensor]) -> list[torch.Tensor]:
    outputs = function(*arguments)
    leaves = [t for t in arguments if t.requires_grad]
    scalar = sum((o * (i + 2)).sum() for i, o in enumerate(outputs) if o.requires_grad)
    return [*(o.detach() for o in outputs), *torch.autograd.grad(scalar, leaves)]


def test_losses_compile_into_one_graph(device):
    inputs = make_inputs(SIZES, torch.float32, device)
    arguments = [*inputs[:10], *(torch.randn(2, 3, device=device) for _ in range(2))]
    for i in (1, 2, 3, 5, 10, 11):
        arguments[i].requires_grad_()
    expected = run(losses, arguments)
    compiled = run(torch.compile(losses, fullgraph=True, backend="aot_eager"), arguments)
    for a, b in zip(compiled, expected, strict=True):
        assert torch.equal(a, b)


def test_adam_compiles_into_one_graph(device):
    optimizer = FlatAdam([torch.nn.Parameter(torch.randn(3, 4, device=device))], stack=3)
    optimizer.grad.normal_()
    state = [optimizer.flat, optimizer.grad, optimizer.exp_avg, optimizer.exp_avg_sq]
    state += [optimizer.step_count, optimizer.param_groups[0]["lr"], optimizer.active]
    copies = [t.clone() for t in state]

    def step(*tensors):
        adam_step(*tensors, sizes=(4,), betas=(0.5, 0.999), eps=1e-8)
        return tensors[0] * 2

    expected = step(*state)
    got = torch.compile(step, fullgraph=True, backend="aot_eager")(*copies)
    assert torch.equal(got, expected)
    assert all(torch.equal(a, b) for a, b in zip(state, copies, strict=True))


@pytest.fixture(params=["kernel", "definition"])
def path(request, device, monkeypatch) -> str:
    """Device; the kernel runs there or the definition does."""
    if request.param == "definition":
        monkeypatch.setattr(dispatch, "BACKEND", "reference")
    return device


def steps(path: str, backend: str | None, reads: bool) -> list[torch.Tensor]:
    """Three steps of FlatAdam; what the parameters give before and after each, if that is read."""
    torch.manual_seed(0)
    module = torch.nn.Linear(4, 3).to(path)
    optimizer = FlatAdam(module.parameters(), lr=0.1)
    x, *grads = (torch.randn(shape, device=path) for shape in ((5, 4), (3, 4), (3,)))

    def step() -> list[torch.Tensor]:
        before = [module(x)] if reads else []
        optimizer.set_grads(grads)
        optimizer.step()
        return [*before, *([module(x)] if reads else [])]

    if backend:
        step = torch.compile(step, fullgraph=True, backend=backend)
    outputs = [t.detach().clone() for _ in range(3) for t in step()]
    moments = optimizer.exp_avg, optimizer.exp_avg_sq, optimizer.step_count
    return [*outputs, module.weight.detach(), optimizer.flat, *moments]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reads", [False, True])
def test_flat_adam_compiles_into_one_graph(path, backend, reads):
    """Also a graph that reads the parameters, which share the buffer that is written."""
    expected = steps(path, None, reads)
    torch._dynamo.reset()
    for a, b in zip(steps(path, backend, reads), expected, strict=True):
        torch.testing.assert_close(a, b)
