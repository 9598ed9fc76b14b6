"""`Trainer` reaches the weights of the plain loop, for all structures and for stacks.

In float64: Adam divides a gradient by its size, so it amplifies the rounding of gradients near
zero. Correct float32 weights would therefore drift apart.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pkd_kernels import scale_pixels
from torch import Tensor

from bench.baseline import (
    Outputs,
    PlainGAN,
    PlainLoop,
    PlainNetwork,
    copy_parameters,
    l1,
    l2,
    largest_difference,
    member_parameters,
)
from pkd.models.architecture import Architecture
from pkd.models.ganomaly import GAN
from pkd.models.stack import Member
from pkd.training.losses import Objective
from pkd.training.structures import KDGAN, STUDENT, TEACHER, Structure
from pkd.training.train_set import TrainSet
from pkd.training.trainer import Trainer

# Rounding of float64 is 1e-16; 80 steps of Adam amplified it to at most 5e-12.
TOLERANCE = 1e-10
WEIGHTS = (10.0, 1.0, 2.0, 0.5, 1.5, 0.7)
MEMBERS = (Member(0, 5), Member(3, 1), Member(1, 5))
SIZES = {0: 13, 1: 20, 3: 17}
EPOCHS = 4  # at least 52 steps at batch size 1


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def train_set(members: tuple[Member, ...], channels: int) -> TrainSet:
    labels = np.random.default_rng(0).permutation(np.repeat(list(SIZES), list(SIZES.values())))
    generator = torch.Generator().manual_seed(1)
    shape = (len(labels), channels, 32, 32)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    images[:, :, :4, :4] = 255  # ties: tanh can reach these pixels exactly
    return TrainSet(images, labels, members)


class Pair:
    """The same trainings twice: as a stack in a Trainer, and as plain loops of single members."""

    def __init__(
        self,
        structure: Structure,
        members: tuple[Member, ...] = MEMBERS[:1],
        *,
        channels: int = 1,
        norm: str = "instance",
        norm_first: bool = True,
        batch_size: int = 1,
        reduction: str = "mean",
        plain_norm: str | None = None,
        teacher_lr_factor: float = 1.0,
    ):
        self.members, self.batch_size = members, batch_size
        self.data = train_set(members, channels)
        options = (8, norm, norm_first)
        plain_options = (8, plain_norm or norm, norm_first)
        self.stacked, self.plain = {}, {}
        for role, widths in enumerate([(2, 4, 8), (1, 2, 4)]):
            seeds = [member.initial_seed(role) for member in members]
            stacked = GAN(Architecture(channels, widths, *options), seeds)
            self.stacked[role] = stacked
            for m in range(len(members)):
                plain = PlainGAN(channels, widths, *plain_options)
                copy_parameters(plain, member_parameters(stacked, m, len(members)))
                self.plain[role, m] = plain
        self.before = {k: parameter_vector(v) for k, v in self.plain.items()}
        self.trainer = Trainer(
            structure,
            *self.stacked.values(),
            members,
            self.data,
            batch_size=batch_size,
            objective=Objective(WEIGHTS, reduction),
            lr_factors={"teacher": teacher_lr_factor},
        )

        def network(gan: PlainGAN, adversarial: bool, lr: float, *options: Any) -> PlainNetwork:
            is_teacher = any(gan is self.plain[0, m] for m in range(len(members)))
            factor = teacher_lr_factor if is_teacher else 1.0
            return PlainNetwork(gan, adversarial, factor * lr, *options)

        self.loops = [
            PlainLoop(
                structure,
                self.plain[0, m],
                self.plain[1, m],
                weights=WEIGHTS,
                reduction=reduction,
                network=network,
            )
            for m in range(len(members))
        ]

    def train(self) -> "Pair":
        for epoch in range(EPOCHS):
            for _ in self.trainer.epoch(epoch):
                pass
            for m, (member, loop) in enumerate(zip(self.members, self.loops, strict=True)):
                size, n = self.data.sizes[m], self.batch_size
                order = torch.from_numpy(member.data_order(size, 0, epoch)) + self.data.first[m]
                for step in range(size // n):
                    rows = order[step * n : (step + 1) * n]
                    loop.step(scale_pixels(self.data.images[rows]))
        return self

    def difference(self, role: int, member: int) -> float:
        values = member_parameters(self.stacked[role], member, len(self.members))
        return largest_difference(self.plain[role, member], values)

    def change(self, role: int, member: int) -> float:
        after = parameter_vector(self.plain[role, member])
        return (after - self.before[role, member]).abs().max().item()

    def assert_same(self) -> None:
        for role, member in self.plain:
            assert self.difference(role, member) < TOLERANCE, (role, member)


def parameter_vector(network: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


STRUCTURES = {"teacher": TEACHER, "student alone": STUDENT} | {
    f"KDGAN-{k}": v for k, v in KDGAN.items()
}


SLOW = ("KDGAN-3",)  # its losses are a part of those of KDGAN-4


@pytest.mark.parametrize(
    "structure",
    [
        pytest.param(value, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name, value in STRUCTURES.items()
    ],
)
def test_every_structure_equals_the_plain_loop(structure):
    pair = Pair(structure).train()
    pair.assert_same()
    changed = [pair.change(role, 0) > 0.01 for role in (0, 1)]
    assert changed == [name in structure.trained for name in ("teacher", "student")]


@pytest.mark.parametrize("number", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_member_of_a_stack_equals_a_plain_loop(number):
    """Classes, seeds and class sizes differ, so small classes idle at the end of an epoch."""
    pair = Pair(KDGAN[number], MEMBERS).train()
    pair.assert_same()
    assert all(pair.change(1, m) > 0.01 for m in range(len(MEMBERS)))


def test_instance_norm_is_batch_norm_in_training_mode_at_batch_size_1():
    """GANomaly's published code normalises over the batch; with one image the two are equal."""
    Pair(KDGAN[4], plain_norm="batch").train().assert_same()


