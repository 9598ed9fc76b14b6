"""The definitions of the ops, against numpy and plain PyTorch in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pkd_kernels import FlatAdam
from pkd_kernels.reference import (
    TERMS,
    adam_prepare,
    adam_step,
    conv_norm_act,
    discriminator_loss,
    generator_loss,
    novelty_parts,
    novelty_score,
)
from torch import nn

STACK = 3
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "norm"])


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


STAGES = {  # transposed, stride, padding, size: every kind of layer in the networks
    "down": (False, 2, 1, 8),
    "to a pixel": (False, 1, 0, 4),
    "from a pixel": (True, 1, 0, 1),
    "up": (True, 2, 1, 4),
}
ACTIVATE = {
    "none": lambda y: y,
    "relu": lambda y: torch.where(y > 0, y, 0),
    "leaky_relu": lambda y: torch.where(y > 0, y, 0.2 * y),
    "tanh": torch.tanh,
}


def by_hand(x, weight, gamma, beta, stack, stage, activation):
    """Model by model and image by image, normalised by BatchNorm in training mode at batch 1."""
    transposed, stride, padding, _ = stage
    convolve = F.conv_transpose2d if transposed else F.conv2d
    images = []
    for image in x.split(1):
        models = []
        for m, part in enumerate(image.chunk(stack, 1)):
            y = convolve(part, weight.chunk(stack)[m], stride=stride, padding=padding)
            if gamma is not None:
                norm = gamma.chunk(stack)[m], beta.chunk(stack)[m]
                y = F.batch_norm(y, None, None, *norm, training=True)
            models.append(ACTIVATE[activation](y))
        images.append(torch.cat(models, 1))
    return torch.cat(images)


def layer_inputs(stage, stack, n=3, inputs=2, outputs=5):
    transposed, _, _, size = stage
    first, second = (inputs, outputs) if transposed else (outputs, inputs)
    x = randn(n, stack * inputs, size, size).requires_grad_()
    weight = randn(stack * first, second, 4, 4, seed=1).requires_grad_()
    gamma = (randn(stack * outputs, seed=2) + 1).requires_grad_()
    beta = randn(stack * outputs, seed=3).requires_grad_()
    return x, weight, gamma, beta


@pytest.mark.parametrize("stack", [1, STACK])
@pytest.mark.parametrize(
    ("name", "normalised"),
    # A single pixel has no variance: it is never normalised.
    [(name, on) for name in STAGES for on in (False, True) if not (on and name == "to a pixel")],
)
def test_a_layer_is_that_of_each_model_and_image_alone(name, normalised, stack):
    transposed, stride, padding, _ = stage = STAGES[name]
    x, weight, gamma, beta = layer_inputs(stage, stack)
    inputs = [x, weight, gamma, beta] if normalised else [x, weight]
    norm = (gamma, beta) if normalised else (None, None)
    for activation in ACTIVATE:
        y = conv_norm_act(
            x,
            weight,
            *norm,
            stack=stack,
            stride=stride,
            padding=padding,
            transposed=transposed,
            activation=activation,
        )
        expected = by_hand(x, weight, *norm, stack, stage, activation)
        upstream = randn(*y.shape, seed=4)
        grads = torch.autograd.grad((y * upstream).sum(), inputs)
        expected_grads = torch.autograd.grad((expected * upstream).sum(), inputs)
        for a, b in zip((y, *grads), (expected, *expected_grads), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("size", [4, 8])
def test_images_shared_by_all_models_are_images_repeated(size):
    stride, padding = (1, 0) if size == 4 else (2, 1)
    x, weight = randn(2, 2, size, size), randn(STACK * 5, 2, 4, 4, seed=1)
    options = {"stack": STACK, "stride": stride, "padding": padding}
    shared = conv_norm_act(x, weight, **options)
    torch.testing.assert_close(shared, conv_norm_act(x.repeat(1, STACK, 1, 1), weight, **options))


def test_layers_take_views_that_are_not_contiguous():
    for stage in STAGES.values():
        transposed, stride, padding, _ = stage
        x, weight, *_ = layer_inputs(stage, STACK)
        view = x.detach().transpose(0, 1).contiguous().transpose(0, 1)
        options = {"stack": STACK, "stride": stride, "padding": padding, "transposed": transposed}
        actual, expected = (conv_norm_act(t, weight, **options) for t in (view, x))
        torch.testing.assert_close(actual, expected)


def test_a_channel_without_variance_is_normalised_to_its_shift():
    """A flat image: the variance is 0, epsilon keeps value and gradient finite."""
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    weight, gamma, beta = randn(2, 1, 4, 4), randn(2, seed=1), randn(2, seed=2)
    y = conv_norm_act(x, weight, gamma, beta)
    torch.testing.assert_close(y, beta[None, :, None, None].expand_as(y))
    (grad,) = torch.autograd.grad((y * randn(*y.shape, seed=3)).sum(), x)
    assert grad.isfinite().all()


# Which two arguments each term compares, and whether by L1 or L2.
PAIRS = {
    "con": ("xh", "x", 1),
    "enc": ("z1", "z2", 2),
    "adv": ("f_fake", "f_real", 2),
    "k1": ("z1", "t1", 2),
    "kx": ("xh", "tx", 1),
    "k2": ("z2", "t2", 2),
}
LEARNING = ("xh", "z1", "z2", "f_fake")
WEIGHTS = np.array([10.0, 1.0, 2.0, 0.5, 1.5, 0.7])
GAN_TERMS, DISTILLED = ("con", "enc", "adv"), ("k1", "kx", "k2")


def loss_inputs(n=3, stack=STACK, latent=5, channels=1, side=3):
    """float64, with ties and zero distances where gradients could go wrong."""
    image, z, f = (n, stack * channels, side, side), (n, stack * latent), (n, stack * 2, 2, 2)
    shapes = {"x": image, "xh": image, "tx": image, "f_real": f, "f_fake": f}
    shapes |= dict.fromkeys(("z1", "z2", "t1", "t2"), z)
    inputs = {k: randn(*shape, seed=i) for i, (k, shape) in enumerate(shapes.items())}
    inputs["xh"].flatten()[::2] = inputs["x"].flatten()[::2]  # ties, one of each kind
    inputs["xh"].flatten()[1::4] = inputs["tx"].flatten()[1::4]
    inputs["t1"][0] = inputs["z1"][0]  # first image: student and teacher agree
    inputs["f_fake"][-1] = inputs["f_real"][-1]
    return inputs


def distance_oracle(a, b, order, reduction, stack):
    """(M,) distances and their gradients to a, in numpy."""
    d = (a - b).reshape(len(a), stack, -1)
    n, size = len(d), d.shape[2]
    if order == 1:
        share = size if reduction == "mean" else 1
        return np.abs(d).sum((0, 2)) / (n * share), np.sign(d) / (n * share)
    if reduction == "mean":
        return (d**2).sum((0, 2)) / (n * size), 2 * d / (n * size)
    norm = np.sqrt((d**2).sum(2, keepdims=True))
    return norm.sum((0, 2)) / n, np.divide(d, norm, np.zeros_like(d), where=norm > 0) / n


def loss_oracle(inputs, weights, upstream, reduction, stack, on=TERMS):
    """Total (M,), terms (M, 6), and gradients of (upstream * total).sum()."""
    arrays = {k: v.detach().numpy() for k, v in inputs.items()}
    weights = np.broadcast_to(weights, (stack, 6))
    terms, grads = np.zeros((stack, 6)), {k: np.zeros(arrays[k].shape) for k in LEARNING}
    for i, term in enumerate(TERMS):
        if term not in on:
            continue
        a, b, order = PAIRS[term]
        value, grad = distance_oracle(arrays[a], arrays[b], order, reduction, stack)
        terms[:, i] = np.where(weights[:, i] != 0, value, 0)
        grad = grad * (upstream * weights[:, i])[:, None]
        grads[a] += grad.reshape(arrays[a].shape)
        if b in LEARNING:
            grads[b] -= grad.reshape(arrays[b].shape)
    return (weights * terms).sum(1), terms, grads


def run_loss(inputs, weights, reduction, stack, on=TERMS):
    gan, distilled = "con" in on, "k1" in on
    return generator_loss(
        inputs["x"] if gan else None,
        *(inputs[k] for k in ("xh", "z1", "z2")),
        *((inputs["f_real"], inputs["f_fake"]) if gan else (None, None)),
        teacher=tuple(inputs[k] for k in ("t1", "tx", "t2")) if distilled else None,
        weights=torch.as_tensor(weights),
        reduction=reduction,
        stack=stack,
    )


def assert_loss_is_the_oracles(inputs, weights, reduction, stack, on=TERMS):
    for k in LEARNING:
        inputs[k].requires_grad_()
    upstream = np.linspace(0.5, 2.0, stack)
    total, terms = run_loss(inputs, weights, reduction, stack, on)
    expected_total, expected_terms, expected = loss_oracle(
        inputs, weights, upstream, reduction, stack, on
    )
    np.testing.assert_allclose(total.detach(), expected_total, rtol=1e-12)
    np.testing.assert_allclose(terms, expected_terms, rtol=1e-12)
    assert not terms.requires_grad
    leaves = [inputs[k] for k in LEARNING]
    grads = torch.autograd.grad(
        (total * torch.from_numpy(upstream)).sum(), leaves, allow_unused=True
    )
    for k, grad in zip(LEARNING, grads, strict=True):
        actual = np.zeros(expected[k].shape) if grad is None else grad.numpy()
        np.testing.assert_allclose(actual, expected[k], rtol=1e-12, atol=1e-15, err_msg=k)


@REDUCTIONS
@pytest.mark.parametrize("on", [TERMS, GAN_TERMS, DISTILLED], ids=["both", "gan", "distilled"])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stack", [1, STACK])
def test_generator_loss_and_its_gradients_against_numpy(reduction, on, n, stack):
    assert_loss_is_the_oracles(loss_inputs(n, stack), WEIGHTS, reduction, stack, on)


@REDUCTIONS
def test_generator_loss_of_single_elements(reduction):
    assert_loss_is_the_oracles(loss_inputs(1, 1, latent=1, side=1), WEIGHTS, reduction, 1)


@REDUCTIONS
def test_weights_may_differ_by_model_and_zero_switches_a_term_off(reduction):
    weights = WEIGHTS * np.array([[1.0], [2.0], [0.5]])
    weights[0, 2] = weights[1, :3] = weights[2, 4] = 0
    assert_loss_is_the_oracles(loss_inputs(), weights, reduction, STACK)


@REDUCTIONS
def test_all_weights_zero_is_no_loss_and_no_gradient(reduction):
    assert_loss_is_the_oracles(loss_inputs(), np.zeros(6), reduction, STACK)


@REDUCTIONS
def test_a_student_equal_to_everything_has_zero_loss_and_gradients_zero_not_nan(reduction):
    inputs = loss_inputs()
    for a, b in (("xh", "x"), ("tx", "x"), ("z2", "z1"), ("t1", "z1"), ("t2", "z1")):
        inputs[a] = inputs[b].clone()
    inputs["f_fake"] = inputs["f_real"].clone()
    for k in LEARNING:
        inputs[k].requires_grad_()
    total, terms = run_loss(inputs, WEIGHTS, reduction, STACK)
    assert (total == 0).all()
    assert (terms == 0).all()
    for grad in torch.autograd.grad(total.sum(), [inputs[k] for k in LEARNING]):
        assert (grad == 0).all()


def test_models_of_a_stack_do_not_share_a_loss():
    inputs = loss_inputs()
    changed = inputs | {"xh": inputs["xh"].clone()}
    changed["xh"][:, 1] += 1
    totals = [run_loss(i, WEIGHTS, "mean", STACK)[0] for i in (inputs, changed)]
    assert (totals[0] == totals[1]).tolist() == [True, False, True]


def test_a_term_that_is_off_hides_values_that_are_not_finite():
    inputs = loss_inputs()
    inputs["f_fake"].fill_(float("nan"))
    inputs["t2"].fill_(float("inf"))
    weights = WEIGHTS * [1, 1, 0, 1, 1, 0]
    total, terms = run_loss(inputs, weights, "mean", STACK)
    assert total.isfinite().all()
    assert (terms[:, [2, 5]] == 0).all()


def test_a_term_that_is_off_gives_no_gradient_even_where_values_are_not_finite():
    """Such a term is not computed; zero times NaN would be NaN."""
    inputs = loss_inputs()
    inputs["f_fake"].fill_(float("nan"))
    inputs["f_fake"].requires_grad_()
    total, _ = run_loss(inputs, WEIGHTS * [1, 1, 0, 1, 1, 1], "mean", STACK)
    (grad,) = torch.autograd.grad(total.sum(), inputs["f_fake"])
    assert (grad == 0).all()


def test_real_features_are_a_constant():
    inputs = loss_inputs()
    for k in ("f_real", "f_fake"):
        inputs[k].requires_grad_()
    total, _ = run_loss(inputs, WEIGHTS, "mean", STACK)
    total.sum().backward()
    assert inputs["f_real"].grad is None
    assert inputs["f_fake"].grad.abs().max() > 0


@pytest.mark.parametrize("name", ["t1", "tx", "t2"])
def test_a_teacher_that_requires_grad_is_refused(name):
    inputs = loss_inputs()
    inputs[name].requires_grad_()
    with pytest.raises(ValueError, match="must not train the teacher"):
        run_loss(inputs, WEIGHTS, "mean", STACK)


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="'sum'"):
        run_loss(loss_inputs(), WEIGHTS, "sum", STACK)


@REDUCTIONS
def test_generator_loss_of_views_and_does_not_write_into_its_inputs(reduction):
    inputs = loss_inputs()
    views = {
        k: v.transpose(0, -1).contiguous().transpose(0, -1).requires_grad_(k in LEARNING)
        for k, v in inputs.items()
    }
    assert not views["z1"].is_contiguous()
    before = {k: v.detach().clone() for k, v in views.items()}
    total, _ = run_loss(views, WEIGHTS, reduction, STACK)
    total.sum().backward()
    torch.testing.assert_close(total, run_loss(inputs, WEIGHTS, reduction, STACK)[0])
    assert all(torch.equal(views[k], before[k]) for k in views)


@pytest.mark.parametrize("shape", [(1, 3), (4, 3), (4, 6, 2, 2)])
def test_discriminator_loss_is_binary_cross_entropy_of_each_model(shape):
    real, fake = (randn(*shape, seed=k).mul(3).requires_grad_() for k in range(2))
    actual = discriminator_loss(real, fake, stack=STACK)
    expected = torch.stack(
        [
            F.binary_cross_entropy_with_logits(r, torch.ones_like(r))
            + F.binary_cross_entropy_with_logits(f, torch.zeros_like(f))
            for r, f in zip(real.chunk(STACK, 1), fake.chunk(STACK, 1), strict=True)
        ]
    )
    torch.testing.assert_close(actual, expected)
    upstream = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    for a, b in zip(
        *(torch.autograd.grad((t * upstream).sum(), [real, fake]) for t in (actual, expected)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("real", "fake", "loss", "slopes"),
    [
        (1e4, -1e4, 0, (0, 0)),
        (-1e4, 1e4, 2e4, (-1, 1)),
        (0, 0, 2 * np.log(2), (-0.5, 0.5)),
    ],
)
def test_discriminator_loss_of_extreme_logits(dtype, real, fake, loss, slopes):
    logits = [torch.full((1, 1), v, dtype=dtype, requires_grad=True) for v in (real, fake)]
    actual = discriminator_loss(*logits)
    assert actual.item() == pytest.approx(loss, rel=1e-6)
    grads = torch.autograd.grad(actual.sum(), logits)
    assert [g.item() for g in grads] == pytest.approx(slopes, abs=1e-7)


def test_novelty_score_against_numpy():
    z1, z2 = randn(4, 15), randn(4, 15, seed=1)
    z2[0, :5] = z1[0, :5]
    expected = ((z1 - z2).numpy().reshape(4, 3, 5) ** 2).mean(2)
    actual = novelty_score(z1, z2, stack=STACK)
    np.testing.assert_allclose(actual, expected, rtol=1e-14)
    assert actual[0, 0] == 0


@pytest.mark.parametrize("shared", [True, False])
def test_novelty_parts_against_numpy(shared):
    z1, z2 = randn(4, 15), randn(4, 15, seed=1)
    x, xh = randn(4, 2 if shared else 6, 4, 4, seed=2), randn(4, 6, 4, 4, seed=3)
    actual = novelty_parts(z1, z2, x, xh, stack=STACK).numpy()
    first, second = (z.numpy().reshape(4, 3, 5) for z in (z1, z2))
    images = np.broadcast_to(x.numpy().reshape(4, -1, 32), (4, 3, 32))
    np.testing.assert_allclose(actual[..., 0], ((first - second) ** 2).mean(2), rtol=1e-14)
    np.testing.assert_allclose(actual[..., 1], (first**2).mean(2), rtol=1e-14)
    errors = np.abs(images - xh.numpy().reshape(4, 3, 32))
    np.testing.assert_allclose(actual[..., 2], errors.mean(2), rtol=1e-14)


SHAPES = [(6, 2, 4, 4), (3,), (9, 1)]  # each M = 3 equal blocks, one of them a single element
BETAS, EPS = (0.5, 0.999), 1e-8


def parameters():
    return [nn.Parameter(randn(*shape, seed=k)) for k, shape in enumerate(SHAPES)]


def flat_adam(lr=0.01):
    return FlatAdam(parameters(), stack=STACK, lr=lr, betas=BETAS, eps=EPS)


def params_of(optimizer):
    return optimizer.param_groups[0]["params"]


def gradient(step):
    """Of all parameters; some are zero, some huge, some tiny."""
    scales = 10.0 ** (randn(3, seed=step).mul(2).clamp(-6, 6))
    grads = [randn(*s, seed=100 * step + k) * scales[k] for k, s in enumerate(SHAPES)]
    grads[0][0] = 0
    return grads


def block(tensor, m):
    return tensor.detach().chunk(STACK)[m]


def test_flat_adam_is_torchs_adam_of_each_model_with_its_own_rate_and_pauses():
    optimizer = flat_adam()
    rates = torch.tensor([0.01, 0.002, 0.1])
    optimizer.param_groups[0]["lr"].copy_(rates)
    alone = []
    for m, lr in enumerate(rates.tolist()):
        params = [nn.Parameter(block(p, m).clone()) for p in params_of(optimizer)]
        alone.append(torch.optim.Adam(params, lr=lr, betas=BETAS, eps=EPS))
    pauses = np.random.default_rng(0).random((200, STACK)) < [0.0, 0.3, 0.7]
    pauses[50] = True
    for step, paused in enumerate(pauses):
        grads = gradient(step)
        optimizer.active.copy_(torch.from_numpy(~paused))
        optimizer.set_grads(grads)
        optimizer.step()
        for m in np.flatnonzero(~paused):
            for p, g in zip(params_of(alone[m]), grads, strict=True):
                p.grad = block(g, m).clone()
            alone[m].step()
    assert optimizer.step_count.tolist() == (~pauses).sum(0).tolist()
    for m in range(STACK):
        for p, single in zip(params_of(optimizer), params_of(alone[m]), strict=True):
            torch.testing.assert_close(block(p, m), single.detach(), rtol=1e-10, atol=1e-12)


def test_an_inactive_model_keeps_everything_bit_for_bit():
    optimizer = flat_adam()
    optimizer.set_grads(gradient(0))
    optimizer.step()

    def state_of_the_second():
        tensors = optimizer.flat, optimizer.exp_avg, optimizer.exp_avg_sq
        pieces = [t.split([p.numel() for p in params_of(optimizer)]) for t in tensors]
        blocks = [block(piece, 1).clone() for split in pieces for piece in split]
        return [*blocks, optimizer.step_count[1].clone()]

    before, others = state_of_the_second(), optimizer.flat.clone()
    optimizer.active[1] = False
    optimizer.set_grads([g.fill_(float("nan")) if g.numel() == 3 else g for g in gradient(1)])
    optimizer.step()
    for a, b in zip(state_of_the_second(), before, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(optimizer.flat, others)
    assert optimizer.step_count.tolist() == [2, 1, 2]


def adam_oracle(param, grad, m, v, step, lr):
    """Algorithm 1 of Kingma and Ba."""
    m[:] = BETAS[0] * m + (1 - BETAS[0]) * grad
    v[:] = BETAS[1] * v + (1 - BETAS[1]) * grad**2
    m_hat, v_hat = m / (1 - BETAS[0] ** step), v / (1 - BETAS[1] ** step)
    param -= lr * m_hat / (np.sqrt(v_hat) + EPS)


@pytest.mark.parametrize("factors", [None, (0.5, 0.5, 2.0), (3.0, 1.0, 3.0)])
@pytest.mark.parametrize("taken", [[0, 5, 0], [2, 2, 2]])
@pytest.mark.parametrize(
    ("rates", "active"),
    [((0.5, 0.25, 0.125), (1, 1, 0)), ((0.5, 0.5, 0.5), (1, 1, 1)), ((0.5, 0.25, 0.5), (1, 0, 1))],
)
def test_adam_step_is_the_published_algorithm(rates, active, taken, factors):
    """Of models that have taken as many steps as others, or not, at the same rate, or not."""
    sizes = (4, 1, 7)
    param, grad = randn(36), randn(36, seed=1)
    exp_avg, exp_avg_sq = torch.zeros_like(param), torch.zeros_like(param)
    step, lr, on = torch.tensor(taken).float(), torch.tensor(rates), torch.tensor(active).bool()
    expected = [t.clone().numpy() for t in (param, grad, exp_avg, exp_avg_sq)]
    model = np.concatenate([np.repeat(range(STACK), size) for size in sizes])
    factor = np.repeat(factors or (1.0, 1.0, 1.0), [STACK * size for size in sizes])
    options = {"sizes": sizes, "betas": BETAS, "eps": EPS, "lr_factors": factors}
    models = step, lr, on, torch.empty(2, STACK)
    for count in range(1, 4):
        adam_prepare(*models, betas=BETAS)
        adam_step(param, grad, exp_avg, exp_avg_sq, *models, **options)
        for k in np.flatnonzero(active):
            parts = [e[model == k] for e in expected]
            adam_oracle(*parts, count + taken[k], rates[k] * factor[model == k])
            for e, part in zip(expected, parts, strict=True):
                e[model == k] = part
    for actual, desired in zip((param, grad, exp_avg, exp_avg_sq), expected, strict=True):
        np.testing.assert_allclose(actual, desired, rtol=1e-12, atol=1e-15)
    assert step.tolist() == [t + 3 * a for t, a in zip(taken, active, strict=True)]


def test_a_zero_gradient_moves_nothing():
    optimizer = flat_adam()
    before = optimizer.flat.clone()
    optimizer.step()
    assert torch.equal(optimizer.flat, before)


def test_parameters_and_gradients_are_views_of_the_flat_buffers():
    values = [p.detach().clone() for p in parameters()]
    optimizer = flat_adam()
    offset = 0
    for p, value in zip(params_of(optimizer), values, strict=True):
        assert torch.equal(p, value)
        for view, flat in ((p, optimizer.flat), (p.grad, optimizer.grad)):
            assert view.data_ptr() == flat[offset:].data_ptr()
        offset += p.numel()
    assert offset == len(optimizer.flat) == len(optimizer.grad)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_keeps_the_views_and_backward_fills_the_flat_buffer(set_to_none):
    optimizer = flat_adam()
    params = params_of(optimizer)
    expected = torch.cat([2 * p.detach().flatten() for p in params])
    for _ in range(2):
        optimizer.zero_grad(set_to_none=set_to_none)
        assert (optimizer.grad == 0).all()
        sum(p.square().sum() for p in params).backward()
        assert torch.equal(optimizer.grad, expected)
    assert params[0].grad.data_ptr() == optimizer.grad.data_ptr()


def test_a_closure_is_evaluated_with_gradients():
    optimizer = flat_adam()
    before = optimizer.flat.clone()

    def closure():
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in params_of(optimizer))
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == pytest.approx(before.square().sum().item())
    assert not torch.equal(optimizer.flat, before)
