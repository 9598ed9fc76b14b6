"""Stage "sweep": time every distinct problem of the layers alone, with several tilings.

One eager training step records the problems of the layers' launches, with their tensors. Each
distinct problem is then solved alone under other tilings, which `pkd_kernels.conv.tiling` computes
from other constants. A tiling counts only if its outputs equal those of the present tiling.

Kernels are compiled in parallel processes; times are measured by one process at a time.
"""

import fcntl
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from os import sched_getaffinity
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest import mock

from pkd_kernels.conv import autograd, gan, tiling
from pkd_kernels.conv.backward import WeightProblem
from pkd_kernels.conv.forward import LayerProblem
from pkd_kernels.conv.tiling import Tiling, WeightTiling
from torch import Tensor

from bench.gpu.facts import Fact
from bench.gpu.replay import seconds_per_call
from bench.gpu.steps import settings_and_cells
from bench.gpu.tasks import Tasks, first_line
from bench.ladder.cells import Cell, Settings
from bench.ladder.loops import Pkd
from bench.ladder.measure import prepare_process
from bench.ladder.timing import synchronize
from pkd.training import cuda_graph

PARTS = 3  # processes that share the layers of a cell
LAUNCHES, REPLAYS = 20, 4  # a graph of many launches takes much longer than its own launch
TOLERANCE = 1e-3  # of the largest value: the order of a sum may differ, a missing term may not

# (elements of a tile, warps) of spread sums; channels of matrix products.
SPREAD = ((1024, 2), (2048, 4), (4096, 4), (4096, 8), (8192, 8), (8192, 16), (16384, 16))
MATRIX = (4, 8, 16, 32)
WEIGHTS = ((64, 64), (32, 64), (16, 64), (32, 32), (16, 32), (8, 32), (8, 16), (16, 256))

TAP, WEIGHT = "tap_tiling", "weight_tiling"
WRITTEN = ("y", "u", "rstd", "out", "gamma_grad", "beta_grad")  # pointers of a problem


class Subject(NamedTuple):
    """A problem of a launch of layers, whose tiling varies.

    Attributes:
        function: `TAP` or `WEIGHT`, which computes the tiling.
        arguments: arguments of that function.
        launcher: function of the launch.
        problem: its tensors, constants and present tiling.
        stack: M.
    """

    function: str
    arguments: tuple
    launcher: Callable[..., Any]
    problem: Any
    stack: int

    @property
    def labels(self) -> Fact:
        """What identifies the subject."""
        direction = "forward" if isinstance(self.problem, LayerProblem) else "backward"
        return {"direction": direction, "function": self.function, "arguments": self.arguments}

    def call(self, candidate: Tiling | WeightTiling) -> None:
        """Solve the problem alone, with another tiling."""
        self.launcher([self.problem._replace(tiling=candidate)], self.stack)

    def outputs(self, candidate: Tiling | WeightTiling) -> list[Tensor]:
        """Solve the problem into memory full of NaN; return copies of all that it writes.

        The memory is restored, also after an error: other problems read it.
        """
        fields = self.problem.pointers._asdict()
        read = () if isinstance(self.problem, LayerProblem) else ("y", "u", "rstd")
        names = [name for name in WRITTEN if name not in read]
        buffers = [fields[name] for name in names if fields.get(name) is not None]
        before = [t.clone() for t in buffers]
        for tensor in buffers:
            tensor.fill_(math.nan)
        try:
            self.call(candidate)
            return [t.clone() for t in buffers]
        finally:
            for tensor, values in zip(buffers, before, strict=True):
                tensor.copy_(values)


def sweep(rehearse: bool) -> Tasks:
    """Return the tasks: the layers of each headline cell, in parts."""
    settings, cells = settings_and_cells(rehearse, interpret=True)
    parts = 1 if rehearse else PARTS
    tasks = {
        f"{cell.title}, part {part + 1} of {parts}": partial(
            _sweep, cell, settings, slice(part, None, parts), rehearse
        )
        for cell in cells
        for part in range(parts)
    }
    return Tasks(tasks, processes=max(1, min(len(tasks), len(sched_getaffinity(0)))))


