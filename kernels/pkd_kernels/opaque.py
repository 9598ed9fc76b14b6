"""Launchers as operators that torch.compile does not look into."""

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
