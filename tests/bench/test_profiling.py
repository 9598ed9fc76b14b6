"""Counting of launches and bytes."""

import pkgutil
from importlib import import_module

import pkd_kernels
import torch
from pkd_kernels.aot.launches import kernels

from bench.profiling import measured


def test_reading_a_number_is_no_launch_and_an_output_is_written_once():
    a = torch.ones(4)
    with measured() as traffic:
        torch.mean(a, 0, out=torch.empty(())).item()
    assert traffic.launches == ["aten.mean"]
    assert traffic.aten_bytes == 4 * 5


def test_every_kernel_is_counted():
    prefix = f"{pkd_kernels.__name__}."
    defined = set()
    for info in pkgutil.walk_packages(pkd_kernels.__path__, prefix):
        if not info.name.endswith("__main__"):
            module = import_module(info.name)
            launched = {value for name, value in vars(module).items() if name.endswith("_kernel")}
            defined |= {k.fn.__name__ for k in launched if hasattr(k, "fn")}
    counted = {getattr(module, name).fn.__name__ for module, name in kernels().values()}
    assert counted == defined
    assert len(counted) >= 10
