"""Chains of layers for autograd: a launch a layer forward, and a launch a layer backward.

The kernels are in `conv_layer`: backward of a layer carries the gradient on to the convolution of
the layer before, so only the last layer's output may need a launch of its own, and a chain keeps
the gradients of its tapped outputs for the launch that passes them. `conv_norm_act` is a chain of
one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pkd_kernels.conv_layer import (
    Affine,
    Done,
    backward_layer,
    forward_layer,
    output_gradient,
)
from pkd_kernels.custom_op import once_differentiable
from pkd_kernels.reference import ConvLayer


def _forward(
    x: Tensor, layers: Sequence[ConvLayer], taps: Sequence[int], stack: int, save: bool
) -> list[Done | None]:
    """The layers on x, which is contiguous, one launch each; with `save` ready for `_backward`,
    without it only those that are tapped."""
    done = []
    for index, layer in enumerate(layers):
        done.append(forward_layer(done[-1].y if done else x, layer, stack, save, first=not done))
        if index and not save and index - 1 not in taps:
            done[index - 1] = None
    return done


class _Wanted(NamedTuple):
    """Which gradients a backward pass makes, and where those of parameters go."""

    x: bool
    parameters: list[tuple[bool, bool, bool]]  # of weight, gamma and beta of each layer
    buffers: list[tuple[Tensor | None, ...]]  # to be written into, or None

    def below(self, index: int) -> bool:
        """Whether anything before layer `index` wants a gradient."""
        return self.x or any(any(wanted) for wanted in self.parameters[:index])


def _affine(done: Done, wanted: _Wanted, index: int) -> Affine | None:
    """Room for a layer's gradients of gamma and beta; None where nothing is normalised."""
    if done.layer.gamma is None:
        return None
    _, *places = zip(done.layer[:3], wanted.parameters[index], wanted.buffers[index], strict=True)
    targets = tuple(
        buffer if on and buffer is not None else torch.empty_like(p) for p, on, buffer in places
    )
    batch, channels = done.y.shape[:2]
    if batch == 1:
        return Affine(targets, targets)
    return Affine(tuple(done.rstd.new_empty(batch, channels) for _ in targets), targets)


def _backward(
    x: Tensor, done: Sequence[Done], tapped: dict[int, Tensor], stack: int, wanted: _Wanted
) -> tuple[Tensor | None, list[list[Tensor | None]]]:
    """Gradient to x, and of weight, gamma and beta of every layer; None where not wanted.

    Args:
        tapped: gradients to the outputs of layers, by their index; at least one.
    """
    last = max(tapped)
    found: list[list[Tensor | None]] = [[None] * 3 for _ in done]

    def room(index: int) -> Affine | None:
        made = _affine(done[index], wanted, index)
        if made:
            pairs = zip(made.targets, wanted.parameters[index][1:], strict=True)
            found[index][1:] = [target if on else None for target, on in pairs]
        return made

    own = room(last)
    grad = output_gradient(tapped[last], done[last], own)
    for index in range(last, -1, -1):
        weight, *affine_wanted = wanted.parameters[index]
        through = wanted.below(index)
        pending = own if own and own.to_be_summed and any(affine_wanted) else None
        if weight:
            buffer = wanted.buffers[index][0]
            found[index][0] = (
                torch.empty_like(done[index].layer.weight) if buffer is None else buffer
            )
        if not (weight or through or pending):
            break
        before = done[index - 1] if index else None
        own = room(index - 1) if before and through else None
        grad = backward_layer(
            grad,
            before.y if before else x,
            done[index],
            pending,
            before,
            own,
            tapped.get(index - 1),
            stack,
            found[index][0],
            through,
        )
        if not through:
            break
    if not wanted.x:
        return None, found
    shared = grad.shape != x.shape
    return grad.unflatten(1, (stack, -1)).sum(1) if shared else grad, found


def _parameters(layers: Sequence[ConvLayer]) -> list[Tensor | None]:
    return [p for layer in layers for p in layer[:3]]


def _in_threes(values: Sequence) -> list[tuple]:
    return [tuple(values[i : i + 3]) for i in range(0, len(values), 3)]


def _save(ctx, x: Tensor, done: Sequence[Done]) -> None:
    """Keep a chain that has run for the backward pass, which `_saved` gives back."""
    ctx.steps = [(step.layer[3:], step.form) for step in done]
    tensors = [t for step in done for t in (*step.layer[:3], step.y, step.u, step.rstd)]
    ctx.save_for_backward(x, *tensors)


def _saved(ctx) -> tuple[Tensor, list[Done]]:
    x, *tensors = ctx.saved_tensors
    done = []
    for i, (options, form) in enumerate(ctx.steps):
        own = tensors[6 * i : 6 * i + 6]
        done.append(Done(ConvLayer(*own[:3], *options), form, *own[3:]))
    return x, done


def _main_grads(parameters: Sequence[Tensor | None]) -> list[tuple[Tensor | None, ...]]:
    return _in_threes([getattr(p, "main_grad", None) for p in parameters])


