"""Without a GPU the kernels run in Triton's interpreter, with one they run on it; PKD_PTX=90 runs
what is compiled for a GPU of compute capability 9.0 on the CPU, see `ptx.lane`.

TRITON_INTERPRET is read when a kernel is decorated, so it is set before anything imports one. The
ops still take the reference path on CPU tensors unless PKD_BACKEND (`kernels_on`) says otherwise.
"""

import os
from importlib.metadata import version

import pytest
import torch

PTX = os.environ.get("PKD_PTX")
if PTX:
    from ptx import lane

    lane.install(int(PTX))
elif not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def _let_triton_3_6_count_loops_with_numpy_2_4() -> None:
    """Its interpreter calls int() on arrays of one element, which NumPy refuses since 2.4."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_and_mend(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_and_mend


if not torch.cuda.is_available() and version("triton").startswith("3.6."):
    _let_triton_3_6_count_loops_with_numpy_2_4()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
