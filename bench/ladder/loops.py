"""Training loops of the ladder; each trains the members of a stack from a `TrainingSetup`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from bench.baseline import (
    Outputs,
    PlainGAN,
    PlainLoop,
    PlainNetwork,
    copy_parameters,
    member_parameters,
)
from bench.ladder.networks import FunctionalNetwork, VmapNetwork, plain_gan
from bench.ladder.training_setup import ROLES, TrainingSetup
from pkd.models.ganomaly import GAN
from pkd.models.stack import Member
from pkd.training.cuda_graph import capture_call, restored
from pkd.training.trainer import Trainer


class Contender(Protocol):
    """A way to train `members`: a rung of the ladder, or a peer."""

    members: Sequence[Member]

    def advance(self, steps: int) -> None:
        """Perform that many further steps, without synchronisation at the end."""

    def trained(self, index: int) -> dict[str, list[Tensor]]:
        """Return parameters of members[index] by network: "teacher", "student" or both.

        Contains the networks that the structure trains, in the order of a plain network.
        """


class Plain:
    """`bench.baseline`, one model.

    Args:
        setup: networks and images.
        members: the one member.
        network: trainer of one GAN, see `PlainLoop`.
        cached: read the outputs of a frozen teacher from a table instead of running it.
    """

    def __init__(
        self,
        setup: TrainingSetup,
        members: Sequence[Member],
        network: Callable[..., PlainNetwork] = PlainNetwork,
        cached: bool = False,
    ):
        self.members = members
        gans = {role: self.trainable(setup.gan(role, members)) for role in ROLES}
        self.networks = {name: gans[name] for name in setup.structure.trained}
        self.loop = PlainLoop(setup.structure, *gans.values(), network=network)
        self.images = setup.images(members).flatten(0, 1)  # (M * images, C, 32, 32)
        cached = cached and setup.structure.cached_teacher
        self.teacher_outputs = _teacher_outputs(setup, members) if cached else None
        first_rows = torch.arange(len(members)) * setup.images_per_class
        order = first_rows + setup.order(members)
        self.order = order.to(setup.device)  # (images, M) rows of self.images
        self.rows = order[:, 0].tolist()
        self.steps_done = 0

    def trainable(self, gan: GAN) -> nn.Module:
        """Return the networks that the loop trains, with the weights of `gan`."""
        network = plain_gan(gan.architecture).to(next(gan.parameters()).device)
        copy_parameters(network, member_parameters(gan, 0, 1))
        return network

    def step(self, rows: slice | Tensor) -> None:
        """Train one step on these rows of the images."""
        target = self.teacher_outputs and Outputs(*(t[rows] for t in self.teacher_outputs))
        self.loop.step(self.images[rows], target)

    def positions(self, steps: int) -> Iterator[int]:
        """Yield the positions in `order` for that many further steps, in endless passes."""
        for step in range(self.steps_done, self.steps_done + steps):
            yield step % len(self.rows)
        self.steps_done += steps

    def advance(self, steps: int) -> None:
        """Perform that many further steps."""
        for position in self.positions(steps):
            row = self.rows[position]
            self.step(slice(row, row + 1))  # a view: no launch

    def trained(self, index: int) -> dict[str, list[Tensor]]:
        """Return the parameters of the one member."""
        return {
            name: [p.detach() for p in network.parameters()]
            for name, network in self.networks.items()
        }

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Return torch's optimizers of the trained networks."""
        networks = [n for n in (self.loop.trained_teacher, self.loop.student) if n is not None]
        return [adam for n in networks for adam in (n.optimizer_g, n.optimizer_d)]


@torch.no_grad()
def _teacher_outputs(setup: TrainingSetup, members: Sequence[Member]) -> Outputs:
    """Outputs of the frozen teachers on all images, each (M * images, ...)."""
    stacked = setup.gan("teacher", members)
    teacher: PlainGAN = plain_gan(stacked.architecture).to(setup.device)
    outputs = []
    for m, images in enumerate(setup.images(members)):
        copy_parameters(teacher, member_parameters(stacked, m, len(members)))
        outputs.append(teacher.generator(images))
    return Outputs(*map(torch.cat, zip(*outputs, strict=True)))


