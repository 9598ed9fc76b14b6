"""Stacks of models that are trained together, and the seeds of each model."""

from dataclasses import dataclass

import numpy as np

from pkd.models.ganomaly import GAN

# Purposes of random numbers, the last part of a seed sequence. Their values decide the numbers.
INITIALISATION, DATA_ORDER = 0, 1


@dataclass(frozen=True)
class Member:
    """A model of a stack.

    Attributes:
        normal_class: label of the class that is normal for the model.
        seed: seed of all random numbers of the model.
    """

    normal_class: int
    seed: int

    def __str__(self) -> str:
        return f"normal class {self.normal_class}, seed {self.seed}"

    def initial_seed(self, role: int) -> int:
        """Return the seed of the initial weights of a network: role 0 is teacher, 1 student."""
        return int(self._seed_sequence(INITIALISATION, role).generate_state(1, np.uint64)[0])

    def data_order(self, size: int, phase: int, epoch: int) -> np.ndarray:
        """Return a permutation (size,): the order of the training images in an epoch of a phase."""
        return np.random.default_rng(self._seed_sequence(DATA_ORDER, phase, epoch)).permutation(
            size
        )

    def _seed_sequence(self, *purpose: int) -> np.random.SeedSequence:
        """Return a seed for one purpose.

        It depends neither on other members nor on numbers drawn before. So a member of a stack
        equals the same model trained alone, and a resumed run needs no saved generator state.
        """
        return np.random.SeedSequence([self.seed, self.normal_class, *purpose])


def split_into_stacks(members: int, size: int | None) -> list[slice]:
    """Split `members` models into consecutive stacks of at most `size`; None means one stack."""
    size = size or members
    return [slice(start, min(start + size, members)) for start in range(0, members, size)]


def extract_stack(gan: GAN, stack: slice) -> GAN:
    """Copy some models of a GAN into a new, smaller GAN.

    Every tensor of a network is laid out model-major, so models are rows of its first axis.
    """
    part = GAN(gan.architecture, range(stack.start, stack.stop))
    for target, source in zip(part.state_dict().values(), gan.state_dict().values(), strict=True):
        target.copy_(source.unflatten(0, (gan.stack, -1))[stack].flatten(0, 1))
    return part


def write_back(parts: dict[str, GAN], networks: dict[str, GAN], stack: slice) -> None:
    """Copy models from `extract_stack`, trained since, into the networks that they came from.

    Args:
        parts: network name -> models of the stack. A network that is no copy needs no copying.
        networks: network name -> all models, in place; on the CPU if `parts` has copies.
        stack: the models to replace.
    """
    for name, part in parts.items():
        gan = networks[name]
        if part is gan:
            continue
        tensors = zip(gan.state_dict().values(), part.state_dict().values(), strict=True)
        for target, source in tensors:
            target.unflatten(0, (gan.stack, -1))[stack] = source.unflatten(
                0, (part.stack, -1)
            ).cpu()
