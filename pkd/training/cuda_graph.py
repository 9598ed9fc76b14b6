"""Capture a call as one CUDA graph, which the host replays instead of launching each kernel.

A call must run a few times before its capture, so that kernels are compiled and libraries are
initialised. `capture` undoes the effects of these runs and checks that the replay works;
`capture_call` leaves both to the caller.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

WARM_UP_CALLS = 3

Outputs = TypeVar("Outputs")


class GraphCaptureError(Exception):
    """The call cannot be captured on this machine; it still runs eagerly."""


def available(device: torch.device) -> bool:
    """Whether this type of device supports CUDA graphs."""
    return device.type == "cuda"


def capture(
    call: Callable[[], None], state: Sequence[Tensor], counter: Tensor
) -> Callable[[], None]:
    """Capture `call` on the current device and leave its state unchanged.

    Args:
        call: reads and writes tensors at fixed addresses and never synchronises with the device.
        state: all tensors that a call changes and a later call reads, including `counter`.
        counter: tensor that every call changes. It selects the data that a call reads, so each
            warm-up call starts from its present value.

    Returns:
        The replay of the graph, with the effects of `call`.

    Raises:
        GraphCaptureError: the driver refuses the capture, or the replay has no effect.
        torch.OutOfMemoryError: the graph does not fit into the memory of the device.
    """
    with restored(state):
        start = counter.clone()

        def call_from_start() -> None:
            counter.copy_(start)
            call()

        _warm_up(call_from_start)
        counter.copy_(start)
        # The warm-up succeeded: an error from here on is an error of the capture, or of memory.
        try:
            replay = _record(call)
            replay()
            has_effect = not torch.equal(counter, start)
        except RuntimeError as error:
            cause = error.__context__ or error  # leaving a broken capture raises a second error
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
            raise GraphCaptureError(str(cause).partition("\n")[0]) from error
    if not has_effect:
        # A driver can record an empty graph without an error: training would stop silently.
        raise GraphCaptureError("the replay of the graph has no effect")
    return replay


def capture_call(call: Callable[[], Outputs]) -> Callable[[], Outputs]:
    """Capture `call` on the current device after `WARM_UP_CALLS` calls, whose effects remain.

    Returns:
        The replay of the graph. Every replay returns the tensors that the captured call returned,
        overwritten with new values.
    """
    _warm_up(call)
    return _record(call)


@contextmanager
def restored(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Restore `tensors`, in place, and PyTorch's random state at exit.

    The copies are in host memory, so that a capture needs no more device memory than a step.
    """
    copies = [t.detach().to("cpu", copy=True) for t in tensors]
    with torch.random.fork_rng({t.device.index for t in tensors if t.is_cuda}):
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, copy in zip(tensors, copies, strict=True):
                    tensor.copy_(copy)


def _warm_up(call: Callable[[], object]) -> None:
    """Call on a side stream, as CUDA requires before a capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_CALLS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()  # an error of the call itself is raised here, not in the capture


@cache
def _capture_stream(device: int) -> torch.cuda.Stream:
    """The stream of all captures on one device.

    torch.cuda.graph has one for the process, on the device that captured first.
    """
    return torch.cuda.Stream(device)


def _record(call: Callable[[], Outputs]) -> Callable[[], Outputs]:
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, stream=_capture_stream(torch.cuda.current_device())):
            outputs = call()
    finally:
        torch.cuda.set_stream(stream)  # a failed capture leaves its own stream selected

    def replay() -> Outputs:
        graph.replay()
        return outputs

    return replay
