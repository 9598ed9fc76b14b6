"""Tiny sizes, and stand-ins for what needs CUDA: every stage runs on a CPU.

An interpreted training step takes seconds. The stages that need several steps therefore run the
definitions of the ops; "check" and "sweep" run the kernels in the interpreter.
"""

from typing import Any

import torch
from pkd_kernels import dispatch

from bench.interpreter import repair_interpreter
from bench.ladder.cells import SMALL, Cell, Settings
from bench.ladder.contenders import BASE, Entry
from pkd.training import cuda_graph

SETTINGS = Settings(torch.device("cpu"), (2, 4, 8), images=8, repeats=1, seconds=1e-3)
CELLS = (("KDGAN-2", SMALL, 2), ("teacher", SMALL, 1))
INTERPRETED = (("teacher", SMALL, 1),)
LADDER = [Cell("KDGAN-2", SMALL, 1, (BASE, "fused losses"))]


def install(interpret: bool) -> None:
    """Replace CUDA graphs by calls and torch.compile by the eager step, in this process.

    Args:
        interpret: run the kernels in the interpreter, not their definitions.
    """
    repair_interpreter()
    dispatch.BACKEND = "triton" if interpret else "reference"
    applies, compile_step = Entry.applies, torch.compile

    def applies_as_on_a_gpu(entry: Entry, structure: Any, stack: int, _: torch.device) -> bool:
        return applies(entry, structure, stack, torch.device("cuda"))

    def compile_eagerly(call: Any = None, **options: Any) -> Any:
        return compile_step(call, backend="eager", dynamic=options.get("dynamic"))

    Entry.applies = applies_as_on_a_gpu
    torch.compile = compile_eagerly
    cuda_graph.available = lambda device: True
    cuda_graph._warm_up = lambda call: call()
    cuda_graph._record = lambda call: call