@pytest.mark.parametrize("norm", [pytest.param("instance", marks=pytest.mark.slow), "batch"])
def test_batches_of_several_images_equal_the_plain_loop(norm):
    """Real and fake images are normalised separately, per image or per batch."""
    Pair(KDGAN[4], MEMBERS, norm=norm, batch_size=4).train().assert_same()


def test_colour_images_without_first_norm_and_with_the_norm_reduction_equal_the_plain_loop():
    Pair(
        KDGAN[2], MEMBERS[1:], channels=3, norm_first=False, reduction="norm"
    ).train().assert_same()


def test_a_teacher_with_its_own_learning_rate_equals_the_plain_loop():
    """At a tenth of the rate it moves less than the student, and the student follows it."""
    pair = Pair(KDGAN[3], teacher_lr_factor=0.1).train()
    pair.assert_same()
    assert 0.001 < pair.change(0, 0) < 0.5 * pair.change(1, 0)


def test_the_comparison_detects_a_wrong_loss_weight():
    """An error of 0.1 % in one weight exceeds the tolerance by far."""
    pair = Pair(KDGAN[2])
    network = pair.loops[0].student
    network.weights = (*WEIGHTS[:5], WEIGHTS[5] * 1.001)
    pair.train()
    assert pair.difference(1, 0) > 1e4 * TOLERANCE


def test_copying_parameters_of_another_shape_is_an_error():
    stacked = GAN(Architecture(1, (1, 2, 4), 8), [0])
    with pytest.raises(ValueError, match="shape"):
        copy_parameters(PlainGAN(1, (2, 4, 8), 8), member_parameters(stacked, 0, 1))


@pytest.mark.parametrize("reduction", ["mean", "norm"])
def test_distances_against_numpy(reduction):
    a, b = np.random.default_rng(0).normal(size=(2, 3, 2, 5, 5))
    d = (a - b).reshape(3, -1)
    expected = {
        "mean": (np.abs(d).mean(), (d**2).mean()),
        "norm": (np.abs(d).sum(1).mean(), np.sqrt((d**2).sum(1)).mean()),
    }
    tensors = torch.from_numpy(a), torch.from_numpy(b), reduction
    distances = l1(*tensors).item(), l2(*tensors).item()
    assert distances == pytest.approx(expected[reduction], rel=1e-12)


def test_the_plain_discriminator_is_trained_on_reconstructions_from_before_the_generators_update():
    """Its gradient is that of L_d alone, without the gradient of the adversarial loss."""
    loop = Pair(KDGAN[2]).loops[0].student
    x = torch.rand(1, 1, 32, 32) * 2 - 1
    outputs: Outputs = loop.gan.generator(x)
    parameters = list(loop.gan.discriminator.parameters())
    expected = torch.autograd.grad(loop.discriminator_loss(x, outputs.xh.detach()), parameters)
    loop.step(x, outputs)
    for p, grad in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.grad, grad)