class Vmap(Plain):
    """A stack by `torch.func`; the outputs of frozen teachers are cached."""

    def __init__(self, setup: TrainingSetup, members: Sequence[Member], capturable: bool = False):
        adam = partial(torch.optim.Adam, fused=True, capturable=capturable)
        super().__init__(setup, members, partial(VmapNetwork, adam=adam), cached=True)

    def trainable(self, gan: GAN) -> nn.Module:
        """Return the stack itself: `VmapNetwork` trains views of its parameters."""
        return gan

    def advance(self, steps: int) -> None:
        """Perform that many further steps."""
        for position in self.positions(steps):
            self.step(self.order[position])

    def trained(self, index: int) -> dict[str, list[Tensor]]:
        """Return the parameters of members[index]."""
        return _stacked_parameters(self.networks, index, len(self.members))


def _stacked_parameters(
    networks: dict[str, nn.Module], index: int, stack: int
) -> dict[str, list[Tensor]]:
    return {name: member_parameters(gan, index, stack) for name, gan in networks.items()}


class Graphed:
    """The whole step of a plain contender as one CUDA graph; its static input is the rows.

    The first `advance` captures the graph. The contender's Adam must be capturable.
    """

    def __init__(self, inner: Plain):
        self.inner, self.members, self.trained = inner, inner.members, inner.trained
        self.rows = inner.order[0].clone()
        self.replay: Callable[[], None] | None = None

    def capture(self) -> Callable[[], None]:
        """Capture a step; afterwards weights and optimizers are as before the first step."""
        params = [p for network in self.inner.networks.values() for p in network.parameters()]
        with restored(params):
            replay = capture_call(lambda: self.inner.step(self.rows))
        with torch.no_grad():
            for optimizer in self.inner.optimizers():
                for state in optimizer.state.values():
                    for tensor in state.values():
                        tensor.zero_()
        return replay

    def advance(self, steps: int) -> None:
        """Perform that many further steps."""
        self.replay = self.replay or self.capture()
        for position in self.inner.positions(steps):
            self.rows.copy_(self.inner.order[position])
            self.replay()


def compiled(mode: str | None, setup: TrainingSetup, members: Sequence[Member]) -> Plain:
    """Return the plain loop with its step under torch.compile.

    `FunctionalNetwork` has one graph break, at Adam. The plain network would break at every
    `zero_grad`, `backward` and `step`.
    """
    adam = partial(torch.optim.Adam, capturable=setup.device.type == "cuda")
    plain = Plain(setup, members, partial(FunctionalNetwork, adam=adam))
    step = torch.compile(plain.loop.step, mode=mode, dynamic=False)

    def marked_step(x: Tensor, target: Outputs | None = None) -> None:
        torch.compiler.cudagraph_mark_step_begin()
        step(x, target)

    plain.loop.step = marked_step
    return plain


class Pkd:
    """`pkd.training.trainer.Trainer` with a stack of models, without reading losses back.

    Args:
        setup: networks and images.
        members: members of the stack.
        graph: capture the step as one CUDA graph; a failed capture is an error.
    """

    def __init__(self, setup: TrainingSetup, members: Sequence[Member], graph: bool = False):
        self.members = members
        gans = {role: setup.gan(role, members) for role in ROLES}
        self.trainer = Trainer(
            setup.structure,
            *gans.values(),
            members,
            setup.train_set(members),
            use_graph=graph,
            on_graph_failure=_raise_graph_failure,
        )
        self.networks = {name: gans[name] for name in setup.structure.trained}
        self.trainer.begin_epoch(0)
        self.steps_done = 0

    def advance(self, steps: int) -> None:
        """Perform that many further steps."""
        for step in range(self.steps_done, self.steps_done + steps):
            if step % len(self.trainer.order) == 0:
                self.trainer.counter.zero_()  # repeat the epoch
            self.trainer.advance()
        self.steps_done += steps

    def trained(self, index: int) -> dict[str, list[Tensor]]:
        """Return the parameters of members[index]."""
        return _stacked_parameters(self.networks, index, len(self.members))


def _raise_graph_failure(reason: str) -> None:
    """Eager steps would be another contender."""
    raise RuntimeError(f"no CUDA graph: {reason}")


class InContext:
    """A contender that is built and trained inside a context, such as a backend's flag."""

    def __init__(
        self, context: Callable[[], AbstractContextManager], build: Callable[[], Contender]
    ):
        self.context = context
        with context():
            self.inner = build()
        self.members, self.trained = self.inner.members, self.inner.trained

    def advance(self, steps: int) -> None:
        """Perform that many further steps."""
        with self.context():
            self.inner.advance(steps)
