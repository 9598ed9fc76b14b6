"""Chains of layers as schedules, which run side by side in common launches.

A schedule is a generator: it yields the problems of its next launch, and returns its result.
`lockstep` joins schedules, so that the problems of equal levels share a launch.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from pkd_kernels.conv.backward import (
    Problem,
    Reader,
    affine_buffers,
    map_problem,
    weight_problem,
)
from pkd_kernels.conv.forward import LayerOutput, LayerProblem, empty_output, layer_problem
from pkd_kernels.reference import ConvLayer

Result = TypeVar("Result")
P = TypeVar("P")
Schedule = Generator[list[P], None, Result]

# Three values for each layer: of its weight, gamma and beta.
Buffers = list[tuple[Tensor | None, ...]]
Gradients = list[list[Tensor | None]]


def lockstep(*schedules: Schedule[P, Any]) -> Schedule[P, list[Any]]:
    """Run schedules side by side; return their results."""
    results: list[Any] = [None] * len(schedules)
    running = dict(enumerate(schedules))
    while running:
        launch: list[P] = []
        for number, schedule in list(running.items()):
            problems, results[number] = _advance(schedule)
            if problems is None:
                del running[number]
            else:
                launch += problems
        if launch:
            yield launch
    return results


def run(
    schedule: Schedule[P, Result], launch: Callable[[Sequence[P], int], None], stack: int
) -> Result:
    """Launch the problems of a schedule, level by level; return its result."""
    problems, result = _advance(schedule)
    while problems is not None:
        launch(problems, stack)
        problems, result = _advance(schedule)
    return result


def _advance(schedule: Schedule[P, Result]) -> tuple[list[P] | None, Any]:
    """The problems of the next launch and None; at the end None and the result."""
    try:
        return next(schedule), None
    except StopIteration as end:
        return None, end.value


def forward_chain(
    x: Tensor,
    layers: Sequence[ConvLayer],
    stack: int,
    *,
    save: bool,
    into: Sequence[LayerOutput] | None = None,
    kept: Sequence[int] | None = None,
) -> Schedule[LayerProblem, list[LayerOutput]]:
    """Run layers one after the other.

    Args:
        x: contiguous input of the first layer.
        layers: the chain.
        stack: M.
        save: whether to keep what the backward pass needs.
        into: memory for the outputs; None allocates.
        kept: indices of the outputs to return, ascending; None returns all. The memory of all
            others is free.
    """
    outputs = []
    for index, layer in enumerate(layers):
        if into is None:
            output = empty_output(x, layer, stack, save=save, first=index == 0)
        else:
            output = into[index]
        yield [layer_problem(x, output, stack)]
        if kept is None or index in kept:
            outputs.append(output)
        x = output.y
    return outputs


class Requested(NamedTuple):
    """The gradients that a backward pass computes.

    Attributes:
        x: whether the input needs one.
        parameters: whether weight, gamma and beta of each layer need one.
        buffers: where each parameter's gradient is written; None allocates.
    """

    x: bool
    parameters: list[tuple[bool, ...]]
    buffers: Buffers

    @property
    def any(self) -> bool:
        """Whether anything needs a gradient."""
        return self.reaches(len(self.parameters) - 1)

    def reaches(self, index: int) -> bool:
        """Whether layer `index`, or anything before it, needs a gradient."""
        return self.x or any(any(needed) for needed in self.parameters[: index + 1])


class ChainGradients(NamedTuple):
    """Result of a chain's backward pass.

    Attributes:
        readers: of the chain's input: its first layer; empty where the input needs no gradient.
        waiting: problems of the first layers, for the next launch, whichever it is.
        parameters: gradients of every layer's parameters; None where not requested.
    """

    readers: list[Reader]
    waiting: list[Problem]
    parameters: Gradients


def backward_chain(
    x: tuple[Tensor, ...],
    outputs: Sequence[LayerOutput],
    tapped: dict[int, Tensor],
    requested: Requested,
    stack: int,
    readers: Sequence[Reader] = (),
    waiting: Sequence[Problem] = (),
) -> Schedule[Problem, ChainGradients]:
    """Gradients of a chain, from its last layer to its first: one launch for each map.

    Args:
        x: input of the chain; several tensors are equal parts of the images.
        outputs: all layers after their forward pass.
        tapped: gradients of the outputs of layers, by index.
        requested: which gradients to compute.
        stack: M.
        readers: layers that read the last output, beside `tapped`.
        waiting: problems of other chains, for the first launch.
    """
    grads: Gradients = [[None] * 3 for _ in outputs]
    readers, waiting = list(readers), list(waiting)
    last = len(outputs) - 1 if readers else max(tapped, default=-1)
    for index in range(last, -1, -1):
        if not requested.reaches(index):
            return ChainGradients([], waiting, grads)
        output, (weight_needed, *affine_needed) = outputs[index], requested.parameters[index]
        buffer, *affine_targets = requested.buffers[index]
        parts, grads[index][1:], pending = affine_buffers(output, affine_needed, affine_targets)
        problem = map_problem(output.y, readers, tapped.get(index), output, parts, stack)
        if problem is not None:
            yield [problem, *waiting]
            waiting = []
        dc = tapped[index].contiguous() if problem is None else problem.pointers.out
        if weight_needed:
            buffer = torch.empty_like(output.layer.weight) if buffer is None else buffer
            grads[index][0] = buffer
            before = (outputs[index - 1].y,) if index else x
            waiting.append(weight_problem(before, output, dc, buffer, stack))
        if pending is not None:
            waiting.append(pending)
        readers = [Reader(dc, output)]
    return ChainGradients(readers if requested.x else [], waiting, grads)