def _sweep(
    cell: Cell, settings: Settings, part: slice, rehearse: bool, deadline: float
) -> Iterator[Fact]:
    """Time all tilings of one part of the subjects; in a rehearsal, a few tilings of each kind."""
    prepare_process(settings)
    setup = cell.training_setup(settings)
    trainer = Pkd(setup, setup.members(cell.stack)).trainer
    subjects = recorded(trainer.step)[part]
    if rehearse:
        subjects = list({(s.labels["direction"], s.function): s for s in subjects}.values())
    for subject in subjects:
        for candidate in candidates(subject)[: 2 if rehearse else None]:
            if time.time() > deadline:
                raise TimeoutError("not all tilings are timed")
            labels = {"cell": cell.title} | subject.labels | {"tiling": repr(candidate)}
            present = candidate == present_tiling(subject)
            yield labels | {"present": present} | timed(subject, candidate, settings)


def recorded(step: Callable[[], object]) -> list[Subject]:
    """Run a step; return a subject for every distinct problem of its layers that has a tiling."""
    subjects: dict[str, Subject] = {}
    with ExitStack() as stack:
        for module in (autograd, gan):
            for name in ("launch_layers", "launch_gradients"):
                function = _recording(getattr(module, name), subjects)
                stack.enter_context(mock.patch.object(module, name, function))
        step()
    return list(subjects.values())


def _recording(launcher: Callable, subjects: dict[str, Subject]) -> Callable:
    def record(problems: Sequence[Any], stack: int) -> None:
        launcher(problems, stack)
        for problem in problems:
            if arguments := getattr(problem, "arguments", ()):
                function = WEIGHT if isinstance(problem, WeightProblem) else TAP
                subject = Subject(function, arguments, launcher, problem, stack)
                subjects.setdefault(str(subject.labels), subject)

    return record


def present_tiling(subject: Subject) -> Tiling | WeightTiling:
    """Return the tiling that the kernels use at present."""
    return getattr(tiling, subject.function)(*subject.arguments)


def candidates(subject: Subject) -> list[Tiling | WeightTiling]:
    """Return distinct tilings of a subject, the present one first."""
    vary = _tap_tilings if subject.function == TAP else _weight_tilings
    return list(dict.fromkeys([present_tiling(subject), *vary(*subject.arguments)]))


def _tap_tilings(
    up: bool, side: int, inputs: int, channels: int, whole: bool, copies: int
) -> Iterator[Tiling]:
    for most in MATRIX:
        constants = {"MATRIX_CHANNELS": (most,), "MATRIX_PROGRAMS": 0}
        with mock.patch.multiple(tiling, **constants):
            matrix = tiling._matrix_tiling(up, side, channels, whole, copies)
        if matrix is not None:
            yield matrix
    for entry in SPREAD:
        with mock.patch.multiple(tiling, SPREAD_TILES={2**31: entry}, SINGLE_TRIP=0):
            yield tiling._spread_tiling(up, side, inputs, channels, whole, copies)


def _weight_tilings(*arguments: int) -> Iterator[WeightTiling]:
    for entry in WEIGHTS:
        constants = {"WEIGHT_TILES": (entry,), "POINT_WEIGHTS": entry}
        with mock.patch.multiple(tiling, **constants):
            yield tiling.weight_tiling.__wrapped__(*arguments)


def timed(subject: Subject, candidate: Tiling | WeightTiling, settings: Settings) -> Fact:
    """Compile and check a tiling, and time it while no other process is timing."""
    expected = subject.outputs(present_tiling(subject))
    try:
        error = largest_error(subject.outputs(candidate), expected)
        if not error <= TOLERANCE:
            return {"error": f"outputs differ by {error:.1e} of the largest value"}
        return {"us": round(1e6 * _seconds(partial(subject.call, candidate), settings), 3)}
    except Exception as error:  # a tiling may need too many registers or too much shared memory
        synchronize(settings.device)  # raises if the GPU cannot be used any more
        return {"error": first_line(error)}


def largest_error(results: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest difference, divided by the largest expected value of its tensor."""
    errors = [
        ((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item()
        for a, b in zip(results, expected, strict=True)
    ]
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def _seconds(call: Callable[[], object], settings: Settings) -> float:
    """Return the time of one launch in a graph; the median over repeats."""
    device = settings.device
    launches, replays = (LAUNCHES, REPLAYS) if device.type == "cuda" else (1, 1)

    def launch_all() -> None:
        for _ in range(launches):
            call()

    replay = cuda_graph.capture_call(launch_all)
    with alone():
        times = [seconds_per_call(replay, replays, device) for _ in range(settings.repeats)]
    return median(times) / launches


@contextmanager
def alone() -> Iterator[None]:
    """Wait until no other process is timing. The lock ends with its process, also by a crash."""
    with Path(__file__).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
