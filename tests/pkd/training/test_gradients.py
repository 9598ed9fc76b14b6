"""Gradients of a training step: which parameters receive which loss, and with which values.

In float64: Adam divides by the size of a gradient, so a gradient near zero turns rounding errors
into steps.
"""

import pytest
import torch
from pkd_kernels import gather
from stack_helpers import (
    LOSS_WEIGHTS,
    MEMBERS,
    ROWS,
    WIDTHS,
    assert_tensors_close,
    each_structure,
    each_structure_and_norm,
    make_trainer,
    next_rows,
    tensors_of,
    train,
    with_prefix,
)
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from pkd.models.ganomaly import GAN, Reconstruction, forward_gans
from pkd.training.losses import Objective, network_losses
from pkd.training.structures import KDGAN, TEACHER, Structure
from pkd.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("double_precision")


def gradients(trainer: Trainer, rows: Tensor) -> dict[str, dict[str, Tensor]]:
    """Gradient of every parameter on local `rows` (N, M), by network; zero where there is none."""
    trainer.set_grads(next_rows(trainer, rows).losses())
    return {
        name: {
            key: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for key, p in getattr(trainer, name).named_parameters()
        }
        for name in WIDTHS
    }


class Loss(nn.Module):
    """Loss of one model as a function of its parameters."""

    def __init__(self, gan: GAN, kind: str, reduction: str):
        super().__init__()
        self.gan, self.kind, self.reduction = gan, kind, reduction

    def forward(self, x: Tensor, *target: Tensor) -> Tensor:
        weights = torch.tensor([LOSS_WEIGHTS])
        (output,) = forward_gans([self.gan], [True], x)
        losses = network_losses(output, x, Reconstruction(*target), weights, self.reduction)
        return getattr(losses, self.kind).sum()


