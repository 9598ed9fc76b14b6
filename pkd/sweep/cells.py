"""Cells of a sweep: the combinations of its settings, each with all classes and seeds."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from pkd.data.dataset import Dataset
from pkd.models.stack import Member
from pkd.runs.data import RunData, load_dataset, prepare
from pkd.runs.teachers import Teachers
from pkd.training.config import PRESETS, ResolvedConfig, TrainConfig
from pkd.training.settings import to_plain
from pkd.training.structures import Phase
from pkd.utils.errors import ConfigError

# Settings that decide the images of a cell.
IMAGES = ("dataset", "data_dir", "skip_bad", "image_size", "channels", "evaluate_on")
ALWAYS_NAMED = ("dataset", "structure", "student_widths")
NAME_LENGTH, MAX_MEMBERS = 100, 100_000

Loader = Callable[[ResolvedConfig], Dataset]


@dataclass(frozen=True)
class Cell:
    """A combination of settings that a sweep trains for all classes and seeds.

    Attributes:
        name: unique in the sweep, usable as a name of a folder.
        config: settings with every value known, but for the members, `stack` and `teacher`.
        varied: names of the settings in which the cells of the sweep may differ.
        members: models of the cell.
        images: normal class -> training images that are not held out.
        data_sha256: digest of the images.
    """

    name: str
    config: ResolvedConfig
    varied: tuple[str, ...]
    members: tuple[Member, ...]
    images: Mapping[int, int]
    data_sha256: str

    @property
    def channels(self) -> int:
        """Channels of the images."""
        assert self.config.channels is not None, "resolved settings have the number of channels"
        return self.config.channels

    def steps(self, phase: Phase, member: Member) -> int:
        """Training steps of a member in a phase."""
        images = self.images[member.normal_class]
        return phase.epochs * (min(images, phase.max_train_images or images) // phase.batch_size)


def combine_settings(
    common: Mapping[str, Any],
    axes: Mapping[str, Sequence[Any]],
    cells: Sequence[Mapping[str, Any]] = ({},),
) -> tuple[list[TrainConfig], tuple[str, ...]]:
    """Combine the settings of a sweep: explicit cells, each with every combination of the axes.

    Args:
        common: setting -> value for all cells.
        axes: setting -> values.
        cells: settings of each explicit cell, which replace the common values.

    Returns:
        The settings of every cell, and the names of the settings that axes or cells set.

    Raises:
        ConfigError: a setting is unknown; an axis is also set in a cell; an axis has no values.
    """
    names = [field.name for field in fields(TrainConfig)]
    varied_by_cells = dict.fromkeys(name for cell in cells for name in cell)
    for name in (*common, *axes, *varied_by_cells):
        if name not in names:
            raise ConfigError(name, f"is no setting of a training run: {', '.join(names)}")
    if not cells:
        raise ConfigError("cells", "is an empty list: list the settings of at least one cell")
    for name, values in axes.items():
        if not values:
            raise ConfigError(name, "is an axis without values: give at least one, or leave it out")
        if name in varied_by_cells:
            raise ConfigError(name, "is an axis and a setting of a cell: keep one of the two")
    points = [dict(zip(axes, point, strict=True)) for point in product(*axes.values())]
    configs = [TrainConfig(**{**common, **cell, **point}) for cell in cells for point in points]
    return configs, tuple(name for name in names if name in axes or name in varied_by_cells)


def resolve_cells(configs: Sequence[TrainConfig], varied: Sequence[str]) -> list[Cell]:
    """Resolve the settings of cells against their data; each data set is loaded once.

    Args:
        configs: settings of each cell.
        varied: settings in which they may differ.

    Raises:
        ConfigError: two cells are equal, or a setting cannot be used.
        DataError: the data cannot be used.
    """
    load = _loader()
    cells: list[Cell] = []
    named = [f.name for f in fields(TrainConfig) if f.name in {*ALWAYS_NAMED, *varied}]
    plain: list[dict[str, Any]] = []
    for settings in configs:
        config, data = _prepare(settings, load)
        name = cell_name(config, named)
        if to_plain(config) in plain:
            raise ConfigError(
                varied[0] if varied else "cells", f"gives the cell {name} twice: leave one out"
            )
        plain.append(to_plain(config))
        name = unique_name(name, [cell.name for cell in cells])
        if config.teacher:
            Teachers(config, data.dataset.digest, data.members)  # refuses those that do not fit
        images = {k: data.available(k) for k in data.sizes}
        members, digest = tuple(data.members), data.dataset.digest
        cells.append(Cell(name, config, tuple(varied), members, images, digest))
    return cells


def _loader() -> Loader:
    """`load_dataset` that loads the same images once."""
    datasets: dict[tuple[Any, ...], Dataset] = {}

    def load(config: ResolvedConfig) -> Dataset:
        key = tuple(getattr(config, name) for name in IMAGES)
        if key not in datasets:
            datasets[key] = load_dataset(config)
        return datasets[key]

    return load


def _prepare(settings: TrainConfig, load: Loader) -> tuple[ResolvedConfig, RunData]:
    """`prepare` on a machine that may lack the workers' GPU."""
    structure = settings.structure or PRESETS[settings.preset]["structure"]
    if structure in ("teacher-only", "student-only"):
        settings = replace(settings, teacher=None)  # a common value for the other structures
    settings.resolved()  # checks device and precision, which the next line replaces
    config, data = prepare(replace(settings, device="cpu", precision="float32"), load)
    if data.count > MAX_MEMBERS:
        raise ConfigError("seeds", f"gives {data.count:,} models: choose at most {MAX_MEMBERS:,}")
    return replace(config, device=settings.device, precision=settings.precision), data


def cell_name(config: ResolvedConfig, named: Collection[str]) -> str:
    """Name with the values of some settings, such as fashion_mnist_2_1-2-4_lr-0.001."""
    plain = to_plain(config)
    parts = [
        str(plain[name]) if name in ALWAYS_NAMED else f"{name}-{_short(plain[name])}"
        for name in named
    ]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts))[:NAME_LENGTH]


def _short(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list) else str(value)


def unique_name(name: str, names: Collection[str]) -> str:
    """The name, with a number if it is taken."""
    candidates = (name if k == 1 else f"{name}_{k}" for k in range(1, len(names) + 2))
    return next(candidate for candidate in candidates if candidate not in names)
