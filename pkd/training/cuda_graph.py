"""A call captured as one CUDA graph, for the host to replay instead of launching kernel by kernel.

Before its capture a call has to run a few times, so that kernels are compiled and libraries set up.
Here those runs leave no trace: whatever the call changes is put back in place.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

WARM_UP = 3


class NoGraph(Exception):  # noqa: N818 (the call still runs, without one)
    """The call cannot be captured here; the message says why."""


def available(device: torch.device) -> bool:
    """Whether there are graphs on this device at all."""
    return device.type == "cuda"


def captured(
    call: Callable[[], None], changes: Sequence[Tensor], counter: Tensor
) -> Callable[[], None]:
    """Capture `call` as a CUDA graph, on the current device.

    Args:
        call: reads and writes tensors that stay where they are, and never waits for the device.
        changes: all that it changes and that a later call reads, `counter` among them.
        counter: what every call moves, and what tells which data it reads.

    Returns:
        The graph's replay, which does what `call` does.

    Raises:
        NoGraph: the driver refuses, or the replay does nothing.
    """
    with restored(changes):
        start = counter.clone()

        def from_start() -> None:
            counter.copy_(start)
            call()

        _warm_up(from_start)
        counter.copy_(start)
        # The call has just worked: what fails from here on is the capture, or memory.
        try:
            replay = _record(call)
            replay()
            moved = not torch.equal(counter, start)
        except RuntimeError as error:
            reason = error.__context__ or error  # leaving a broken capture raises again
            if isinstance(reason, torch.OutOfMemoryError):
                raise reason from None
            raise NoGraph(str(reason).partition("\n")[0]) from error
    if not moved:
        raise NoGraph("its replay does nothing")
    return replay


@contextmanager
def restored(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Undo, in place, what happens inside to `tensors` and to PyTorch's random state.

    The copies lie in host memory, so that the device needs no more of it than for a step.
    """
    before = [t.detach().to("cpu", copy=True) for t in tensors]
    with torch.random.fork_rng({t.device.index for t in tensors if t.is_cuda}):
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, old in zip(tensors, before, strict=True):
                    tensor.copy_(old)


def _warm_up(call: Callable[[], None]) -> None:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()  # an error of the call itself is raised here


def _record(call: Callable[[], None]) -> Callable[[], None]:
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            call()
    finally:
        torch.cuda.set_stream(stream)  # a capture that breaks off leaves its own behind
    return graph.replay
