"""What a configuration is made into: the networks of a stack, and the trainer of each phase."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pkd.config import TrainConfig
from pkd.models import GAN
from pkd.trainer import Objective, Trainer
from pkd.training_set import Member, TrainSet

NETWORKS = ("teacher", "student")


def make_networks(
    config: TrainConfig, members: Sequence[Member], channels: int, device: torch.device
) -> dict[str, GAN]:
    """Teachers and students of a stack with their first weights, for images of `channels`."""
    return {
        name: GAN(
            config.architecture(name, channels), [member.first_weights(role) for member in members]
        ).to(device)
        for role, name in enumerate(NETWORKS)
    }


def phase_trainer(
    config: TrainConfig,
    number: int,
    networks: dict[str, GAN],
    members: Sequence[Member],
    data: TrainSet,
    check: Callable[[], None] = lambda: None,
    **options: Any,
) -> Trainer:
    """The trainer of phase `number` of a configuration, at its beginning."""
    phase = config.phases()[number]
    return Trainer(
        phase.structure,
        networks["teacher"],
        networks["student"],
        members,
        data,
        phase=number,
        batch_size=config.batch_size,
        lr=config.lr,
        decay_epochs=phase.epochs if config.lr_schedule == "linear" else math.inf,
        betas=config.betas,
        objective=Objective(config.weights, config.reduction),
        check=check,
        **options,
    )
