"""The novelty score against its definition and Eq. 3, on test sets of any size."""

import numpy as np
import pytest
import torch
from cases import DTYPES, FAST_MODE, assert_close
from pkd_kernels import novelty_score, reference

from bench.profiling import measured


def latents(shape: tuple[int, ...], dtype: torch.dtype, device: str):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator).to(device, dtype) for _ in range(2)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "stack"),
    [((1, 256), 1), ((37, 256), 1), ((9, 3 * 257), 3), ((5, 6), 6), ((2, 4 * 700, 1, 1), 4)],
    ids=str,
)
def test_equals_definition(device, shape, stack, dtype):
    z1, z2 = latents(shape, dtype, device)
    expected = reference.novelty_score(z1.double(), z2.double(), stack=stack)
    assert_close([novelty_score(z1, z2, stack=stack)], [expected], dtype)


def test_ranks_as_the_papers_equation(device):
    z1, z2 = latents((50, 64), torch.float64, device)
    norm = np.linalg.norm(z1.cpu().numpy() - z2.cpu().numpy(), axis=1)
    score = novelty_score(z1, z2)[:, 0].cpu().numpy()
    assert np.array_equal(np.argsort(score), np.argsort(norm))
    np.testing.assert_allclose(score, norm**2 / 64, rtol=1e-12)


@FAST_MODE
def test_gradcheck(device, fast_mode):
    leaves = [t.requires_grad_() for t in latents((3, 2 * 5), torch.float64, device)]
    assert torch.autograd.gradcheck(
        lambda *t: novelty_score(*t, stack=2), leaves, fast_mode=fast_mode
    )


def test_gradients_of_half_precision_do_not_overflow(device):
    z1, z2 = (t.requires_grad_() for t in latents((2, 8), torch.float16, device))
    far = torch.full_like(z1, 6e4).requires_grad_()
    score = novelty_score(far, -far.detach())
    (grad,) = torch.autograd.grad(score, far, torch.full_like(score, 1e-3))
    torch.testing.assert_close(grad, torch.full_like(grad, 30.0))
    pair = (z1, z2.detach().float().requires_grad_())
    grads = torch.autograd.grad(novelty_score(*pair).sum(), pair)
    assert [g.dtype for g in grads] == [torch.float16, torch.float32]


def test_views_inputs_and_repeated_runs(device, monkeypatch):
    pair = [t[:, ::2] for t in latents((7, 24), torch.float32, device)]
    before = [t.clone() for t in pair]
    first = novelty_score(*pair, stack=3)
    empty = torch.empty
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(torch.nan))
        assert torch.equal(novelty_score(*pair, stack=3), first)
    assert_close(
        [first], [reference.novelty_score(*map(torch.Tensor.double, pair), stack=3)], torch.float32
    )
    assert all(torch.equal(a, b) for a, b in zip(pair, before, strict=True))
    assert all(t._version == 0 for t in pair)


def test_one_launch_that_reads_once(device):
    z1, z2 = latents((9, 3 * 20), torch.float32, device)
    with measured() as traffic:
        novelty_score(z1, z2, stack=3)
    assert traffic.launches == ["novelty_score"]
    if device == "cpu":
        assert traffic.loaded == {
            "novelty_score.z1_ptr": z1.numel(),
            "novelty_score.z2_ptr": z2.numel(),
        }
        assert traffic.stored == {"novelty_score.score_ptr": 27}


def test_other_shapes_are_refused(device):
    z1, z2 = latents((2, 6), torch.float32, device)
    with pytest.raises(ValueError, match="shapes differ"):
        novelty_score(z1, z2[:, :3])
