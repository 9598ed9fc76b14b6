"""The fused generator loss against its definition, a NumPy oracle, and edge cases."""

from unittest import mock

import numpy as np
import pytest
import torch
from cases import (
    FAST_MODE,
    FLOAT32_FIRST,
    Inputs,
    Sizes,
    assert_close,
    generator_results,
    make_inputs,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pkd_kernels import dispatch, generator_loss, reference
from torch import Tensor

from bench.profiling import measured

SMALL = Sizes(2, 3, 35, 9, 17)
SIZES = [
    Sizes(1, 1, 1024, 256, 64),
    Sizes(1, 1, 3072, 256, 1024),
    Sizes(2, 2, 3075, 257, 4099),
    Sizes(1, 3, 1, 1, 1),
    Sizes(5, 1, 300, 33, 1),
    SMALL,
]


def expected_results(inputs: Inputs, **kwargs) -> list[Tensor]:
    return generator_results(reference.generator_loss, inputs.to(torch.float64), **kwargs)


@pytest.mark.parametrize("dtype", FLOAT32_FIRST, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "norm"])
@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: "-".join(map(str, s)))
def test_equals_definition(device, sizes, reduction, dtype):
    inputs = make_inputs(sizes, dtype, device)
    results = generator_results(generator_loss, inputs, reduction=reduction)
    assert_close(results, expected_results(inputs, reduction=reduction), dtype)


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(
    sizes=st.builds(
        Sizes,
        st.integers(1, 4),
        st.integers(1, 3),
        st.integers(1, 300),
        st.integers(1, 40),
        st.integers(1, 40),
    ),
    reduction=st.sampled_from(["mean", "norm"]),
)
def test_any_size(sizes, reduction):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs = make_inputs(sizes, torch.float64, device)
    with mock.patch.object(dispatch, "BACKEND", "triton"):
        results = generator_results(generator_loss, inputs, reduction=reduction)
    expected = expected_results(inputs, reduction=reduction)
    assert_close(results, expected, torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "stack"), [(64, 4), (256, 1), (1, 128)])
def test_many_images_many_models(device, batch, stack):
    inputs = make_inputs(Sizes(batch, stack, 5, 3, 2), torch.float32, device)
    results = generator_results(generator_loss, inputs)
    assert_close(results, expected_results(inputs), torch.float32)


@pytest.mark.parametrize("op", [generator_loss, reference.generator_loss])
@pytest.mark.parametrize("wide", [torch.float32, torch.float64], ids=str)
def test_mixed_types_are_summed_in_the_widest(device, op, wide):
    """Each gradient has the type of its input, and the accuracy of that type."""
    narrow = make_inputs(SMALL, torch.float16, device)
    inputs = narrow._replace(f_fake=make_inputs(SMALL, wide, device, seed=1).f_fake)
    results = generator_results(op, inputs._replace(upstream=inputs.upstream.to(wide)))
    total, terms, xh, z1, z2, f_fake = zip(results, expected_results(inputs), strict=True)
    for (result, expected), dtype in (
        *((pair, wide) for pair in (total, terms, f_fake)),
        *((pair, torch.float16) for pair in (xh, z1, z2)),
    ):
        assert result.dtype == dtype
        assert_close([result], [expected], dtype)


@pytest.mark.parametrize("reduction", ["mean", "norm"])
@pytest.mark.parametrize(
    "parts",
    [
        {"teacher": False},
        {"gan": False},
        {"features": False},
        {"features": False, "teacher": False},
    ],
    ids=str,
)
def test_absent_terms(device, parts, reduction):
    inputs = make_inputs(SMALL, torch.float64, device)
    results = generator_results(generator_loss, inputs, reduction=reduction, **parts)
    expected = expected_results(inputs, reduction=reduction, **parts)
    assert_close(results, expected, torch.float64)


