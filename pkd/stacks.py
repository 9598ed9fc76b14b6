"""The models of a run in stacks that fit the device's memory."""

from collections.abc import Callable

from pkd.models import GAN


def stacks_of(members: int, size: int | None) -> list[slice]:
    """Stretches of at most `size` of so many members; one of all where it is None."""
    size = size or members
    return [slice(i, min(i + size, members)) for i in range(0, members, size)]


def part_of(gan: GAN, stack: slice) -> GAN:
    """A copy of some models of a stack, a stack of its own.

    It works because every tensor of a network begins with its models, one behind the other.
    """
    part = GAN(gan.architecture, range(stack.start, stack.stop))
    for own, whole in zip(part.state_dict().values(), gan.state_dict().values(), strict=True):
        own.copy_(whole.unflatten(0, (gan.stack, -1))[stack].flatten(0, 1))
    return part


def put_back(parts: dict[str, GAN], networks: dict[str, GAN], stack: slice) -> None:
    """Copy the models of `part_of`, trained since, back to where they came from."""
    for name, part in parts.items():
        gan = networks[name]
        if part is gan:
            continue
        for own, whole in zip(part.state_dict().values(), gan.state_dict().values(), strict=True):
            whole.unflatten(0, (gan.stack, -1))[stack] = own.unflatten(0, (part.stack, -1)).cpu()


def largest_stack(bytes_of: Callable[[int], int], free: int) -> int:
    """How many models fit into `free` bytes, at least 1.

    Args:
        bytes_of: memory that a stack of so many models needs, measured. What a further one adds
            is taken from stacks of one and two.
    """
    one, two = bytes_of(1), bytes_of(2)
    return 1 + max(0, free - one) // max(1, two - one)
