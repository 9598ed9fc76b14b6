"""Chains of layers for autograd: one launch a layer forward and one launch a layer backward.

The launch that computes a map's gradient carries it on to the convolution of the layer before, so
only the last layer's output may need a further launch. The gradient of a tapped output is added
by the launch of its map. The gradient of a layer's weight is in the launch after.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pkd_kernels.conv.backward import Problem, launch_gradients, map_problem
from pkd_kernels.conv.forward import LayerOutput, launch_layers
from pkd_kernels.conv.schedule import (
    Buffers,
    Gradients,
    Requested,
    Schedule,
    backward_chain,
    forward_chain,
    run,
)
from pkd_kernels.operators import once_differentiable
from pkd_kernels.reference import ConvLayer


def parameters_of(layers: Sequence[ConvLayer]) -> list[Tensor | None]:
    """Weight, gamma and beta of every layer."""
    return [p for layer in layers for p in layer[:3]]


def in_threes(values: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Values of every layer's weight, gamma and beta."""
    return [tuple(values[i : i + 3]) for i in range(0, len(values), 3)]


def save_for_backward(ctx: Any, x: Tensor, outputs: Sequence[LayerOutput]) -> None:
    """Keep layers and an input for the backward pass; `saved_outputs` restores them."""
    ctx.options = [(output.layer[3:], output.geometry) for output in outputs]
    tensors = [t for o in outputs for t in (*o.layer[:3], o.y, o.u, o.rstd)]
    ctx.save_for_backward(x, *tensors)


def saved_outputs(ctx: Any) -> tuple[Tensor, list[LayerOutput]]:
    """The input and the layers of `save_for_backward`."""
    x, *tensors = ctx.saved_tensors
    outputs = []
    for i, (options, geometry) in enumerate(ctx.options):
        weight, gamma, beta, y, u, rstd = tensors[6 * i : 6 * i + 6]
        layer = ConvLayer(weight, gamma, beta, *options)
        outputs.append(LayerOutput(layer, geometry, y, u, rstd))
    return x, outputs


def main_grads(parameters: Sequence[Tensor | None]) -> Buffers:
    """Where each parameter's gradient is written; None where autograd receives it."""
    return in_threes([getattr(p, "main_grad", None) for p in parameters])


def for_autograd(grads: Gradients, buffers: Buffers) -> list[Tensor | None]:
    """The gradients that autograd receives: None where one was written into a buffer."""
    return [
        None if buffer is not None else grad
        for layer_grads, layer_buffers in zip(grads, buffers, strict=True)
        for grad, buffer in zip(layer_grads, layer_buffers, strict=True)
    ]


def _backward(
    x: Tensor,
    outputs: Sequence[LayerOutput],
    tapped: dict[int, Tensor],
    requested: Requested,
    stack: int,
) -> Schedule[Problem, tuple[Tensor | None, Gradients]]:
    """Gradients of a chain's input, of every model, and of its parameters; None: not requested."""
    chain = yield from backward_chain((x,), outputs, tapped, requested, stack)
    x_grad, problems = None, chain.waiting
    if requested.x:
        problem = map_problem(x, chain.readers, None, None, (None, None), stack)
        assert problem is not None
        x_grad, problems = problem.pointers.out, [problem, *problems]
    if problems:
        yield problems
    return x_grad, chain.parameters


class _Chain(torch.autograd.Function):
    """A chain that is differentiated in its input and all parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        layers: Sequence[ConvLayer],
        taps: Sequence[int],
        stack: int,
        save: bool,
        *parameters: Tensor | None,
    ) -> tuple[Tensor, ...]:
        x = x.contiguous()
        chain = forward_chain(x, layers, stack, save=save, kept=None if save else taps)
        outputs = run(chain, launch_layers, stack)
        ctx.taps, ctx.stack, ctx.buffers = taps, stack, main_grads(parameters)
        ctx.set_materialize_grads(False)
        if not save:
            return tuple(output.y for output in outputs)
        save_for_backward(ctx, x, outputs)
        return tuple(outputs[tap].y for tap in taps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        tapped = {tap: g for tap, g in zip(ctx.taps, grads, strict=True) if g is not None}
        if not tapped:
            return (None,) * len(ctx.needs_input_grad)
        x, outputs = saved_outputs(ctx)
        needed, stack = ctx.needs_input_grad, ctx.stack
        requested = Requested(needed[0], in_threes(needed[5:]), ctx.buffers)
        schedule = _backward(x, outputs, tapped, requested, stack)
        x_grad, parameter_grads = run(schedule, launch_gradients, stack)
        if x_grad is not None and x_grad.shape != x.shape:  # of images that models share
            x_grad = x_grad.unflatten(1, (stack, -1)).sum(1)
        return x_grad, None, None, None, None, *for_autograd(parameter_grads, ctx.buffers)


def needs_backward(*tensors: Tensor | None) -> bool:
    """Whether autograd records an operation on these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def conv_chain(
    x: Tensor, layers: Sequence[ConvLayer], *, taps: Sequence[int], stack: int = 1
) -> tuple[Tensor, ...]:
    """`reference.conv_chain`, one launch a layer forward and one launch a layer backward.

    The gradient of a parameter with a contiguous tensor attribute `main_grad` overwrites that
    tensor, and autograd receives None. A backward pass that does not reach a parameter leaves its
    `main_grad` unchanged.

    Raises:
        ValueError: taps do not ascend, or the kernels do not support a layer (`layer_geometry`).
    """
    if list(taps) != sorted(set(taps).intersection(range(len(layers)))) or not taps:
        raise ValueError(f"taps {tuple(taps)} are not ascending indices of {len(layers)} layers")
    parameters = parameters_of(layers)
    save = needs_backward(x, *parameters)
    return _Chain.apply(x, tuple(layers), tuple(taps), stack, save, *parameters)


def conv_norm_act(
    x: Tensor,
    weight: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    stack: int = 1,
    stride: int = 2,
    padding: int = 1,
    transposed: bool = False,
    activation: str = "none",
) -> Tensor:
    """`reference.conv_norm_act` in one launch; backward in one, or two with norm or activation."""
    layer = ConvLayer(weight, gamma, beta, stride, padding, transposed, activation)
    (y,) = conv_chain(x, [layer], taps=(0,), stack=stack)
    return y
