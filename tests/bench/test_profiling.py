"""Counting of launches and bytes."""

import pkd_kernels
import torch

from bench.profiling import _kernels, measured


def test_reading_a_number_is_no_launch_and_an_output_is_written_once():
    a = torch.ones(4)
    with measured() as traffic:
        torch.mean(a, 0, out=torch.empty(())).item()
    assert traffic.launches == ["aten.mean"]
    assert traffic.aten_bytes == 4 * 5


def test_every_kernel_is_counted_once():
    kernels = [kernel for _, kernel in _kernels()]
    assert len(kernels) == len({id(kernel) for kernel in kernels}) >= 10
    for module, kernel in _kernels():
        assert kernel.fn.__module__ == f"{pkd_kernels.__name__}.{module}"
