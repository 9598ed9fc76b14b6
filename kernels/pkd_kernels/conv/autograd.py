"""Chains of layers for autograd: one launch a layer forward and one launch a layer backward.

The backward launch of a layer carries the gradient on to the convolution of the layer before, so
only the last layer's output may need a further launch. The gradient of a tapped output is added
by the launch that passes it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pkd_kernels.conv.backward import AffineGradients, backward_layer, output_gradient
from pkd_kernels.conv.forward import LayerOutput, forward_layer
from pkd_kernels.operators import once_differentiable
from pkd_kernels.reference import ConvLayer, accumulator

# Three values for each layer: of its weight, gamma and beta.
Buffers = list[tuple[Tensor | None, ...]]
Gradients = list[list[Tensor | None]]


def _forward(
    x: Tensor, layers: Sequence[ConvLayer], stack: int, kept: Sequence[int] | None
) -> dict[int, LayerOutput]:
    """Run the layers on a contiguous x.

    Args:
        x: input of the first layer.
        layers: the chain.
        stack: M.
        kept: indices of the outputs to keep; None keeps all, with what `_backward` needs.

    Returns:
        The kept outputs by index; the memory of all others is free.
    """
    outputs: dict[int, LayerOutput] = {}
    for index, layer in enumerate(layers):
        output = forward_layer(x, layer, stack, save=kept is None, first=index == 0)
        if kept is None or index in kept:
            outputs[index] = output
        x = output.y
    return outputs


class _Requested(NamedTuple):
    """The gradients that a backward pass computes.

    Attributes:
        x: whether the input needs one.
        parameters: whether weight, gamma and beta of each layer need one.
        buffers: where each parameter's gradient is written; None allocates.
    """

    x: bool
    parameters: list[tuple[bool, ...]]
    buffers: Buffers

    def before(self, index: int) -> bool:
        """Whether anything before layer `index` needs a gradient."""
        return self.x or any(any(needed) for needed in self.parameters[:index])


def _affine_buffers(
    output: LayerOutput, requested: _Requested, index: int
) -> AffineGradients | None:
    """Buffers for a layer's gradients of gamma and beta; None where nothing is normalised."""
    affine = [p for p in (output.layer.gamma, output.layer.beta) if p is not None]
    if not affine:
        return None
    needed, buffers = requested.parameters[index][1:], requested.buffers[index][1:]
    targets = tuple(
        buffer if on and buffer is not None else torch.empty_like(p)
        for p, on, buffer in zip(affine, needed, buffers, strict=True)
    )
    batch, channels = output.y.shape[:2]
    if batch == 1:
        return AffineGradients(targets, targets)
    dtype = accumulator(output.y)
    parts = tuple(output.y.new_empty(batch, channels, dtype=dtype) for _ in targets)
    return AffineGradients(parts, targets)


def _backward(
    x: Tensor,
    outputs: Sequence[LayerOutput],
    tapped: dict[int, Tensor],
    stack: int,
    requested: _Requested,
) -> tuple[Tensor | None, Gradients]:
    """Gradients of x and of every layer's parameters; None where not requested.

    Args:
        x: input of the chain.
        outputs: all layers after their forward pass.
        tapped: gradients of the outputs of layers, by index; at least one.
        stack: M.
        requested: which gradients to compute.
    """
    last = max(tapped)
    grads: Gradients = [[None] * 3 for _ in outputs]

    def affine_of(index: int) -> AffineGradients | None:
        affine = _affine_buffers(outputs[index], requested, index)
        if affine is None:
            return None
        needed = requested.parameters[index][1:]
        grads[index][1:] = [t if on else None for t, on in zip(affine.targets, needed, strict=True)]
        return affine

    affine = affine_of(last)
    grad = output_gradient(tapped[last], outputs[last], affine)
    for index in range(last, -1, -1):
        weight_needed, *affine_needed = requested.parameters[index]
        through = requested.before(index)
        pending = affine if affine and affine.needs_sum and any(affine_needed) else None
        if weight_needed:
            buffer = requested.buffers[index][0]
            weight = outputs[index].layer.weight
            grads[index][0] = torch.empty_like(weight) if buffer is None else buffer
        if not (weight_needed or through or pending):
            break
        before = outputs[index - 1] if index else None
        affine = affine_of(index - 1) if before and through else None
        grad = backward_layer(
            grad,
            before.y if before else x,
            outputs[index],
            pending,
            before,
            affine,
            tapped.get(index - 1),
            stack,
            grads[index][0],
            through,
        )
        if not through:
            break
    if not requested.x:
        return None, grads
    shared = grad.shape != x.shape
    return grad.unflatten(1, (stack, -1)).sum(1) if shared else grad, grads


def _parameters(layers: Sequence[ConvLayer]) -> list[Tensor | None]:
    return [p for layer in layers for p in layer[:3]]


def _in_threes(values: Sequence[Any]) -> list[tuple[Any, ...]]:
    return [tuple(values[i : i + 3]) for i in range(0, len(values), 3)]


def _save(ctx: Any, x: Tensor, outputs: Sequence[LayerOutput]) -> None:
    """Keep a chain for the backward pass; `_saved` restores it."""
    ctx.options = [(output.layer[3:], output.geometry) for output in outputs]
    tensors = [t for o in outputs for t in (*o.layer[:3], o.y, o.u, o.rstd)]
    ctx.save_for_backward(x, *tensors)


