"""Count kernel launches and memory traffic, for tests and benchmarks.

Launches are counted on any device: Triton kernels, and PyTorch operations that compute (views and
allocations do not). On a GPU the profiler lists the kernels that run, including those of a CUDA
graph. Loaded and stored elements are counted for each argument of a kernel where the interpreter
runs it; this shows, for example, that each input is read once.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from pkd_kernels.aot.launches import kernels
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Operations that launch no kernel: allocations, and the transfer of a number to the host.
_NO_LAUNCH = ("empty", "new_empty", "empty_like", "empty_strided", "detach", "lift_fresh")

_NO_LAUNCH += ("_local_scalar_dense",)


@dataclass
class Traffic:
    """Counts from a `measured()` block.

    Attributes:
        launches: names in launch order: a kernel's name, or "aten.operation".
        loaded: loaded elements by "module.argument"; empty if kernels are not interpreted.
        stored: stored elements, likewise.
        aten_bytes: bytes of the tensors that PyTorch operations read and wrote.
    """

    launches: list[str] = field(default_factory=list)
    loaded: Counter[str] = field(default_factory=Counter)
    stored: Counter[str] = field(default_factory=Counter)
    aten_bytes: int = 0


class _OperationCounter(TorchDispatchMode):
    def __init__(self, traffic: Traffic):
        super().__init__()
        self.traffic = traffic

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        schema = func._schema
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and not view and name not in _NO_LAUNCH:
            self.traffic.launches.append(f"aten.{name}")
            inputs = {k: v for k, v in (kwargs or {}).items() if k != "out"}  # `out` is the result
            tensors = torch.utils._pytree.tree_leaves((args, inputs, result))
            self.traffic.aten_bytes += sum(t.nbytes for t in tensors if isinstance(t, Tensor))
        return result


def gpu_events(call: Callable[[], object]) -> list[Any]:
    """Profile a call; return its GPU events: kernels, copies and fills, if the profiler lists any.

    The profiler can leave its process slower: time first, then count.
    """
    # The profiler library has crashed when it was detached and attached again beside CUDA graphs.
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
    """Count launches and traffic of this thread inside the block."""
    traffic = Traffic()
    with ExitStack() as stack:
        for name, (module, attribute) in kernels().items():
            kernel = getattr(module, attribute)
            counting = _counting(name, kernel, traffic)
            stack.enter_context(mock.patch.object(kernel, "run", counting))
        stack.enter_context(_OperationCounter(traffic))
        yield traffic


def _counting(name: str, kernel: Any, traffic: Traffic) -> Callable[..., Any]:
    run = kernel.run

    def counting(*args: Any, **kwargs: Any) -> Any:
        traffic.launches.append(name)
        with torch.utils._python_dispatch._disable_current_modes():
            if hasattr(kernel, "rewrite"):  # an interpreted kernel
                tensors = list(_named_tensors(zip(kernel.arg_names, args, strict=False)))
                with _memory_counted(name, tensors, traffic):
                    return run(*args, **kwargs)
            return run(*args, **kwargs)

    return counting


def _named_tensors(arguments: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a launch by argument; field t of a named tuple is t_ptr."""
    for name, value in arguments:
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, tuple):
            names = [f"{field}_ptr" for field in getattr(value, "_fields", ())]
            fields = names or [name] * len(value)
            yield from _named_tensors(zip(fields, value, strict=True))


@contextmanager
def _memory_counted(
    module: str, tensors: list[tuple[str, Tensor]], traffic: Traffic
) -> Iterator[None]:
    from triton.runtime.interpreter import InterpreterBuilder

    # An unused argument repeats an earlier tensor: reversed, so that the earlier name wins.
    starts = {t.data_ptr(): f"{module}.{argument}" for argument, t in reversed(tensors)}

    def count(counter: Counter[str], pointers: Any, mask: Any) -> None:
        addresses = pointers.data[mask.data.astype(bool)]
        if addresses.size:
            first = int(addresses.min())
            counter[starts[max(start for start in starts if start <= first)]] += addresses.size

    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def counting_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        count(traffic.loaded, pointers, mask)
        return load(self, pointers, mask, *rest)

    def counting_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        count(traffic.stored, pointers, mask)
        return store(self, pointers, value, mask, *rest)

    with (
        mock.patch.object(InterpreterBuilder, "create_masked_load", counting_load),
        mock.patch.object(InterpreterBuilder, "create_masked_store", counting_store),
    ):
        yield
