"""Measure training steps over the number of models in a stack, on the worker that trains."""

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pkd.models.stack import Member
from pkd.runs.data import RunData, load_dataset
from pkd.runs.memory import fitting_stack, weight_memory
from pkd.sweep.cells import Cell
from pkd.training.config import ResolvedConfig
from pkd.training.factory import make_networks, make_trainer
from pkd.training.structures import Phase
from pkd.training.train_set import TrainSet
from pkd.utils.device import precision
from pkd.utils.errors import PkdError

# A measurement takes blocks of steps until SECONDS have passed; the fastest block counts. On a GPU
# a block has more steps, because its end waits for the device.
SECONDS = 0.2
BLOCK = {"cpu": 2, "cuda": 16}
WORTHWHILE_GAIN = 1.1  # in models per second, for twice the models in a stack
# Share of the memory of a machine for the weights of the networks on a CPU.
USABLE_HOST_MEMORY = 0.5

Curve = list[tuple[int, float]]  # (models in the stack, seconds of a step), ascending


@dataclass(frozen=True)
class Measurement:
    """Speed of a cell on a worker.

    Attributes:
        fit: largest stack that fits the device, at most the members of the cell.
        knee: smallest stack for which twice the models gain less than 10 % models per second.
        step_seconds: trained phase -> seconds of a step over the models in the stack.
    """

    fit: int
    knee: int
    step_seconds: Mapping[str, Curve]

    def seconds(self, cell: Cell, members: Sequence[Member]) -> float:
        """Estimated seconds of all training steps of a stack of members."""
        return sum(
            max(cell.steps(phase, member) for member in members)
            * interpolate(self.step_seconds[phase.name], len(members))
            for phase in cell.config.trained_phases()
        )


def step_seconds(config: ResolvedConfig, phase: Phase, channels: int, count: int) -> float:
    """Measure a training step of a stack, on random images.

    Args:
        config: settings, with the device.
        phase: one of the phases of `config`.
        channels: channels of the images.
        count: models in the stack.

    Returns:
        Seconds of one step, in which every model trains on one batch.

    Raises:
        torch.OutOfMemoryError: the stack does not fit the GPU.
    """
    config, device = _with_narrow_teacher(config, phase), config.training_device()
    steps = BLOCK[device.type]
    members = [Member(0, seed) for seed in range(count)]
    shape = (steps * phase.batch_size, channels, config.image_size, config.image_size)
    images = torch.randint(256, shape, dtype=torch.uint8)
    with precision(config.precision, device):
        train_set = TrainSet(images, np.zeros(len(images)), members, device=device)
        networks = make_networks(config, members, channels, device)
        trainer = make_trainer(config, phase, networks, members, train_set, use_graph=config.graph)
        trainer.begin_epoch(0)
        trainer.advance()  # compiles kernels, captures the CUDA graph
        fastest, end = float("inf"), 0.0
        while not end or time.perf_counter() < end:
            trainer.begin_epoch(0)
            _wait_for(device)
            start = time.perf_counter()
            end = end or start + SECONDS
            for _ in range(steps):
                trainer.advance()
            _wait_for(device)
            fastest = min(fastest, (time.perf_counter() - start) / steps)
    return fastest


def _with_narrow_teacher(config: ResolvedConfig, phase: Phase) -> ResolvedConfig:
    """Settings with a small teacher, if the steps of a phase only read its cached outputs."""
    return replace(config, teacher_widths=(1, 1, 1)) if phase.structure.cached_teacher else config


def interpolate(curve: Curve, count: int) -> float:
    """Seconds of a step of `count` models; beyond the curve each model costs the same."""
    largest, seconds = curve[-1]
    if count > largest:
        return seconds * count / largest
    counts, values = zip(*curve, strict=True)
    return float(np.interp(count, counts, values))


def measure_cells(cells: Sequence[Cell], threads: int) -> dict[str, Any]:
    """Task: measure the speed of cells, and the stacks that fit this worker.

    Args:
        cells: the cells; a phase with the same networks and losses is measured once.
        threads: CPU threads for the measurement.

    Returns:
        "status" and "error" as a shard's, and "measurements" of the cells.
    """
    torch.set_num_threads(threads)
    try:
        known: dict[tuple[Any, ...], float] = {}
        measurements = [measure_cell(cell, known) for cell in cells]
    except PkdError as error:
        return {"status": "failed", "error": str(error)}
    return {"status": "finished", "error": None, "measurements": measurements}


def measure_cell(cell: Cell, known: dict[tuple[Any, ...], float]) -> Measurement:
    """Measure stacks of 1, 2, 4, ... models of a cell until larger ones gain too little.

    Args:
        cell: the cell.
        known: seconds of the steps that have been measured before; new ones are added.
    """
    config = cell.config
    phases = config.trained_phases()
    fit = _fitting_models(cell)
    curves: dict[str, Curve] = {phase.name: [] for phase in phases}
    weights = {phase.name: cell.steps(phase, cell.members[0]) for phase in phases}
    count, previous = 1, 0.0
    while True:
        try:
            for phase in phases:
                seconds = _known_step_seconds(cell, phase, count, known)
                curves[phase.name].append((count, seconds))
        except torch.OutOfMemoryError:
            if count == 1:
                raise PkdError(
                    f"one model of {cell.name} does not fit the GPU's memory: choose a smaller "
                    "`batch_size` or smaller widths"
                ) from None
            fit = count // 2
            break
        rate = count / sum(weights[name] * curve[-1][1] for name, curve in curves.items())
        if rate < previous * WORTHWHILE_GAIN or 2 * count > fit:
            break
        count, previous = 2 * count, rate
    knee = count if rate >= previous * WORTHWHILE_GAIN else count // 2
    return Measurement(fit, min(knee, fit), curves)


def _known_step_seconds(
    cell: Cell, phase: Phase, count: int, known: dict[tuple[Any, ...], float]
) -> float:
    config, channels = _with_narrow_teacher(cell.config, phase), cell.channels
    networks = (config.architecture(name, channels) for name in phase.structure.networks)
    settings = (config.device, config.precision, config.graph, config.reduction)
    key = (*networks, phase.structure, phase.batch_size, *settings, count)
    if key not in known:
        known[key] = step_seconds(config, phase, channels, count)
        free_memory()
    return known[key]


def _fitting_models(cell: Cell) -> int:
    """Models of a cell that fit the device in one stack; all for a `stack` of the user."""
    config, total = cell.config, len(cell.members)
    if config.stack:
        return total
    if config.torch_device().type == "cuda":
        return fitting_stack(config, RunData(config, load_dataset(config))) or total
    needed, available = weight_memory(config, cell.channels)
    return max(1, min(total, int(USABLE_HOST_MEMORY * available) // needed))


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory() -> None:
    """Free the GPU memory of networks that are no longer used, which the next task needs."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
