"""A training step's ops captured in a CUDA graph: 100 replays equal eager bit for bit."""

import pytest
import torch
from cases import Sizes, make_inputs
from pkd_kernels import FlatAdam, discriminator_loss, dispatch, generator_loss, unit_grad

from pkd.training.cuda_graph import capture_call


@pytest.mark.gpu
@pytest.mark.parametrize("upstream", [torch.ones_like, unit_grad])
@pytest.mark.parametrize("reduction", ["mean", "norm"])
@pytest.mark.parametrize(
    "sizes", [Sizes(1, 1, 3072, 256, 1024), Sizes(2, 30, 1024, 256, 64)], ids=str
)
def test_replays_equal_eager(monkeypatch, sizes, reduction, upstream):
    monkeypatch.setattr(dispatch, "BACKEND", "triton")
    inputs = make_inputs(sizes, torch.float32, "cuda")
    shape = inputs.xh.shape
    start = torch.randn(sizes.stack * sizes.image, device="cuda")

    def trainer():
        parameter = torch.nn.Parameter(start.clone())
        optimizer = FlatAdam([parameter], stack=sizes.stack, lr=0.01)

        def step():
            xh = torch.tanh(parameter).expand(shape[0], -1).reshape(shape)
            total, terms = generator_loss(
                inputs.x,
                xh,
                inputs.z1,
                inputs.z2,
                inputs.f_real,
                inputs.f_fake,
                teacher=inputs[6:9],
                weights=inputs.weights,
                reduction=reduction,
                stack=sizes.stack,
            )
            d_loss = discriminator_loss(xh, inputs.x, stack=sizes.stack)
            losses = [total, d_loss]
            (grad,) = torch.autograd.grad(losses, parameter, [upstream(t) for t in losses])
            optimizer.set_grads([grad])
            optimizer.step()
            return total.detach(), terms, d_loss.detach()

        return optimizer, step

    eager, eager_step = trainer()
    history = [[t.clone() for t in eager_step()] for _ in range(103)]

    graphed, step = trainer()
    replay = capture_call(step)  # after three steps of warming up
    for expected in history[3:]:
        assert all(torch.equal(a, b) for a, b in zip(replay(), expected, strict=True))
    assert graphed.step_count.tolist() == [103.0] * sizes.stack
    for a, b in (
        (graphed.flat, eager.flat),
        (graphed.exp_avg, eager.exp_avg),
        (graphed.exp_avg_sq, eager.exp_avg_sq),
    ):
        assert torch.equal(a, b)
