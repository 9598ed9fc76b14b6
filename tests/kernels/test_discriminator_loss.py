"""The fused discriminator loss against its definition and the cross-entropy, and its edge cases."""

import numpy as np
import pytest
import torch
from cases import DTYPES, FAST_MODE, assert_close
from pkd_kernels import discriminator_loss, reference
from torch import Tensor

from bench.profiling import measured


def logits(shape: tuple[int, ...], dtype: torch.dtype, device: str, scale: float = 4.0):
    generator = torch.Generator().manual_seed(0)
    return [(scale * torch.randn(*shape, generator=generator)).to(device, dtype) for _ in range(2)]


def results(op, real: Tensor, fake: Tensor, stack: int) -> list[Tensor]:
    """Losses and both gradients, with an upstream gradient per model, none of them 1."""
    leaves = [t.detach().clone().requires_grad_() for t in (real, fake)]
    loss = op(*leaves, stack=stack)
    upstream = torch.linspace(-2, 3, stack, dtype=loss.dtype, device=loss.device)
    return [loss.detach(), *torch.autograd.grad(loss, leaves, upstream)]


def expected(real: Tensor, fake: Tensor, stack: int) -> list[Tensor]:
    return results(reference.discriminator_loss, real.double(), fake.double(), stack)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "stack"),
    [((1, 1), 1), ((1, 5), 5), ((7, 6), 3), ((300, 2), 2), ((2, 3, 5, 7), 3), ((256, 1), 1)],
    ids=str,
)
def test_equals_definition(device, shape, stack, dtype):
    pair = logits(shape, dtype, device)
    assert_close(results(discriminator_loss, *pair, stack), expected(*pair, stack), dtype)


def test_equals_cross_entropy_written_out(device):
    real, fake = logits((9, 3), torch.float64, device)
    r, f = (t.cpu().numpy() for t in (real, fake))
    sigmoid = lambda t: 1 / (1 + np.exp(-t))  # noqa: E731
    oracle = -(np.log(sigmoid(r)) + np.log(1 - sigmoid(f))).mean(0)
    loss = discriminator_loss(real, fake, stack=3)
    assert_close([loss], [torch.tensor(oracle, device=device)], torch.float64)


@FAST_MODE
def test_gradcheck(device, fast_mode):
    leaves = [t.requires_grad_() for t in logits((4, 3), torch.float64, device)]
    assert torch.autograd.gradcheck(
        lambda *t: discriminator_loss(*t, stack=3), leaves, fast_mode=fast_mode
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_huge_logits_are_finite_and_right(device, dtype):
    real = torch.tensor([[1e4, -1e4, 0.0, 1e4]], device=device, dtype=dtype)
    fake = torch.tensor([[1e4, -1e4, 0.0, -1e4]], device=device, dtype=dtype)
    actual = results(discriminator_loss, real, fake, 4)
    assert all(t.isfinite().all() for t in actual)
    assert_close(actual, expected(real, fake, 4), dtype)
    assert actual[0][3] == 0


@pytest.mark.parametrize("logit", [0.0, 1e-3, 1.0, 4.0])
def test_small_losses_keep_their_digits(device, logit):
    """log(1 + e) of a small e, whose digits are lost in 1 + e."""
    real = torch.tensor([[logit]], device=device)
    actual = results(discriminator_loss, real, -real, 1)
    assert_close(actual, expected(real, -real, 1), torch.float32)


def test_views_cost_no_copy(device):
    real, fake = (t.T.requires_grad_() for t in logits((3, 5), torch.float32, device))
    assert not real.is_contiguous()
    with measured() as traffic:
        discriminator_loss(real, fake, stack=3)
    assert traffic.launches == ["discriminator_loss"]


def test_mixed_types(device):
    real, fake = logits((5, 6), torch.float64, device)
    real = real.half()
    actual = results(discriminator_loss, real, fake, 3)
    assert [t.dtype for t in actual] == [torch.float64, torch.float16, torch.float64]
    desired = expected(real, fake, 3)
    assert_close(actual[::2], desired[::2], torch.float64)
    assert_close(actual[1:2], desired[1:2], torch.float16)


def test_views(device):
    pair = logits((5, 8), torch.float64, device)
    strided = [t[:, ::2] for t in pair]
    assert not strided[0].is_contiguous()
    assert_close(
        results(discriminator_loss, *strided, 2),
        expected(*(t.contiguous() for t in strided), 2),
        torch.float64,
    )


def test_outputs_are_written_inputs_unchanged_runs_equal(device, monkeypatch):
    pair = logits((5, 6), torch.float32, device)
    before, versions = [t.clone() for t in pair], [t._version for t in pair]
    first = results(discriminator_loss, *pair, 3)
    empty, empty_like = torch.empty, torch.empty_like
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(torch.nan))
        patch.setattr(torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(torch.nan))
        second = results(discriminator_loss, *pair, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(pair, before, strict=True))
    assert [t._version for t in pair] == versions


def test_second_derivative_and_other_shapes_raise(device):
    real, fake = (t.requires_grad_() for t in logits((2, 3), torch.float64, device))
    loss = discriminator_loss(real, fake, stack=3).sum()
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(loss, real, create_graph=True)
    with pytest.raises(ValueError, match="shapes differ"):
        discriminator_loss(real, fake[:1], stack=3)
    with pytest.raises(ValueError, match="does not fit 2 models"):
        discriminator_loss(real, fake, stack=2)


@pytest.mark.parametrize("batch", [1, 20])
def test_one_launch_each_way(device, batch):
    real, fake = (t.requires_grad_() for t in logits((batch, 3), torch.float32, device))
    with measured() as traffic:
        loss = discriminator_loss(real, fake, stack=3)
        assert traffic.launches == ["discriminator_loss"]
        torch.autograd.grad(loss, (real, fake), torch.ones_like(loss))
        assert traffic.launches == ["discriminator_loss", "aten.ones_like", "scale_gradients"]
    if device == "cpu":
        for name in ("real", "fake"):
            assert traffic.loaded[f"discriminator_loss.{name}_ptr"] == real.numel()
        assert traffic.stored["discriminator_loss.grad_ptr"] == 2 * real.numel()
