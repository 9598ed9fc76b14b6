"""Settings of every test process: threads, kernels, time limits, no process left behind.

Without a GPU the kernels run in Triton's interpreter; with a GPU they are compiled and run on it.
PKD_PTX=90 compiles them for a GPU of compute capability 9.0 and executes the PTX on the CPU, see
`ptx.lane`. TRITON_INTERPRET is read when a kernel is decorated, so it is set before any import of
a kernel. The ops take the reference path for CPU tensors unless a test chooses the kernels.
"""

import os

# Read at the import of torch and NumPy. The xdist workers use all cores without more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import orphans
import pytest
import torch

from bench.interpreter import repair_interpreter

SLOW_TIMEOUT = 600  # seconds; pyproject.toml has the limit of the other tests
PTX = os.environ.get("PKD_PTX")
if PTX:
    from ptx import lane

    lane.install(int(PTX))
elif not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    repair_interpreter()


def pytest_configure() -> None:
    orphans.watch()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        expensive = item.get_closest_marker("slow") or item.get_closest_marker("cluster")
        if expensive and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
