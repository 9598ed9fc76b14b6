"""What a piece of code launches and moves: for tests and benchmarks.

Launches are counted on any device: Triton kernels, and operations of PyTorch that compute (views
and allocations do not). On a GPU the profiler tells what runs there, inside a CUDA graph too.
Elements that a kernel loads and stores are counted where the interpreter runs it, argument by
argument, so that "each input is read once" can be checked.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from unittest import mock

import torch
from pkd_kernels.aot.launches import kernels
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Neither is reading a number on the host a kernel.
_NO_LAUNCH = ("empty", "new_empty", "empty_like", "empty_strided", "detach", "lift_fresh")

_NO_LAUNCH += ("_local_scalar_dense",)


@dataclass
class Traffic:
    """Counts of what ran inside `measured()`.

    Attributes:
        launches: names, in order; operations of PyTorch with their prefix aten.
        loaded, stored: elements by "kernel.argument"; empty where kernels are not interpreted.
        aten_bytes: of the tensors that operations of PyTorch read and wrote.
    """

    launches: list[str] = field(default_factory=list)
    loaded: Counter = field(default_factory=Counter)
    stored: Counter = field(default_factory=Counter)
    aten_bytes: int = 0


class _Operations(TorchDispatchMode):
    def __init__(self, traffic: Traffic):
        super().__init__()
        self.traffic = traffic

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        schema = func._schema
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and not view and name not in _NO_LAUNCH:
            self.traffic.launches.append(f"aten.{name}")
            read = {k: v for k, v in (kwargs or {}).items() if k != "out"}
            tensors = torch.utils._pytree.tree_leaves((args, read, result))
            self.traffic.aten_bytes += sum(t.nbytes for t in tensors if isinstance(t, Tensor))
        return result


def gpu_events(call: Callable[[], object]) -> list:
    """Kernels, copies and fills that a call makes a GPU run; none where the profiler sees none.

    What runs later in the process may be slower for it: time first, then count.
    """
    # To detach the profiler's library and attach it again has crashed where there are CUDA graphs.
    os.environ.setdefault("TEARDOWN_CUPTI", "0")
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    on_device = torch.autograd.DeviceType.CUDA
    return [
        event
        for event in profile.events()
        if event.device_type == on_device and not event.is_user_annotation
    ]


@contextmanager
def measured() -> Iterator[Traffic]:
    """Count what runs inside, on this thread."""
    traffic = Traffic()
    with ExitStack() as stack:
        for name, (module, attribute) in kernels().items():
            kernel = getattr(module, attribute)
            counted = _counting(name, kernel, traffic)
            stack.enter_context(mock.patch.object(kernel, "run", counted))
        stack.enter_context(_Operations(traffic))
        yield traffic


def _counting(name: str, kernel, traffic: Traffic):
    run = kernel.run

    def counted(*args, **kwargs):
        traffic.launches.append(name)
        with torch.utils._python_dispatch._disable_current_modes():
            if hasattr(kernel, "rewrite"):
                tensors = {
                    argument: t
                    for argument, t in zip(kernel.arg_names, args, strict=False)
                    if isinstance(t, Tensor)
                }
                with _memory_counted(name, tensors, traffic):
                    return run(*args, **kwargs)
            return run(*args, **kwargs)

    return counted


@contextmanager
def _memory_counted(name: str, tensors: dict[str, Tensor], traffic: Traffic) -> Iterator[None]:
    from triton.runtime.interpreter import InterpreterBuilder

    # An argument that is not used repeats a tensor that came before it.
    starts = {t.data_ptr(): f"{name}.{argument}" for argument, t in reversed(tensors.items())}

    def count(counter: Counter, pointers, mask) -> None:
        addresses = pointers.data[mask.data.astype(bool)]
        if addresses.size:
            first = int(addresses.min())
            counter[starts[max(start for start in starts if start <= first)]] += addresses.size

    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def counting_load(self, pointers, mask, *rest):
        count(traffic.loaded, pointers, mask)
        return load(self, pointers, mask, *rest)

    def counting_store(self, pointers, value, mask, *rest):
        count(traffic.stored, pointers, mask)
        return store(self, pointers, value, mask, *rest)

    with (
        mock.patch.object(InterpreterBuilder, "create_masked_load", counting_load),
        mock.patch.object(InterpreterBuilder, "create_masked_store", counting_store),
    ):
        yield
