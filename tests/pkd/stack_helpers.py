"""Small stacks to train: two tiny networks, three members, images drawn once."""

from collections.abc import Sequence

import numpy as np
import torch
from pkd_kernels import gather
from torch import Tensor

from pkd.models.architecture import Architecture
from pkd.models.ganomaly import GAN
from pkd.models.stack import Member
from pkd.training.structures import KDGAN, TEACHER, Structure
from pkd.training.train_set import TrainSet
from pkd.training.trainer import Trainer

STRUCTURES = {"teacher": TEACHER} | {f"KDGAN-{k}": v for k, v in KDGAN.items()}
WIDTHS = {"teacher": (2, 4, 8), "student": (1, 2, 4)}
MEMBERS = (Member(0, 5), Member(3, 1), Member(1, 5))
SIZES = {0: 13, 1: 20, 3: 17}


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
    """Weights and statistics of both networks, copied."""
    return {
        f"{name}.{key}": value.clone()
        for name in WIDTHS
        for key, value in getattr(trainer, name).state_dict().items()
    }


def member_tensors(
    tensors: dict[str, Tensor], member: int, stack: int = len(MEMBERS)
) -> dict[str, Tensor]:
    """One member's share of `tensors_of` a stack, flattened."""
    return {key: value.view(stack, -1)[member] for key, value in tensors.items()}


def next_rows(trainer: Trainer, rows: Tensor) -> Trainer:
    """Let the next step see local `rows` (N, M), and every member take part in it."""
    trainer.order, trainer.counter = rows[None], torch.zeros_like(trainer.counter)
    trainer.rates[0] = trainer.schedule.lr
    return trainer


def batch(data: TrainSet, rows: Tensor) -> Tensor:
    """Images of local `rows` (N, M) as the members see them."""
    return gather([data.source], rows[None], torch.zeros(1, dtype=torch.int64))[0]


def gradients(trainer: Trainer, rows: Tensor) -> dict[str, dict[str, Tensor]]:
    """Of every parameter on local `rows` (N, M), by network; zero where nothing trains it."""
    trainer.set_grads(next_rows(trainer, rows).losses())
    return {
        name: {
            key: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for key, p in getattr(trainer, name).named_parameters()
        }
        for name in WIDTHS
    }
