"""Small stacks to train: two tiny networks, three members and random images with a fixed seed."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pytest
import torch
from pkd_kernels import gather
from torch import Tensor

from pkd.models.architecture import Architecture
from pkd.models.ganomaly import GAN
from pkd.models.stack import Member
from pkd.training.structures import KDGAN, STUDENT, TEACHER, Structure
from pkd.training.train_set import TrainSet
from pkd.training.trainer import Trainer

STRUCTURES = {"teacher": TEACHER, "student alone": STUDENT} | {
    f"KDGAN-{k}": v for k, v in KDGAN.items()
}
WIDTHS = {"teacher": (2, 4, 8), "student": (1, 2, 4)}
MEMBERS = (Member(0, 5), Member(3, 1), Member(1, 5))
SIZES = {0: 13, 1: 20, 3: 17}
LOSS_WEIGHTS = (10.0, 1.0, 2.0, 0.5, 1.5, 0.7)
ROWS = torch.tensor([[0, 3, 7], [12, 16, 19], [5, 3, 0]])  # [N, M], with a repeated image

# Rounding in float64 is 1e-16; up to 80 steps of Adam amplify it to about 1e-11.
CLOSE = {"rtol": 0, "atol": 1e-10}

NORMS = pytest.mark.parametrize("norm", ["instance", "batch"])


def each_structure(fast: Collection[str] = STRUCTURES) -> pytest.MarkDecorator:
    """Parametrise a test over all structures; those not in `fast` run in the slow lane."""
    params = [
        pytest.param(structure, id=name, marks=() if name in fast else pytest.mark.slow)
        for name, structure in STRUCTURES.items()
    ]
    return pytest.mark.parametrize("structure", params)


def each_structure_and_norm(fast: Collection[tuple[str, str]]) -> pytest.MarkDecorator:
    """Parametrise a test over structures and norms; pairs not in `fast` run in the slow lane."""
    params = [
        pytest.param(
            structure,
            norm,
            id=f"{name}-{norm}",
            marks=() if (name, norm) in fast else pytest.mark.slow,
        )
        for name, structure in STRUCTURES.items()
        for norm in ("instance", "batch")
    ]
    return pytest.mark.parametrize(("structure", "norm"), params)


def train_set(
    members: Sequence[Member] = MEMBERS, limit: int | None = None, device: str = "cpu"
) -> TrainSet:
    labels = np.random.default_rng(0).permutation(np.repeat(list(SIZES), list(SIZES.values())))
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (len(labels), 1, 32, 32), generator=generator, dtype=torch.uint8)
    return TrainSet(images, labels, members, limit, device)


def make_networks(
    members: Sequence[Member] = MEMBERS, norm: str = "instance", latent: int = 8
) -> dict[str, GAN]:
    return {
        name: GAN(
            Architecture(1, widths, latent, norm),
            [member.initial_seed(role) for member in members],
        )
        for role, (name, widths) in enumerate(WIDTHS.items())
    }


def make_trainer(
    structure: Structure,
    members: Sequence[Member] = MEMBERS,
    *,
    norm: str = "instance",
    networks: dict[str, GAN] | None = None,
    data: TrainSet | None = None,
    **options,
) -> Trainer:
    networks = networks or make_networks(members, norm)
    return Trainer(structure, *networks.values(), members, data or train_set(members), **options)


def train(trainer: Trainer, epochs: int) -> Trainer:
    for epoch in range(epochs):
        for _ in trainer.epoch(epoch):
            pass
    return trainer


def tensors_of(trainer: Trainer) -> dict[str, Tensor]:
    """Copies of the weights and statistics of both networks."""
    return {
        f"{name}.{key}": value.clone()
        for name in WIDTHS
        for key, value in getattr(trainer, name).state_dict().items()
    }


def member_tensors(
    tensors: dict[str, Tensor], member: int, stack: int = len(MEMBERS)
) -> dict[str, Tensor]:
    """One member's share of the `tensors_of` a stack, flattened."""
    return {key: value.view(stack, -1)[member] for key, value in tensors.items()}


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key: value for key, value in tensors.items() if key.startswith(prefix)}


def next_rows(trainer: Trainer, rows: Tensor) -> Trainer:
    """Set the local `rows` (N, M) of the next step, in which every member is active."""
    trainer.order, trainer.counter = rows[None], torch.zeros_like(trainer.counter)
    trainer.rates[0] = trainer.schedule.lr
    return trainer


def batch(data: TrainSet, rows: Tensor) -> Tensor:
    """Images of local `rows` (N, M), scaled as in training."""
    return gather([data.source], rows[None], torch.zeros(1, dtype=torch.int64))[0]


def assert_tensors_close(
    actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], **tolerance: float
) -> None:
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(
            actual[key], value, **(tolerance or CLOSE), msg=lambda m, key=key: f"{key}: {m}"
        )


def assert_tensors_equal(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert [k for k, v in expected.items() if not torch.equal(actual[k], v)] == []
