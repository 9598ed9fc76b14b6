"""What all launchers share with torch: torch.compile does not look into them, autograd once."""

from collections.abc import Callable, Sequence
from functools import wraps

import torch


def opaque(*, fake: Callable, mutates: Sequence[str] = ()) -> Callable[[Callable], Callable]:
    """Decorate a launcher: a custom operator `pkd::name` under torch.compile, itself in eager.

    In eager mode a custom operator would cost tens of microseconds a call.

    Args:
        fake: of the launcher's arguments; makes empty tensors like those that it returns.
        mutates: names of the arguments that the launcher writes into.
    """

    def decorate(launch: Callable) -> Callable:
        name = f"pkd::{launch.__module__.rpartition('.')[2]}_{launch.__name__}"
        operator = torch.library.custom_op(name, launch, mutates_args=tuple(mutates))
        operator.register_fake(fake)

        @wraps(launch)
        def call(*args):
            return operator(*args) if torch.compiler.is_compiling() else launch(*args)

        return call

    return decorate


def once_differentiable(backward: Callable) -> Callable:
    """Decorate a backward: create_graph=True raises, where torch's decorator of this name would
    leave the second derivative out in silence if the upstream gradient is a constant."""

    @wraps(backward)
    def checked(ctx, *upstream):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the fused ops can be differentiated once: no backward with create_graph=True"
            )
        return backward(ctx, *upstream)

    return checked
