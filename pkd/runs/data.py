"""Data of a run: data set, members and split, prepared once from the settings."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pkd.data.arrays import resize
from pkd.data.dataset import Dataset, development_split, hold_out
from pkd.data.folder import load_folder
from pkd.data.npz import load_npz
from pkd.data.standard import load
from pkd.models.stack import Member
from pkd.training.config import OWN_DATA, ResolvedConfig, TrainConfig
from pkd.training.structures import Phase
from pkd.training.train_set import TrainSet
from pkd.utils.errors import ConfigError, DataError


def load_dataset(config: ResolvedConfig) -> Dataset:
    """Load the data set of a run.

    Raises:
        PkdError: its files are missing or damaged, or have another number of channels.
    """
    name, path = config.dataset, Path(config.data_dir) if config.data_dir else None
    if name in OWN_DATA:
        if path is None:
            expected = "a folder with train/good and test" if name == "folder" else "an .npz file"
            raise ConfigError("data_dir", f"is missing: the data set {name!r} needs {expected}")
        if name == "folder":
            dataset = load_folder(path, config.image_size, config.channels, config.skip_bad)
        else:
            dataset = load_npz(path)
    else:
        dataset = load(name, path)
    channels = dataset.train_images.shape[1]
    if config.channels not in (None, channels):
        raise ConfigError(
            "channels",
            f"is {config.channels}, but {name} has images with {channels} "
            f"channel{'s' * (channels > 1)}: convert the images",
        )
    if config.evaluate_on == "test":
        return dataset
    if len(np.unique(dataset.train_labels)) == 1:
        raise ConfigError(
            "evaluate_on",
            "is 'development', but the training images have only one class, so none of them can "
            "stand for novel images: use 'test'",
        )
    return development_split(dataset)


def prepare(
    settings: TrainConfig, load_data: Callable[[ResolvedConfig], Dataset] = load_dataset
) -> tuple[ResolvedConfig, "RunData"]:
    """Resolve the settings of a new run against its data.

    Args:
        settings: of the user.
        load_data: `load_dataset`, or a function that keeps what it has loaded.

    Returns:
        The settings with every value known, except `stack`, and the data.

    Raises:
        PkdError: a setting or the data cannot be used.
    """
    config = settings.resolved()
    config.training_device()
    data = RunData(config, load_data(config))
    config = replace(config, channels=data.channels)
    if config.dataset in OWN_DATA:
        config = replace(config, **settings.lengths(min(data.sizes.values())))
    data.check_batch_sizes(config.phases())
    return config, data


class RunData:
    """Data set, members and split of a run.

    Args:
        config: settings of the run.
        dataset: data set of the run.

    Attributes:
        held_out: (n,) bool, training images that are held out for the threshold.
        sizes: normal class -> images that are not held out, at most `max_train_images`.
        channels: channels of the images.

    Raises:
        ConfigError, DataError: a class cannot be trained or tested on.
    """

    def __init__(self, config: ResolvedConfig, dataset: Dataset):
        self.dataset, self.image_size = dataset, config.image_size
        self.config, self.channels = config, dataset.train_images.shape[1]
        self.held_out = hold_out(dataset.train_labels, config.held_out)
        self.sizes = self._class_sizes(config)
        if (dataset.test_labels == dataset.test_labels[0]).all():
            raise DataError(
                f"the test split of {config.dataset} has only one class, so it has no novel "
                "images: add images of another class"
            )

    @property
    def count(self) -> int:
        """Number of members."""
        return len(self.config.members or ()) or self.config.seeds * len(self.sizes)

    @cached_property
    def members(self) -> list[Member]:
        """The members of the settings, or all classes of seed 0, then of seed 1, ...

        Not built before the memory is checked: a mistyped `seeds` would fill it.
        """
        if self.config.members:
            return [Member(normal_class, seed) for normal_class, seed in self.config.members]
        return [Member(k, seed) for seed in range(self.config.seeds) for k in self.sizes]

    def _class_sizes(self, config: ResolvedConfig) -> dict[int, int]:
        """Images of each normal class to train on: without those held out, up to the limit."""
        labels, test_labels = self.dataset.train_labels, self.dataset.test_labels
        sizes, limit = {}, config.max_train_images
        for k in self._normal_classes(config):
            total, size = (labels == k).sum(), self.available(k)
            if total == 0 or not (test_labels == k).any():
                raise ConfigError(
                    "normal_class",
                    f"{k} has no images in the training or test split of {config.dataset}: choose "
                    "another class",
                )
            if size == 0:
                raise ConfigError(
                    "held_out",
                    f"{config.held_out} leaves none of the {total} training images of class {k} "
                    f"{self.dataset.classes[k]} to train on: a class needs at least two",
                )
            sizes[k] = min(size, limit or size)
        return sizes

    def available(self, label: int) -> int:
        """Images of a class that are not held out."""
        return int(((self.dataset.train_labels == label) & ~self.held_out).sum())

    def _normal_classes(self, config: ResolvedConfig) -> list[int]:
        """Normal classes; of the user's own data "all" means those with training images."""
        names = self.dataset.classes
        parameter, classes = "normal_class", config.normal_class
        if config.members:
            parameter, classes = "members", tuple(dict.fromkeys(k for k, _ in config.members))
        if classes == "all":
            if config.dataset in OWN_DATA:
                return [int(k) for k in np.unique(self.dataset.train_labels)]
            return list(range(len(names)))
        for k in classes:
            if k >= len(names):
                known = ", ".join(f"{number} {name}" for number, name in enumerate(names))
                raise ConfigError(
                    parameter,
                    f"{k} is not a class of this data set: choose 'all' or numbers of: {known}",
                )
        return list(classes)

    def check_batch_sizes(self, phases: Sequence[Phase]) -> None:
        """Raise ConfigError if a class has too few images for one batch of a phase."""
        for phase in phases:
            teacher = phase.name == "teacher" and self.config.teacher_batch_size is not None
            for k in self.sizes:
                available = self.available(k)
                size = min(available, phase.max_train_images or available)
                if phase.batch_size > size:
                    raise ConfigError(
                        "teacher_batch_size" if teacher else "batch_size",
                        f"{phase.batch_size} is larger than class {k} with its {size} training "
                        f"images: choose at most {size}",
                    )

    @cached_property
    def train_images(self) -> Tensor:
        """(n, C, S, S) uint8 training images of all classes, resized."""
        return resize(self.dataset.train_images, self.image_size)

    @cached_property
    def test_images(self) -> Tensor:
        """(n, C, S, S) uint8 test images, resized."""
        return resize(self.dataset.test_images, self.image_size)

    def train_set(
        self, members: Sequence[Member], device: torch.device, limit: int | None
    ) -> TrainSet:
        """Images that some members train on, at most `limit` of each class, on the device."""
        labels = np.where(self.held_out, -1, self.dataset.train_labels)
        return TrainSet(self.train_images, labels, members, limit, device)

    def held_out_images(self, members: Sequence[Member]) -> list[Tensor]:
        """Images (n, C, S, S) uint8 of each member's class that set its threshold.

        In runs from before images were held out they are the images that it was trained on.
        """
        labels, limit = self.dataset.train_labels, None
        selected = self.held_out
        if not selected.any():
            selected, limit = ~selected, self.config.max_train_images
        rows = [np.flatnonzero(selected & (labels == m.normal_class))[:limit] for m in members]
        return [self.train_images[torch.from_numpy(member_rows)] for member_rows in rows]
