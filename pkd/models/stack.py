"""The models of a run in stacks that fit the device's memory."""

from dataclasses import dataclass

import numpy as np

from pkd.models.ganomaly import GAN


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


INITIALISATION, DATA_ORDER = 0, 1


@dataclass(frozen=True)
class Member:
    """One model of a stack: the class that is normal to it, and the seed of all its randomness."""

    normal_class: int
    seed: int

    def __str__(self) -> str:
        return f"normal class {self.normal_class}, seed {self.seed}"

    def _derive(self, *purpose: int) -> np.random.SeedSequence:
        """Randomness for one purpose, independent of every neighbour and of what was drawn before.

        That makes a member of a stack equal to the same model trained alone, and lets a resumed
        run continue with the same draws without any generator state on disk.
        """
        return np.random.SeedSequence([self.seed, self.normal_class, *purpose])

    def first_weights(self, role: int) -> int:
        """Seed of the first weights of this member's network number `role`."""
        return int(self._derive(INITIALISATION, role).generate_state(1, np.uint64)[0])

    def order(self, size: int, phase: int, epoch: int) -> np.ndarray:
        """The order in which this member sees its `size` images in an epoch of a phase."""
        return np.random.default_rng(self._derive(DATA_ORDER, phase, epoch)).permutation(size)
