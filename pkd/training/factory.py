"""Networks and trainers of a configuration."""

import math
from collections.abc import Callable, Sequence

import torch

from pkd.models.ganomaly import GAN
from pkd.models.stack import Member
from pkd.training.callbacks import Callback
from pkd.training.config import ResolvedConfig
from pkd.training.losses import Objective
from pkd.training.structures import NETWORKS, Phase
from pkd.training.train_set import TrainSet
from pkd.training.trainer import Trainer


def make_networks(
    config: ResolvedConfig, members: Sequence[Member], channels: int, device: torch.device
) -> dict[str, GAN]:
    """Teachers and students of a stack with their initial weights, for images of `channels`.

    A network that takes part in no phase is left out.
    """
    seeds = {
        name: [member.initial_seed(role) for member in members]
        for role, name in enumerate(NETWORKS)
    }
    return {
        name: GAN(config.architecture(name, channels), seeds[name]).to(device)
        for name in config.networks
    }


def make_trainer(
    config: ResolvedConfig,
    phase: Phase,
    networks: dict[str, GAN],
    members: Sequence[Member],
    data: TrainSet,
    callback: Callback | None = None,
    *,
    use_graph: bool = True,
    on_graph_failure: Callable[[str], None] = lambda reason: None,
) -> Trainer:
    """Trainer of a phase of a resolved configuration, at the phase's beginning.

    The arguments beside `config` and `phase` are those of `Trainer`.
    """
    return Trainer(
        phase.structure,
        networks.get("teacher"),
        networks.get("student"),
        members,
        data,
        phase=phase.number,
        batch_size=phase.batch_size,
        lr=phase.lr,
        lr_factors=phase.lr_factors,
        decay_epochs=phase.epochs if config.lr_schedule == "linear" else math.inf,
        betas=config.betas,
        objective=Objective(config.weights, config.reduction),
        callback=callback,
        use_graph=use_graph,
        on_graph_failure=on_graph_failure,
    )
