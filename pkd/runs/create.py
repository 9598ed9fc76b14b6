"""Whether a run fits the machine's memory, and how many of its models fit a GPU's together."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import torch

from pkd.data.arrays import resize
from pkd.data.dataset import Dataset
from pkd.models.cost import cost
from pkd.models.stack import Member
from pkd.runs.data import class_sizes, load_dataset, members_of
from pkd.runs.folder import RunFolder
from pkd.training.config import OWN_DATA, TrainConfig
from pkd.training.factory import NETWORKS, make_networks, phase_trainer
from pkd.training.train_set import TrainSet
from pkd.utils.device import precision
from pkd.utils.errors import PkdError

# Of the GPU's free memory; the rest is for scoring, libraries and the allocator's gaps.
USABLE_MEMORY = 0.8


def check_memory(config: TrainConfig, dataset: Dataset) -> None:
    """PkdError if not even the weights, gradients and moments of the networks can fit."""
    channels = dataset.train_images.shape[1]
    members = config.seeds * len(class_sizes(config, dataset))
    on_gpu = config.torch_device().type == "cuda"  # where stacks are as small as need be
    stack = min(config.stack or (1 if on_gpu else members), members)
    weights = max(cost(config.architecture(name, channels)).parameters for name in NETWORKS)
    need = 16 * stack * weights  # float32, four times
    if on_gpu:
        have = torch.cuda.mem_get_info()[1]
    else:
        have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > have:
        raise PkdError(
            f"networks of these widths, {stack} in the stack, need {need / 2**30:,.0f} GiB, but "
            f"there are {have / 2**30:,.0f}: choose smaller widths or --latent, fewer classes or "
            "--seeds, or a smaller --stack"
        )


def fitting_stack(config: TrainConfig, dataset: Dataset, members: Sequence[Member]) -> int | None:
    """How many members to train together; None where all of them fit."""
    if config.stack or config.torch_device().type != "cuda" or len(members) == 1:
        return config.stack
    free = torch.cuda.mem_get_info()[0]
    size = largest_stack(
        lambda count: training_memory(config, dataset, members[:count]), int(USABLE_MEMORY * free)
    )
    return size if size < len(members) else None


def training_memory(config: TrainConfig, dataset: Dataset, members: Sequence[Member]) -> int:
    """Bytes of GPU memory that a stack needs, measured in a step of each phase."""
    device, before = config.torch_device(), torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    images = resize(dataset.train_images, config.image_size)
    data = TrainSet(images, dataset.train_labels, members, config.max_train_images, device)
    networks = make_networks(config, members, images.shape[1], device)
    with precision(config.precision, device):
        for number in range(len(config.phases())):
            trainer = phase_trainer(config, number, networks, members, data)
            trainer.begin_epoch(0)
            trainer.step()
            del trainer  # before the next phase's is made
    return torch.cuda.max_memory_allocated() - before


def largest_stack(bytes_of: Callable[[int], int], free: int) -> int:
    """How many models fit into `free` bytes, at least 1.

    Args:
        bytes_of: memory that a stack of so many models needs, measured. What a further one adds
            is taken from stacks of one and two.
    """
    one, two = bytes_of(1), bytes_of(2)
    return 1 + max(0, free - one) // max(1, two - one)


def start(config: TrainConfig, out: Path | None) -> tuple[RunFolder, Dataset]:
    """Check a configuration against its data, then begin a run folder for it."""
    resolved = config.resolved()
    resolved.training_device()
    dataset = load_dataset(resolved)
    config = replace(config, channels=dataset.train_images.shape[1])
    few = min(class_sizes(resolved, dataset).values()) if config.dataset in OWN_DATA else None
    resolved = config.resolved(few)
    check_memory(resolved, dataset)
    members = members_of(resolved, dataset)
    resolved = replace(resolved, stack=fitting_stack(resolved, dataset, members))
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    out = out or Path("runs") / f"{config.dataset}-{stamp}"
    return RunFolder.create(out, resolved.as_dict()), dataset