def numpy_oracle(i: Inputs, reduction: str) -> tuple[np.ndarray, np.ndarray]:
    """Total (M,) and terms (M, 6) of Eqs. 2-6, image by image.

    Averages of L1 and L2 norms ("norm"), or of mean absolute and squared differences ("mean").
    """
    stack = len(i.upstream)
    rows = Inputs(*(t.double().cpu().numpy() for t in i))

    def of(t: np.ndarray, n: int, m: int) -> np.ndarray:
        flat = t[n].reshape(-1)
        size = flat.size // stack
        return flat[m * size : (m + 1) * size]

    def l1(a, b):
        d = np.abs(a - b)
        return d.sum() if reduction == "norm" else d.mean()

    def l2(a, b):
        d = (a - b) ** 2
        return np.sqrt(d.sum()) if reduction == "norm" else d.mean()

    terms = np.zeros((stack, 6))
    for m in range(stack):
        for n in range(len(rows.x)):
            x, xh, z1, z2, fr, ff, t1, tx, t2 = (of(t, n, m) for t in rows[:9])
            image_terms = (
                l1(x, xh),  # S_con, Eq. 2
                l2(z1, z2),  # S_enc, Eq. 3
                l2(fr, ff),  # S_adv, Eq. 4
                l2(z1, t1),  # K_1, Eq. 6
                l1(xh, tx),  # K_x
                l2(z2, t2),  # K_2
            )
            terms[m] += np.array(image_terms) / len(rows.x)
    return (rows.weights * terms).sum(1), terms


@pytest.mark.parametrize("reduction", ["mean", "norm"])
def test_equals_the_papers_equations(device, reduction):
    inputs = make_inputs(SMALL, torch.float64, device)
    total, terms = numpy_oracle(inputs, reduction)
    results = generator_results(generator_loss, inputs, reduction=reduction)[:2]
    assert_close(results, [torch.tensor(t, device=device) for t in (total, terms)], torch.float64)


@pytest.mark.parametrize("reduction", ["mean", "norm"])
def test_gradient_of_the_papers_equations(device, reduction):
    inputs = make_inputs(Sizes(2, 2, 3, 2, 4), torch.float64, device)
    grads = generator_results(generator_loss, inputs, reduction=reduction)[2:]
    for field, grad in zip((1, 2, 3, 5), grads, strict=True):
        for k in range(grad.numel()):
            ends = []
            for h in (1e-6, -1e-6):
                moved = inputs[field].clone()
                moved.view(-1)[k] += h
                total, _ = numpy_oracle(
                    Inputs(*inputs[:field], moved, *inputs[field + 1 :]), reduction
                )
                ends.append((total * inputs.upstream.cpu().numpy()).sum())
            slope = (ends[0] - ends[1]) / 2e-6
            assert grad.reshape(-1)[k].item() == pytest.approx(slope, rel=1e-6, abs=1e-8)


@FAST_MODE
@pytest.mark.parametrize("reduction", ["mean", "norm"])
def test_gradcheck(device, reduction, fast_mode):
    inputs = make_inputs(Sizes(2, 2, 5, 3, 4), torch.float64, device)

    def total(xh, z1, z2, f_fake):
        return generator_loss(
            inputs.x,
            xh,
            z1,
            z2,
            inputs.f_real,
            f_fake,
            teacher=inputs[6:9],
            weights=inputs.weights,
            reduction=reduction,
            stack=2,
        )[0]

    leaves = [t.requires_grad_() for t in (*inputs[1:4], inputs.f_fake)]
    assert torch.autograd.gradcheck(total, leaves, fast_mode=fast_mode)


@pytest.mark.parametrize("reduction", ["mean", "norm"])
def test_ties_and_zero_norms_have_gradient_zero(device, reduction):
    inputs = make_inputs(SMALL, torch.float32, device)
    same = inputs._replace(
        x=inputs.xh,
        z2=inputs.z1,
        f_real=inputs.f_fake,
        t1=inputs.z1,
        tx=inputs.xh,
        t2=inputs.z1,
    )
    for result in generator_results(generator_loss, same, reduction=reduction):
        assert torch.equal(result, torch.zeros_like(result))


