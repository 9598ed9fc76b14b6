"""What a configuration is made into: the networks of a stack, and the trainer of each phase."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pkd.models.ganomaly import GAN
from pkd.models.stack import Member
from pkd.training.config import TrainConfig
from pkd.training.losses import Objective
from pkd.training.train_set import TrainSet
from pkd.training.trainer import Trainer

NETWORKS = ("teacher", "student")


def make_networks(
    config: TrainConfig, members: Sequence[Member], channels: int, device: torch.device
) -> dict[str, GAN]:
    """Teachers and students of a stack with their first weights, for images of `channels`."""
    return {
        name: GAN(
            config.architecture(name, channels), [member.initial_seed(role) for member in members]
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
