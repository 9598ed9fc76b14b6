"""The models of a run in stacks that fit the device's memory."""

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