def test_saturated_pixels_have_gradient_zero(device):
    inputs = make_inputs(SMALL, torch.float32, device)
    saturated = inputs._replace(x=inputs.x.sign(), xh=inputs.xh.sign(), tx=inputs.x.sign())
    grad = generator_results(generator_loss, saturated)[2]
    tied = saturated.x == saturated.xh
    assert tied.any()
    assert not tied.all()
    assert torch.equal(grad == 0, tied)


@pytest.mark.parametrize("off", range(6))
def test_weight_zero_reads_no_input_of_its_term(device, off):
    """Inputs that only disabled terms read are NaN."""
    partner = {0: "x", 2: "f_real", 3: "t1", 4: "tx", 5: "t2"}
    inputs = make_inputs(SMALL, torch.float64, device)
    weights = inputs.weights.clone()
    weights[:, off] = 0
    if off == 1:  # z1 and z2 are needed by enc, k1 and k2 alone
        weights[:, [3, 5]] = 0
        poison = ("z1", "z2", "t1", "t2")
    else:
        poison = (partner[off],)
    clean = inputs._replace(weights=weights)
    bad = clean._replace(**{k: torch.full_like(getattr(inputs, k), torch.nan) for k in poison})
    results = generator_results(generator_loss, bad, reduction="norm")
    expected = expected_results(clean, reduction="norm")
    assert_close(results, expected, torch.float64)
    assert not results[1][:, off].any()


def test_weight_zero_for_one_model_only(device):
    inputs = make_inputs(SMALL, torch.float64, device)
    inputs.weights[1, 0] = inputs.weights[2, 4] = 0
    results = generator_results(generator_loss, inputs)
    assert_close(results, expected_results(inputs), torch.float64)