@pytest.mark.parametrize("reduction", ["mean", "norm"])
def test_gradients_of_a_stack_equal_vmap_over_single_models(reduction):
    trainer = make_trainer(KDGAN[2], objective=Objective(LOSS_WEIGHTS, reduction))
    actual = gradients(trainer, ROWS)["student"]
    m = len(MEMBERS)

    def by_model(tensor: Tensor) -> Tensor:  # [N, M*C, ...] to [M, N, C, ...]
        return tensor.view(len(ROWS), m, -1, *tensor.shape[2:]).transpose(0, 1)

    x, *cached = gather(trainer.sources, trainer.order, trainer.counter)
    x, target = by_model(x), [by_model(t) for t in cached]
    target[0], target[2] = (t.reshape(m, len(ROWS), -1) for t in (target[0], target[2]))
    state = {
        f"gan.{k}": p.detach().view(m, p.shape[0] // m, *p.shape[1:])
        for k, p in trainer.student.named_parameters()
    }
    single = GAN(trainer.student.architecture, [0])
    for kind in ("generator", "discriminator"):
        loss = Loss(single, kind, reduction)
        expected = vmap(grad(lambda p, *args, loss=loss: functional_call(loss, p, args)))(
            state, x, *target
        )
        for key, value in expected.items():
            key = key.removeprefix("gan.")
            if key.startswith(kind):
                torch.testing.assert_close(
                    actual[key], value.reshape(actual[key].shape), rtol=1e-8, atol=1e-10
                )
                assert key.endswith("beta") or value.abs().max() > 1e-6, key


@pytest.mark.parametrize("reduction", ["mean", "norm"])
@each_structure()
def test_gradient_of_a_batch_is_the_mean_over_its_images(structure, reduction):
    trainer = make_trainer(structure, objective=Objective(LOSS_WEIGHTS, reduction))
    whole_batch = gradients(trainer, ROWS)
    single = [gradients(trainer, row[None]) for row in ROWS]
    for name in WIDTHS:
        mean = {k: sum(g[name][k] for g in single) / len(ROWS) for k in whole_batch[name]}
        assert_tensors_close(whole_batch[name], mean, rtol=1e-8, atol=1e-10)


def test_gradient_with_batch_normalisation_is_not_the_mean_over_images():
    """Shows that the test above can fail."""
    trainer = make_trainer(KDGAN[2], norm="batch")
    whole_batch = gradients(trainer, ROWS)["student"]
    single = [gradients(trainer, row[None])["student"] for row in ROWS]
    key = "generator.encoder.1.weight"
    assert (whole_batch[key] - sum(g[key] for g in single) / len(ROWS)).abs().max() > 1e-4


def adversarially_trained(structure: Structure) -> list[str]:
    """Networks with the losses L_g and L_d."""
    adversarial = {"teacher": structure.teacher, "student": structure.student}
    return [name for name, on in adversarial.items() if on]


def largest(grads: dict[str, Tensor], part: str) -> float:
    return max(g.abs().max().item() for g in with_prefix(grads, part).values())


@pytest.mark.parametrize("number", KDGAN)
def test_distillation_loss_has_no_gradient_in_the_teacher(number):
    """With K_l alone, the gradient of the teacher's generator is zero, the student's is not."""
    trainer = make_trainer(KDGAN[number], objective=Objective((0, 0, 0, 1, 1, 1)))
    actual = gradients(trainer, ROWS)
    assert largest(actual["teacher"], "generator") == 0
    assert largest(actual["student"], "generator") > 1e-3


@pytest.mark.parametrize("number", [3, 4])
def test_teacher_trained_beside_a_student_equals_teacher_trained_alone(number):
    with_student = tensors_of(train(make_trainer(KDGAN[number], batch_size=2), 2))
    alone = tensors_of(train(make_trainer(TEACHER, batch_size=2), 2))
    assert_tensors_close(with_prefix(with_student, "teacher"), with_prefix(alone, "teacher"))


@pytest.mark.parametrize("structure", [TEACHER, KDGAN[2], KDGAN[4]])
def test_generator_losses_have_no_gradient_in_discriminators(structure):
    """The adversarial term neither, although it is computed through them."""
    adversarial, nothing = (
        gradients(make_trainer(structure, objective=Objective((0, 0, adv, 0, 0, 0))), ROWS)
        for adv in (100.0, 0.0)
    )
    for name in adversarially_trained(structure):
        assert largest(adversarial[name], "generator") > 1e-3
        for key, value in with_prefix(nothing[name], "discriminator").items():
            assert torch.equal(adversarial[name][key], value), key
        assert largest(nothing[name], "discriminator") > 1e-3


@pytest.mark.parametrize("structure", [TEACHER, KDGAN[2], KDGAN[4]])
def test_discriminator_loss_leaves_generators_unchanged(structure):
    """With every generator term off, a step changes the discriminators alone."""
    trainer = make_trainer(structure, objective=Objective((0.0,) * 6))
    before = tensors_of(trainer)
    next_rows(trainer, ROWS).step()
    trained = adversarially_trained(structure)
    for key, value in tensors_of(trainer).items():
        network, part = key.split(".")[:2]
        moves = part == "discriminator" and network in trained
        assert torch.equal(value, before[key]) != moves, key


@each_structure_and_norm(fast={("KDGAN-1", "instance"), ("KDGAN-2", "batch")})
def test_networks_outside_a_structure_stay_bitwise_unchanged(structure, norm):
    """Weights and statistics of a frozen teacher, and a discriminator without a loss."""
    trainer = make_trainer(structure, norm=norm, batch_size=2)
    before = tensors_of(trainer)
    train(trainer, 1)
    after = tensors_of(trainer)
    trained = {
        "teacher.generator": structure.teacher,
        "teacher.discriminator": structure.teacher,
        "student.generator": "student" in structure.trained,
        "student.discriminator": structure.student,
    }
    for key, value in after.items():
        on = trained[".".join(key.split(".")[:2])]
        assert torch.equal(value, before[key]) != on, key
    frozen = [] if structure.teacher else list(trainer.teacher.parameters())
    assert all(p.grad is None for p in frozen)
