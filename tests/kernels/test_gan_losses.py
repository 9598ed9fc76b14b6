"""Both losses of a GAN in one launch: equal to the two ops in every bit, and to the definition."""

import pytest
import torch
from cases import FAST_MODE, FLOAT32_FIRST, Sizes, assert_close, make_inputs
from pkd_kernels import discriminator_loss, gan_losses, generator_loss, reference, unit_grad
from torch import Tensor

from bench.profiling import measured

SIZES = [Sizes(1, 1, 1024, 256, 64), Sizes(1, 3, 35, 9, 17), Sizes(5, 2, 300, 9, 17)]


def logits_of(sizes: Sizes, dtype: torch.dtype, device: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    shape = (sizes.batch, sizes.stack)
    return [3 * torch.randn(shape, generator=generator).to(device, dtype) for _ in range(2)]


def separate(x, xh, z1, z2, f_real, f_fake, real, fake, *, stack, **options):
    total, terms = generator_loss(x, xh, z1, z2, f_real, f_fake, stack=stack, **options)
    return total, discriminator_loss(real, fake, stack=stack), terms


def results(op, sizes: Sizes, dtype: torch.dtype, device: str, **options) -> list[Tensor]:
    """Losses, terms and the gradients of all leaves, for upstream gradients other than 1."""
    inputs = make_inputs(sizes, dtype, device)
    inputs = inputs if op is not reference.gan_losses else inputs.to(torch.float64)
    logits = [t.to(inputs.xh.dtype) for t in logits_of(sizes, dtype, device)]
    leaves = [t.clone().requires_grad_() for t in (*inputs[1:4], inputs.f_fake, *logits)]
    xh, z1, z2, f_fake, real, fake = leaves
    total, d_loss, terms = op(
        *(inputs.x, xh, z1, z2, inputs.f_real, f_fake, real, fake),
        teacher=inputs[6:9],
        weights=inputs.weights,
        stack=sizes.stack,
        **options,
    )
    up = [inputs.upstream, 2 - inputs.upstream]
    grads = torch.autograd.grad([total, d_loss], leaves, up)
    return [total.detach(), d_loss.detach(), terms, *grads]


@pytest.mark.parametrize("dtype", FLOAT32_FIRST, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "norm"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_equals_definition(device, sizes, reduction, dtype):
    actual, expected = (
        results(op, sizes, dtype, device, reduction=reduction)
        for op in (gan_losses, reference.gan_losses)
    )
    assert_close(actual, expected, dtype)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_equals_the_two_ops_in_every_bit(device, sizes):
    one, two = (results(op, sizes, torch.float32, device) for op in (gan_losses, separate))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@FAST_MODE
def test_gradcheck(device, fast_mode):
    sizes = Sizes(2, 2, 5, 3, 4)
    inputs = make_inputs(sizes, torch.float64, device)
    leaves = [*inputs[1:4], inputs.f_fake, *logits_of(sizes, torch.float64, device)]

    def losses(xh, z1, z2, f_fake, real, fake):
        total, d_loss, _ = gan_losses(
            *(inputs.x, xh, z1, z2, inputs.f_real, f_fake, real, fake),
            teacher=inputs[6:9],
            weights=inputs.weights,
            stack=2,
        )
        return total, d_loss

    assert torch.autograd.gradcheck(
        losses, [t.requires_grad_() for t in leaves], fast_mode=fast_mode
    )


@pytest.mark.parametrize(
    ("batch", "launches"), [(1, ["gan_losses"]), (3, ["gan_losses", "aten.mean"])]
)
def test_launches_and_no_copy_in_a_training_step(device, batch, launches):
    """Logits are views; the gradients are those of the forward pass, in one piece of memory."""
    sizes = Sizes(batch, 3, 8, 4, 5)
    inputs = make_inputs(sizes, torch.float32, device)
    buffer = torch.randn(3, 2 * batch, device=device).T.requires_grad_()
    real, fake = buffer[:batch], buffer[batch:]
    z1 = inputs.z1.requires_grad_()
    unit_grad(inputs.upstream)
    with measured() as traffic:
        total, d_loss, _ = gan_losses(
            *(inputs.x, inputs.xh, z1, inputs.z2, inputs.f_real, inputs.f_fake, real, fake),
            teacher=inputs[6:9],
            weights=inputs.weights,
            stack=3,
        )
        ones = [unit_grad(total), unit_grad(d_loss)]
        _, of_real, of_fake = torch.autograd.grad([total, d_loss], [z1, real, fake], ones)
    assert traffic.launches == launches
    assert of_fake.data_ptr() == of_real.data_ptr() + of_real.nbytes


@pytest.mark.parametrize("used", [0, 1], ids=["generator", "discriminator"])
def test_one_of_the_losses_alone(device, used):
    """The leaves of the other loss have no gradient."""
    inputs = make_inputs(SIZES[1], torch.float64, device)
    leaves = [t.requires_grad_() for t in (inputs.xh, *logits_of(SIZES[1], torch.float64, device))]
    losses = gan_losses(
        *(inputs.x, leaves[0], inputs.z1, inputs.z2, inputs.f_real, inputs.f_fake, *leaves[1:]),
        weights=inputs.weights,
        stack=3,
    )
    losses[used].sum().backward()
    assert [t.grad is not None for t in leaves] == [used == 0, used == 1, used == 1]


def test_logits_that_do_not_fit_raise(device):
    inputs = make_inputs(SIZES[1], torch.float32, device)
    real, fake = logits_of(SIZES[1], torch.float32, device)
    arguments = (inputs.x, inputs.xh, inputs.z1, inputs.z2, inputs.f_real, inputs.f_fake)
    with pytest.raises(ValueError, match="shapes differ"):
        gan_losses(*arguments, real, fake[:, :2], weights=inputs.weights, stack=3)
    with pytest.raises(ValueError, match="batch sizes differ"):
        gan_losses(
            *arguments, real.repeat(2, 1), fake.repeat(2, 1), weights=inputs.weights, stack=3
        )
