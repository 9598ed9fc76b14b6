"""Memory of a run: whether its networks fit, and how many models fit a GPU together."""

import os
from collections.abc import Callable

import torch

from pkd.models.cost import cost
from pkd.runs.data import RunData
from pkd.training.config import ResolvedConfig
from pkd.training.factory import make_networks, make_trainer
from pkd.utils.device import precision
from pkd.utils.errors import ConfigError

# Share of the GPU's free memory; the rest is for scoring, libraries and the allocator's gaps.
USABLE_MEMORY = 0.8


def check_memory(config: ResolvedConfig, members: int, channels: int) -> None:
    """Check that the weights, gradients and moments of the networks fit into memory.

    Args:
        config: settings.
        members: models to train.
        channels: of the images.

    Raises:
        ConfigError: they do not.
    """
    on_gpu = config.torch_device().type == "cuda"  # where `fitting_stack` finds the largest stack
    stack = min(config.stack or (1 if on_gpu else members), members)
    per_model, available = weight_memory(config, channels)
    needed = stack * per_model
    if needed > available:
        raise ConfigError(
            "teacher_widths",
            f"and `student_widths` are too large: {stack} networks in the stack need "
            f"{needed // 2**30:,} GiB, but the device has {available // 2**30:,}: choose "
            "smaller widths or `latent`, fewer classes or `seeds`, or a smaller `stack`",
        )


def weight_memory(config: ResolvedConfig, channels: int) -> tuple[int, int]:
    """Bytes for weights, gradients and moments of a network, and bytes that the device has.

    Args:
        config: settings.
        channels: channels of the images.
    """
    architectures = [config.architecture(name, channels) for name in config.networks]
    weights = max(cost(architecture).parameters for architecture in architectures)
    if config.torch_device().type == "cuda":
        available = torch.cuda.mem_get_info()[1]
    else:
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 16 * weights, available  # float32: weights, gradients and two moments


def fitting_stack(config: ResolvedConfig, data: RunData) -> int | None:
    """Number of members to train together; None if all of them fit."""
    if config.stack or config.torch_device().type != "cuda" or len(data.members) == 1:
        return config.stack
    free = torch.cuda.mem_get_info()[0]
    size = largest_stack(
        lambda count: training_memory(config, data, count), int(USABLE_MEMORY * free)
    )
    return size if size < len(data.members) else None


def training_memory(config: ResolvedConfig, data: RunData, count: int) -> int:
    """Bytes of GPU memory for a stack of `count` members, measured in a step of each phase."""
    device, before = config.torch_device(), torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    members = data.members[:count]
    networks = make_networks(config, members, data.channels, device)
    with precision(config.precision, device):
        for phase in config.trained_phases():
            train_set = data.train_set(members, device, phase.max_train_images)
            trainer = make_trainer(config, phase, networks, members, train_set)
            trainer.begin_epoch(0)
            trainer.step()
            del trainer  # frees its memory before the next phase allocates
    return torch.cuda.max_memory_allocated() - before


def largest_stack(bytes_of: Callable[[int], int], free: int) -> int:
    """Number of models that fit into `free` bytes, at least 1.

    Args:
        bytes_of: measured memory of a stack of so many models. The memory of one further model is
            the difference between stacks of two and one.
        free: bytes.
    """
    one, two = bytes_of(1), bytes_of(2)
    return 1 + max(0, free - one) // max(1, two - one)
