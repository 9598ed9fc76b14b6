"""Run kernels as PTX, compiled for a GPU and executed on a CPU, instead of in the interpreter.

    PKD_PTX=90 pytest -n 0 tests/kernels   # compute capability 9.0

This proves what Triton compiles. Tests that count loads and stores need the interpreter and are
skipped. It does not cover ptxas, nor races within a block.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import triton
from pkd_kernels import dispatch
from pkd_kernels.aot.compiler import compiled
from pkd_kernels.aot.launches import Launch, kernels, launch_of
from ptx.machine import run
from ptx.program import Program

from bench import profiling


class CompiledKernel:
    """Replaces a kernel: compiles it at its launch, and executes the PTX.

    Args:
        name: of the kernel, a key of `kernels()`.
        kernel: the Triton function.
        architecture: compute capability times 10.
    """

    def __init__(self, name: str, kernel: Any, architecture: int):
        self.name, self.kernel, self.architecture = name, kernel, architecture
        self.programs: dict[Launch, tuple[Program, Any]] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **keywords: Any) -> None:
            key = launch_of(self.name, self.kernel, args, keywords, _is_aligned)
            if key not in self.programs:
                binary = compiled(self.kernel, key, self.architecture)
                self.programs[key] = Program(binary.asm["ptx"]), binary.metadata
            program, metadata = self.programs[key]
            kinds = [kind for _, kind in key.signature]
            run(
                program,
                (*grid, 1, 1)[:3],
                32 * metadata.num_warps,
                metadata.shared,
                list(_passed(args, kinds)),
            )

        return launch


def _is_aligned(tensor: torch.Tensor) -> bool:
    return tensor.data_ptr() % 16 == 0


def _passed(values: Sequence[Any], kinds: Sequence[Any]) -> Iterator[Any]:
    """The arguments that the machine code receives, in order: all that are no constants."""
    for value, kind in zip(values, kinds, strict=False):
        if isinstance(value, tuple):
            yield from _passed(value, kind)
        elif kind != "constexpr":
            yield value


@contextlib.contextmanager
def _skip_measurements() -> Iterator[None]:
    pytest.skip("loads and stores are counted in the interpreter")
    yield


def install(architecture: int) -> None:
    """Execute all kernels as PTX from now on, on CPU tensors."""
    dispatch.INTERPRETED = True
    profiling.measured = _skip_measurements
    triton.knobs.compilation.disable_line_info = True  # compiles faster
    for name, (module, attribute) in kernels().items():
        setattr(module, attribute, CompiledKernel(name, getattr(module, attribute), architecture))
