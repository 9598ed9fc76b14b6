"""Decorators that all kernels share: a custom operator for torch.compile, one derivative only."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch


def custom_operator(
    name: str, *, fake: Callable[..., Any], mutates: Sequence[str] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a launcher: the custom operator `pkd::name` under torch.compile, a plain call else.

    In eager mode a custom operator would cost tens of microseconds a call.

    Args:
        name: of the operator.
        fake: function of the launcher's arguments; returns empty tensors like the launcher's.
        mutates: names of the arguments that the launcher writes.
    """

    def decorate(launch: Callable[..., Any]) -> Callable[..., Any]:
        operator = torch.library.custom_op(f"pkd::{name}", launch, mutates_args=tuple(mutates))
        operator.register_fake(fake)

        @wraps(launch)
        def call(*args: Any) -> Any:
            return operator(*args) if torch.compiler.is_compiling() else launch(*args)

        return call

    return decorate


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate the backward of an autograd function: create_graph=True raises RuntimeError.

    torch's decorator of this name silently omits the second derivative where the upstream gradient
    is a constant.
    """

    @wraps(backward)
    def checked(ctx: Any, *grad_outputs: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the fused ops can be differentiated once: create_graph=True is not supported"
            )
        return backward(ctx, *grad_outputs)

    return checked
