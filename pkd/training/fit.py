"""Train all phases of one model on images in memory, without a run folder."""

from dataclasses import replace

import numpy as np
from torch import Tensor

from pkd.models.ganomaly import GAN
from pkd.models.stack import Member
from pkd.training.config import ResolvedConfig
from pkd.training.factory import make_networks, make_trainer
from pkd.training.train_set import TrainSet
from pkd.utils.device import precision


def fit_member(config: ResolvedConfig, images: Tensor, seed: int) -> dict[str, GAN]:
    """Teacher and student after all phases on images (n, C, H, W) uint8."""
    config = replace(config, batch_size=min(config.batch_size, len(images)))
    members = [Member(0, seed)]
    device = config.training_device()
    data = TrainSet(images, np.zeros(len(images), np.int64), members, device=device)
    networks = make_networks(config, members, images.shape[1], device)
    with precision(config.precision, device):
        for phase in config.phases():
            trainer = make_trainer(config, phase, networks, members, data)
            for epoch in range(phase.epochs):
                for _ in trainer.epoch(epoch):
                    pass
            del trainer  # frees moments and graph before the next phase allocates its own
    return networks
