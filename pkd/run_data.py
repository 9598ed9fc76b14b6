"""The images of a run, and the members of the stack that its settings make of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pkd import datasets, own_data
from pkd.config import OWN_DATA, TrainConfig, parse_classes
from pkd.errors import UserError
from pkd.thresholds import hold_out
from pkd.training_set import Member, TrainSet


def load_dataset(config: TrainConfig) -> datasets.Dataset:
    """The data set of a run; UserError if its files are missing or damaged, or in other colours."""
    name, place = config.dataset, Path(config.data_dir) if config.data_dir else None
    if name in OWN_DATA and place is None:
        what = "a folder with train/good and test" if name == "folder" else "an .npz file"
        raise UserError(f"--dataset {name} needs --data-dir: {what}")
    if name == "folder":
        dataset = own_data.load_folder(place, config.image_size, config.channels, config.skip_bad)
    else:
        dataset = own_data.load_npz(place) if name == "npz" else datasets.load(name, place)
    channels = dataset.train_images.shape[1]
    if config.channels not in (None, channels):
        raise UserError(
            f"{name} has images of {channels} channel{'s' * (channels > 1)}, but --channels (or "
            f"config.yaml's) is {config.channels}: convert the images"
        )
    return dataset


def class_sizes(config: TrainConfig, dataset: datasets.Dataset) -> dict[int, int]:
    """Images of each normal class to train on: without those held out, and as many as are used.

    Of the user's own data "all" means the classes that have training images.

    Raises:
        UserError: a class cannot be trained or tested on.
    """
    labels = dataset.train_labels
    every = config.dataset in OWN_DATA and config.normal_class == "all"
    classes = np.unique(labels) if every else parse_classes(config.normal_class, dataset.classes)
    used = labels[~hold_out(labels, config.held_out)]
    sizes = {int(k): int((used == k).sum()) for k in classes}
    for k, size in sizes.items():
        if not (labels == k).any() or not (dataset.test_labels == k).any():
            raise UserError(f"{config.dataset} has no images of class {k}: choose another class")
        if size == 0:
            raise UserError(
                f"class {k} {dataset.classes[k]} has {(labels == k).sum()} training images, and "
                f"--held-out {config.held_out} leaves none to train on: it takes at least two"
            )
    return {k: min(size, config.max_train_images or size) for k, size in sizes.items()}


def members_of(config: TrainConfig, dataset: datasets.Dataset) -> list[Member]:
    """The stack of a run; UserError if a class cannot be trained or tested on.

    All classes of seed 0, then all of seed 1, and so on.
    """
    sizes = class_sizes(config, dataset)
    for k, size in sizes.items():
        if config.batch_size > size:
            raise UserError(
                f"--batch-size {config.batch_size} is larger than class {k} with its {size} "
                f"training images: choose at most {size}"
            )
    if (dataset.test_labels == dataset.test_labels[0]).all():
        raise UserError(f"the test split of {config.dataset} has only one class: nothing is novel")
    return [Member(k, seed) for seed in range(config.seeds) for k in sizes]


class TrainSplit:
    """A run's training images in the size that is trained on: most to train on, the rest held out.

    Args:
        config: of the run.
        dataset: its images.
    """

    def __init__(self, config: TrainConfig, dataset: datasets.Dataset):
        images = datasets.resize(dataset.train_images, config.image_size)
        labels, self.limit = dataset.train_labels, config.max_train_images
        held = hold_out(labels, config.held_out)
        self.used, self.held = ((images[rows], labels[rows]) for rows in (~held, held))

    def train_set(self, members: Sequence[Member], device: torch.device) -> TrainSet:
        """What some members train on."""
        return TrainSet(*self.used, members, self.limit, device)

    def held_out(self, members: Sequence[Member]) -> list[Tensor]:
        """Each member's held-out images (n, C, H, W) uint8."""
        images, labels = self.held
        return [images[labels == member.normal_class] for member in members]