def _saved(ctx: Any) -> tuple[Tensor, list[LayerOutput]]:
    x, *tensors = ctx.saved_tensors
    outputs = []
    for i, (options, geometry) in enumerate(ctx.options):
        weight, gamma, beta, y, u, rstd = tensors[6 * i : 6 * i + 6]
        layer = ConvLayer(weight, gamma, beta, *options)
        outputs.append(LayerOutput(layer, geometry, y, u, rstd))
    return x, outputs


def _main_grads(parameters: Sequence[Tensor | None]) -> Buffers:
    return _in_threes([getattr(p, "main_grad", None) for p in parameters])


def _for_autograd(grads: Gradients, buffers: Buffers) -> list[Tensor | None]:
    """The gradients that autograd receives: None where one was written into a buffer."""
    return [
        None if buffer is not None else grad
        for layer_grads, layer_buffers in zip(grads, buffers, strict=True)
        for grad, buffer in zip(layer_grads, layer_buffers, strict=True)
    ]


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
        outputs = _forward(x, layers, stack, kept=None if save else taps)
        if save:
            _save(ctx, x, list(outputs.values()))
        ctx.taps, ctx.stack, ctx.buffers = taps, stack, _main_grads(parameters)
        ctx.set_materialize_grads(False)
        return tuple(outputs[tap].y for tap in taps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        tapped = {tap: g for tap, g in zip(ctx.taps, grads, strict=True) if g is not None}
        if not tapped:
            return (None,) * len(ctx.needs_input_grad)
        x, outputs = _saved(ctx)
        needed = ctx.needs_input_grad
        requested = _Requested(needed[0], _in_threes(needed[5:]), ctx.buffers)
        x_grad, parameter_grads = _backward(x, outputs, tapped, ctx.stack, requested)
        return x_grad, None, None, None, None, *_for_autograd(parameter_grads, ctx.buffers)


def _concatenated(real: Tensor, fake: Tensor) -> Tensor:
    """Both as one batch; without a copy where they are adjacent halves of one tensor."""
    adjacent = fake.data_ptr() == real.data_ptr() + real.nbytes
    same = real.untyped_storage().data_ptr() == fake.untyped_storage().data_ptr()
    if adjacent and same and real.is_contiguous() and fake.is_contiguous():
        # The batch stride of a single row is arbitrary: view both as one run of memory.
        return real.as_strided((2 * real.numel(),), (1,)).view(2 * len(real), *real.shape[1:])
    return torch.cat([real, fake])


class _PairOfParameters(torch.autograd.Function):
    """The last layer's outputs of a finished chain, as functions of its parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        outputs: Sequence[LayerOutput],
        stack: int,
        *parameters: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        _save(ctx, x, outputs)
        ctx.stack, ctx.buffers = stack, _main_grads(parameters)
        real, fake = outputs[-1].y.detach().chunk(2)
        return real.detach(), fake.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, outputs = _saved(ctx)
        requested = _Requested(False, _in_threes(ctx.needs_input_grad[3:]), ctx.buffers)
        tapped = {len(outputs) - 1: _concatenated(*grads)}
        _, parameter_grads = _backward(x, outputs, tapped, ctx.stack, requested)
        return None, None, None, *_for_autograd(parameter_grads, ctx.buffers)


class _PairOfInput(torch.autograd.Function):
    """A tapped output of the second half of a finished chain, as a function of its input."""

    @staticmethod
    def forward(ctx: Any, fake: Tensor, outputs: Sequence[LayerOutput], stack: int) -> Tensor:
        half = len(fake)
        halves = [
            o._replace(
                y=o.y[half:],
                u=None if o.u is None else o.u[half:],
                rstd=None if o.rstd is None else o.rstd[half:],
            )
            for o in outputs
        ]
        _save(ctx, fake.contiguous(), halves)
        ctx.stack = stack
        return outputs[-1].y[half:].detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        fake, outputs = _saved(ctx)
        constant: list[tuple[bool, ...]] = [(False,) * 3 for _ in outputs]
        no_buffers: Buffers = [(None,) * 3 for _ in outputs]
        requested = _Requested(True, constant, no_buffers)
        x_grad, _ = _backward(fake, outputs, {len(outputs) - 1: grad}, ctx.stack, requested)
        return x_grad, None, None


def _needs_backward(*tensors: Tensor | None) -> bool:
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
    parameters = _parameters(layers)
    save = _needs_backward(x, *parameters)
    return _Chain.apply(x, tuple(layers), tuple(taps), stack, save, *parameters)


def conv_chain_pair(
    real: Tensor, fake: Tensor, layers: Sequence[ConvLayer], *, tap: int, stack: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`reference.conv_chain_pair`: one forward pass, differentiated as two functions.

    `y_real` and `y_fake` are functions of the parameters alone (see `conv_chain` for `main_grad`).
    `f_fake` is a function of `fake` alone; its gradient uses the second half of the batch and
    computes no weight gradient. `f_real` is a constant.
    """
    with torch.no_grad():
        x = torch.cat([real, fake])
        outputs = list(_forward(x, layers, stack, kept=None).values())
    y_real, y_fake = _PairOfParameters.apply(x, outputs, stack, *_parameters(layers))
    f_fake = _PairOfInput.apply(fake, outputs[: tap + 1], stack)
    return y_real, y_fake, outputs[tap].y[: len(real)], f_fake


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
