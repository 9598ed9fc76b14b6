"""Networks and trainers of a configuration."""

import math
from collections.abc import Callable, Sequence

import torch

from pkd.models.ganomaly import GAN
from pkd.models.stack import Member
from pkd.training.callbacks import Callback
from pkd.training.config import ResolvedConfig
from pkd.training.losses import Objective
from pkd.training.train_set import TrainSet
from pkd.training.trainer import Trainer

NETWORKS = ("teacher", "student")


def make_networks(
    config: ResolvedConfig, members: Sequence[Member], channels: int, device: torch.device
) -> dict[str, GAN]:
    """Teachers and students of a stack with their initial weights, for images of `channels`."""
    return {
        name: GAN(
            config.architecture(name, channels), [member.initial_seed(role) for member in members]
        ).to(device)
        for role, name in enumerate(NETWORKS)
    }


def make_trainer(
    config: ResolvedConfig,
    number: int,
    networks: dict[str, GAN],
    members: Sequence[Member],
    data: TrainSet,
    callback: Callback | None = None,
    *,
    use_graph: bool = True,
    on_graph_failure: Callable[[str], None] = lambda reason: None,
) -> Trainer:
    """Trainer of phase `number` of a resolved configuration, at the phase's beginning.

    The arguments beside `config` and `number` are those of `Trainer`.
    """
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
        callback=callback,
        use_graph=use_graph,
        on_graph_failure=on_graph_failure,
    )
