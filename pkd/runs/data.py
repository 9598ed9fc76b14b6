"""The images of a run, and the members of the stack that its settings make of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pkd.data import folder, npz, standard
from pkd.data.arrays import resize
from pkd.data.dataset import Dataset, hold_out
from pkd.models.stack import Member
from pkd.training.config import OWN_DATA, TrainConfig
from pkd.training.train_set import TrainSet
from pkd.utils.errors import PkdError


def load_dataset(config: TrainConfig) -> Dataset:
    """The data set of a run; PkdError if its files are missing or damaged, or in other colours."""
    name, place = config.dataset, Path(config.data_dir) if config.data_dir else None
    if name in OWN_DATA and place is None:
        what = "a folder with train/good and test" if name == "folder" else "an .npz file"
        raise PkdError(f"--dataset {name} needs --data-dir: {what}")
    if name == "folder":
        dataset = folder.load_folder(place, config.image_size, config.channels, config.skip_bad)
    else:
        dataset = npz.load_npz(place) if name == "npz" else standard.load(name, place)
    channels = dataset.train_images.shape[1]
    if config.channels not in (None, channels):
        raise PkdError(
            f"{name} has images of {channels} channel{'s' * (channels > 1)}, but --channels (or "
            f"config.yaml's) is {config.channels}: convert the images"
        )
    return dataset


def class_sizes(config: TrainConfig, dataset: Dataset) -> dict[int, int]:
    """Images of each normal class to train on: without those held out, and as many as are used.

    Of the user's own data "all" means the classes that have training images.

    Raises:
        PkdError: a class cannot be trained or tested on.
    """
    labels = dataset.train_labels
    every = config.dataset in OWN_DATA and config.normal_class == "all"
    classes = np.unique(labels) if every else parse_classes(config.normal_class, dataset.classes)
    used = labels[~hold_out(labels, config.held_out)]
    sizes = {int(k): int((used == k).sum()) for k in classes}
    for k, size in sizes.items():
        if not (labels == k).any() or not (dataset.test_labels == k).any():
            raise PkdError(f"{config.dataset} has no images of class {k}: choose another class")
        if size == 0:
            raise PkdError(
                f"class {k} {dataset.classes[k]} has {(labels == k).sum()} training images, and "
                f"--held-out {config.held_out} leaves none to train on: it takes at least two"
            )
    return {k: min(size, config.max_train_images or size) for k, size in sizes.items()}


def members_of(config: TrainConfig, dataset: Dataset) -> list[Member]:
    """The stack of a run; PkdError if a class cannot be trained or tested on.

    All classes of seed 0, then all of seed 1, and so on.
    """
    sizes = class_sizes(config, dataset)
    for k, size in sizes.items():
        if config.batch_size > size:
            raise PkdError(
                f"--batch-size {config.batch_size} is larger than class {k} with its {size} "
                f"training images: choose at most {size}"
            )
    if (dataset.test_labels == dataset.test_labels[0]).all():
        raise PkdError(f"the test split of {config.dataset} has only one class: nothing is novel")
    return [Member(k, seed) for seed in range(config.seeds) for k in sizes]


class TrainSplit:
    """A run's training images in the size that is trained on: most to train on, the rest held out.

    Args:
        config: of the run.
        dataset: its images.
    """

    def __init__(self, config: TrainConfig, dataset: Dataset):
        images = resize(dataset.train_images, config.image_size)
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


def parse_classes(text: str, classes: tuple[str, ...]) -> list[int]:
    """Class numbers of "all", "K" or "K,K"; PkdError for one that the data set has not."""
    if text == "all":
        return list(range(len(classes)))
    parts = text.split(",")
    known = ", ".join(f"{k} {name}" for k, name in enumerate(classes))
    for part in parts:
        if not (part.isascii() and part.isdigit() and int(part) < len(classes)):
            raise PkdError(
                f"--normal-class {text!r}: {part!r} is not a class of this data set; "
                f"take 'all' or numbers of: {known}"
            )
    chosen = [int(part) for part in parts]
    if len(set(chosen)) < len(chosen):
        raise PkdError(f"--normal-class {text!r} names a class twice: name it once")
    return chosen
