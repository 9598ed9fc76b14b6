"""The table of stages, in order: name, time limit and function."""

from typing import NamedTuple

TOTAL_S = 570.0
MIN_S = 1.0  # a stage is not started with less time


class Stage(NamedTuple):
    """A part of the measurement that runs in its own process.

    Attributes:
        name: label of its facts.
        seconds: time limit. A stage may also use the time that earlier stages left over.
        tasks: "module:function"; the function returns the `Tasks` of the stage.
    """

    name: str
    seconds: float
    tasks: str


# The first eight stages fill TOTAL_S. The last two run in the time that these leave over, or in a
# second call. Up to the sweep, torch, triton and numpy suffice.
STAGES = (
    Stage("machine", 20, "bench.gpu.machine:machine"),
    Stage("check", 20, "bench.gpu.steps:check"),
    Stage("headline", 45, "bench.gpu.steps:headline"),
    Stage("replay", 25, "bench.gpu.replay:replay"),
    Stage("compile", 130, "bench.gpu.steps:compiled"),
    Stage("sweep", 90, "bench.gpu.sweep:sweep"),
    Stage("tests", 170, "bench.gpu.pytests:tests"),
    Stage("ops", 70, "bench.gpu.pytests:ops"),
    Stage("sanitizer", 60, "bench.gpu.pytests:sanitizer"),
    Stage("ladder", TOTAL_S, "bench.gpu.steps:ladder"),
)