def test_shared_weights(device):
    inputs = make_inputs(SMALL, torch.float64, device)
    shared = inputs._replace(weights=inputs.weights[0])
    repeated = inputs._replace(weights=inputs.weights[:1].expand(3, 6))
    for a, b in zip(
        generator_results(generator_loss, shared),
        generator_results(generator_loss, repeated),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_views_and_expanded_gradients(device):
    inputs = make_inputs(SMALL, torch.float64, device)
    strided = Inputs(
        *(
            torch.stack((t, torch.full_like(t, torch.nan)), -1)[..., 0] if t.dim() > 1 else t
            for t in inputs
        )
    )
    assert not strided.xh.is_contiguous()
    ones = inputs.upstream[:1].expand(3)  # as from total.sum().backward()
    results = generator_results(generator_loss, strided._replace(upstream=ones))
    expected = expected_results(inputs._replace(upstream=ones))
    assert_close(results, expected, torch.float64)


def test_every_output_is_written(device, monkeypatch):
    """Allocated memory is full of NaN."""

    def poisoned(make):
        return lambda *args, **kwargs: make(*args, **kwargs).fill_(torch.nan)

    inputs = make_inputs(SMALL, torch.float32, device)
    expected = expected_results(inputs)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", poisoned(torch.empty))
        patch.setattr(torch, "empty_like", poisoned(torch.empty_like))
        results = generator_results(generator_loss, inputs)
    assert_close(results, expected, torch.float32)


@pytest.mark.parametrize("reduction", ["mean", "norm"])
def test_inputs_are_unchanged_and_runs_are_bitwise_equal(device, reduction):
    inputs = make_inputs(SMALL, torch.float32, device)
    before, versions = [t.clone() for t in inputs], [t._version for t in inputs]
    first = generator_results(generator_loss, inputs, reduction=reduction)
    second = generator_results(generator_loss, inputs, reduction=reduction)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    assert [t._version for t in inputs] == versions


def test_backward_twice_through_a_retained_graph(device):
    inputs = make_inputs(SMALL, torch.float32, device)
    xh = inputs.xh.requires_grad_()
    total, _ = generator_loss(inputs.x, xh, inputs.z1, inputs.z2, weights=inputs.weights, stack=3)
    first = torch.autograd.grad(total, xh, inputs.upstream, retain_graph=True)[0]
    second = torch.autograd.grad(total, xh, inputs.upstream)[0]
    assert torch.equal(first, second)


def test_only_the_total_is_differentiable_once(device):
    inputs = make_inputs(SMALL, torch.float64, device)
    z1 = inputs.z1.requires_grad_()
    total, terms = generator_loss(
        inputs.x, inputs.xh, z1, inputs.z2, weights=inputs.weights, stack=3
    )
    assert total.requires_grad
    assert not terms.requires_grad
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(total.sum(), z1, create_graph=True)


def test_total_supports_in_place_addition(device):
    inputs = make_inputs(SMALL, torch.float32, device)
    xh = inputs.xh.requires_grad_()
    total, terms = generator_loss(
        inputs.x, xh, inputs.z1, inputs.z2, weights=inputs.weights, stack=3
    )
    value = total.detach().clone()
    total += 1
    terms += 1
    assert torch.equal(total.detach(), value + 1)
    total.sum().backward()
    assert xh.grad.any()


def test_invalid_inputs_raise_value_error(device):
    i = make_inputs(SMALL, torch.float32, device)
    arguments = {"weights": i.weights, "stack": 3}
    with pytest.raises(ValueError, match="must not train the teacher"):
        generator_loss(
            i.x, i.xh, i.z1, i.z2, teacher=(i.t1.requires_grad_(), i.tx, i.t2), **arguments
        )
    with pytest.raises(ValueError, match="'mean' or 'norm'"):
        generator_loss(i.x, i.xh, i.z1, i.z2, reduction="sum", **arguments)
    with pytest.raises(ValueError, match="weights have shape"):
        generator_loss(i.x, i.xh, i.z1, i.z2, weights=i.weights[:2], stack=3)
    with pytest.raises(ValueError, match="shapes differ"):
        generator_loss(i.x[:, 1:], i.xh, i.z1, i.z2, **arguments)
    with pytest.raises(ValueError, match="does not fit 3 models"):
        generator_loss(i.x[:, 1:], i.xh[:, 1:], i.z1, i.z2, **arguments)
    with pytest.raises(ValueError, match="must be given together"):
        generator_loss(i.x, i.xh, i.z1, i.z2, i.f_real, **arguments)


@pytest.mark.parametrize(("batch", "forward"), [(1, 1), (3, 2)])
def test_launches(device, batch, forward):
    inputs = make_inputs(SMALL._replace(batch=batch), torch.float32, device)
    xh = inputs.xh.requires_grad_()
    with measured() as traffic:
        total, _ = generator_loss(
            inputs.x, xh, inputs.z1, inputs.z2, weights=inputs.weights, stack=3
        )
        assert len(traffic.launches) == forward, traffic.launches
        torch.autograd.grad(total, xh, inputs.upstream)
        assert len(traffic.launches) == forward + 1, traffic.launches


@pytest.mark.parametrize(("reduction", "latent_reads"), [("mean", 1), ("norm", 2)])
def test_reads_each_input_once_and_writes_each_output_once(device, reduction, latent_reads):
    if device == "cuda":
        pytest.skip("loads are counted in the interpreter")
    inputs = make_inputs(SMALL, torch.float32, device)
    with measured() as traffic:
        generator_results(generator_loss, inputs, reduction=reduction)
    rows = SMALL.batch * SMALL.stack
    image, latent, feature = (rows * size for size in SMALL[2:])
    written = image + 2 * latent + feature
    reads = {
        **dict.fromkeys(("x", "xh", "tx"), image),
        **dict.fromkeys(("z1", "z2", "t1", "t2"), latent_reads * latent),
        **dict.fromkeys(("f_real", "f_fake"), latent_reads * feature),
    }
    for name, count in reads.items():
        assert traffic.loaded[f"generator_loss.{name}_ptr"] == count
    assert traffic.stored["generator_loss.grad_ptr"] == written
    assert traffic.stored["generator_loss.values_ptr"] == 7 * rows
    assert traffic.loaded["scale_gradients.saved_ptr"] == written
    assert traffic.stored["scale_gradients.out_ptr"] == written
