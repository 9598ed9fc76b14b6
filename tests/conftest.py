"""Without a GPU the kernels run in Triton's interpreter, with one they run on it.

TRITON_INTERPRET is read when a kernel is decorated, so it is set before anything imports one. The
ops still take the reference path on CPU tensors unless PKD_BACKEND (`kernels_on`) says otherwise.
"""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
