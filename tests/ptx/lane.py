"""Kernels compiled for a GPU and executed on a CPU: the lane of proof that sees what Triton made.

    PKD_PTX=90 pytest tests/kernels        # compute capability 9.0

runs the kernel tests so, in place of Triton's interpreter; tests that count loads and stores, which
the interpreter alone can, are skipped. What ptxas makes of PTX, and races within a block, it does
not see.
"""

import contextlib
from importlib import import_module

import pytest
import torch
from pkd_kernels import aot, dispatch
from ptx.machine import run
from ptx.program import Program

from bench import profiling as counting


class CompiledKernel:
    """Stands in for a kernel of `pkd_kernels`: compiles it as it is launched, and executes it."""

    def __init__(self, op: str, name: str, kernel, architecture: int):
        self.op, self.name, self.kernel, self.architecture = op, name, kernel, architecture
        self.compiled: dict[aot.Launch, tuple] = {}

    def __getitem__(self, grid: tuple[int, ...]):
        def launch(*args, **keywords) -> None:
            pointers = [a.data_ptr() for a in args if isinstance(a, torch.Tensor)]
            aligned = all(pointer % 16 == 0 for pointer in pointers)
            key = aot.launch_of(self.op, self.name, self.kernel, args, keywords, aligned)
            if key not in self.compiled:
                made = aot.compiled(self.kernel, key, self.architecture)
                self.compiled[key] = Program(made.asm["ptx"]), made.metadata
            program, metadata = self.compiled[key]
            passed = {name for name, kind in key.signature if kind != "constexpr"}
            names = [parameter.name for parameter in self.kernel.params]
            run(
                program,
                (*grid, 1, 1)[:3],
                32 * metadata.num_warps,
                metadata.shared,
                [a for name, a in zip(names, args, strict=False) if name in passed],
            )

        return launch


@contextlib.contextmanager
def _not_measured():
    pytest.skip("loads and stores are counted in the interpreter")
    yield


def install(architecture: int) -> None:
    """Let all kernels be executed so from now on, on CPU tensors."""
    dispatch.INTERPRETED = True
    counting.measured = _not_measured
    for op in aot.MODULES:
        module = import_module(f"pkd_kernels.{op}")
        for name, kernel in aot.kernels_of(module).items():
            setattr(module, name, CompiledKernel(op, name, kernel, architecture))
