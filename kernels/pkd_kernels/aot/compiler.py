"""Compile launches for GPUs that are not present, and read their use of resources."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pkd_kernels.aot.launches import Launch, kernels

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class Usage(NamedTuple):
    """Resources of one compiled launch on one architecture.

    Attributes:
        architecture: compute capability times 10.
        registers: of a thread.
        shared: bytes of shared memory of a block.
        stack: bytes of stack of a thread.
        linear_sums: see `sums_over_linear_layout`.
    """

    architecture: int
    registers: int
    shared: int
    stack: int
    linear_sums: bool


def compiled(kernel: Any, launch: Launch, architecture: int) -> triton.compiler.CompiledKernel:
    """Compile a launch of `kernel` for one architecture, for example 90."""
    source = ASTSource(
        kernel,
        signature=dict(launch.signature),
        constexprs=dict(launch.constants),
        attrs={path: [["tt.divisibility", 16]] for path in launch.aligned},
    )
    return _compile(source, launch, architecture)


def _compile(
    source: ASTSource | str, launch: Launch, architecture: int
) -> triton.compiler.CompiledKernel:
    target = GPUTarget("cuda", architecture, 32)
    return triton.compile(source, target=target, options=dict(launch.options))


def usages(launch: Launch, architectures: Sequence[int]) -> list[Usage]:
    """Compile a launch for some architectures, and read the resources that the code uses."""
    module, name = kernels()[launch.kernel]
    first, *others = architectures
    binaries = [compiled(getattr(module, name), launch, first)]
    # Triton's first intermediate representation is the same for all architectures.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{launch.kernel}.ttir")
        path.write_text(binaries[0].asm["ttir"])
        binaries += [_compile(str(path), launch, architecture) for architecture in others]
    return [_usage(*pair) for pair in zip(binaries, architectures, strict=True)]


def _usage(binary: triton.compiler.CompiledKernel, architecture: int) -> Usage:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(binary.asm["cubin"])
        report = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    values = {k: int(v) for k, v in re.findall(r"(REG|STACK):(\d+)", report)}
    sums = sums_over_linear_layout(binary.asm["ttgir"])
    return Usage(architecture, values["REG"], binary.metadata.shared, values["STACK"], sums)


def sums_over_linear_layout(ttgir: str) -> bool:
    """Whether a sum reduces a tensor of a linear layout, as after `tl.reshape` or `tl.permute`.

    Triton 3.6 exchanges values with the wrong threads there.
    """
    return re.search(r"tt\.reduce\.return.*\n\s*\}\) : \(.*#linear", ttgir) is not None


def all_usages(
    launches: Sequence[Launch], architectures: Sequence[Sequence[int]]
) -> Iterator[list[Usage]]:
    """`usages` of every launch, in order, computed by one process on each core.

    Args:
        launches: what to compile.
        architectures: of each launch, e.g. (75, 90).
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    pool = ProcessPoolExecutor(cores, get_context("spawn"), _start_worker, (os.getpid(),))
    with pool:
        yield from pool.map(usages, launches, architectures, chunksize=4)


def _start_worker(parent: int) -> None:
    """End the worker with its parent, and compile without line numbers, which is faster."""
    exit_with_parent(parent)
    triton.knobs.compilation.disable_line_info = True


def exit_with_parent(parent: int) -> None:
    """Let Linux kill this process when its parent ends, even by SIGKILL.

    Args:
        parent: process id of the parent, which must have started this process in a thread that
            ends only with the parent, such as its main thread.
    """
    if _LIBC is None:
        return
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)