def _returned(found: list[list[Tensor | None]], buffers: list[tuple]) -> list[Tensor | None]:
    """What autograd gets: nothing where the gradient went into a buffer."""
    return [
        None if buffer is not None else grad
        for grads, targets in zip(found, buffers, strict=True)
        for grad, buffer in zip(grads, targets, strict=True)
    ]


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, layers, taps, stack, save, *parameters):
        x = x.contiguous()
        done = _forward(x, layers, taps, stack, save)
        if save:
            _save(ctx, x, done)
        ctx.taps, ctx.stack, ctx.buffers = taps, stack, _main_grads(parameters)
        ctx.set_materialize_grads(False)
        return tuple(done[tap].y for tap in taps)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        tapped = {tap: g for tap, g in zip(ctx.taps, grads, strict=True) if g is not None}
        if not tapped:
            return (None,) * len(ctx.needs_input_grad)
        x, done = _saved(ctx)
        needs = ctx.needs_input_grad
        wanted = _Wanted(needs[0], _in_threes(needs[5:]), ctx.buffers)
        x_grad, found = _backward(x, done, tapped, ctx.stack, wanted)
        return x_grad, None, None, None, None, *_returned(found, ctx.buffers)


def _joined(real: Tensor, fake: Tensor) -> Tensor:
    """Both as one batch; without a copy where they lie one behind the other, as halves do."""
    adjacent = fake.data_ptr() == real.data_ptr() + real.nbytes
    same = real.untyped_storage().data_ptr() == fake.untyped_storage().data_ptr()
    if adjacent and same and real.is_contiguous() and fake.is_contiguous():
        # Of a single row the stride says nothing: both are one stretch of memory.
        return real.as_strided((2 * real.numel(),), (1,)).view(2 * len(real), *real.shape[1:])
    return torch.cat([real, fake])


class _PairOfParameters(torch.autograd.Function):
    """The last layer's outputs of a chain that has run, as functions of its parameters."""

    @staticmethod
    def forward(ctx, x, done, stack, *parameters):
        _save(ctx, x, done)
        ctx.stack, ctx.buffers = stack, _main_grads(parameters)
        real, fake = done[-1].y.detach().chunk(2)
        return real.detach(), fake.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        x, done = _saved(ctx)
        wanted = _Wanted(False, _in_threes(ctx.needs_input_grad[3:]), ctx.buffers)
        tapped = {len(done) - 1: _joined(*grads)}
        _, found = _backward(x, done, tapped, ctx.stack, wanted)
        return None, None, None, *_returned(found, ctx.buffers)


class _PairOfInput(torch.autograd.Function):
    """A tapped output of the second half of a chain that has run, as a function of its input."""

    @staticmethod
    def forward(ctx, fake, done, stack):
        half = len(fake)
        own = [Done(*d[:2], *(t if t is None else t[half:] for t in d[2:])) for d in done]
        _save(ctx, fake.contiguous(), own)
        ctx.stack = stack
        return done[-1].y[half:].detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        fake, done = _saved(ctx)
        none = [(False,) * 3 for _ in done]
        wanted = _Wanted(True, none, [(None,) * 3 for _ in done])
        x_grad, _ = _backward(fake, done, {len(done) - 1: grad}, ctx.stack, wanted)
        return x_grad, None, None


def _recorded(*tensors: Tensor | None) -> bool:
    """Whether autograd will ask for a gradient of these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def conv_chain(
    x: Tensor, layers: Sequence[ConvLayer], *, taps: Sequence[int], stack: int = 1
) -> tuple[Tensor, ...]:
    """`reference.conv_chain`: a launch a layer forward, and a launch a layer backward.

    The gradient of a parameter that has a contiguous tensor `main_grad` is written there, in place
    of what was in it, and autograd gets none. Where no gradient arrives, nothing is written.

    Raises:
        ValueError: taps do not ascend, or a layer is none that the kernels know (see `_form`).
    """
    if list(taps) != sorted(set(taps).intersection(range(len(layers)))) or not taps:
        raise ValueError(f"taps {tuple(taps)} are not ascending indices of {len(layers)} layers")
    parameters = _parameters(layers)
    save = _recorded(x, *parameters)
    return _Chain.apply(x, tuple(layers), tuple(taps), stack, save, *parameters)


def conv_chain_pair(
    real: Tensor, fake: Tensor, layers: Sequence[ConvLayer], *, tap: int, stack: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`reference.conv_chain_pair`: run once, differentiated as two functions.

    `y_real` and `y_fake` are functions of the parameters alone (see `conv_chain` for `main_grad`),
    `f_fake` is one of `fake` alone, whose gradient takes the second half of the batch and makes no
    gradient of a weight; `f_real` is a constant.
    """
    with torch.no_grad():
        x = torch.cat([real, fake])
        done = _forward(x, layers, (tap,), stack, save=True)
    y_real, y_fake = _PairOfParameters.apply(x, done, stack, *_parameters(layers))
    f_fake = _PairOfInput.apply(fake, done[: tap + 1], stack)
    return y_real, y_fake, done[tap].y[: len(real)], f_fake


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
    """`reference.conv_norm_act` in one launch; backward one, or two where y is not c itself."""
    layer = ConvLayer(weight, gamma, beta, stride, padding, transposed, activation)
    (y,) = conv_chain(x, [layer], taps=(0,), stack=stack)
    return y
