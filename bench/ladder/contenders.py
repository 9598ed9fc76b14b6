"""The ways to make a training step that the benchmarks compare: rungs of the ladder, and peers.

Each starts from the same weights and sees the same images in the same order, so that updates can be
compared before times are. Pixels are random: speed does not depend on them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Protocol
from unittest import mock

import numpy as np
import torch
from pkd_kernels import FlatAdam, discriminator_loss, dispatch, generator_loss, to_unit
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from bench.baseline import (
    Judge,
    Outputs,
    PlainGAN,
    PlainLoop,
    PlainNetwork,
    copy_parameters,
    member_parameters,
)
from bench.op_inputs import captured
from pkd.models.architecture import Architecture
from pkd.models.ganomaly import GAN, Layer
from pkd.models.stack import Member
from pkd.training.structures import KDGAN, Structure
from pkd.training.train_set import TrainSet
from pkd.training.trainer import Trainer
from pkd.utils import device as hardware

CLASSES = 10

ROLES = ("teacher", "student")


@lru_cache(maxsize=8)
def first_weights(architecture: Architecture, seeds: tuple[int, ...], device: torch.device) -> GAN:
    """A stack, not to be changed: to draw one, and to bring it to the device, takes seconds."""
    return GAN(architecture, seeds).to(device)


@torch.no_grad()
def spread(gan: GAN, models: Sequence[int]) -> GAN:
    """The stack whose m-th model is number models[m] of another."""
    device = next(gan.parameters()).device
    with device, mock.patch.object(Layer, "initialize", lambda *_: None):
        found = GAN(gan.architecture, models)  # these are no seeds: nothing is drawn
    for p, own in zip(found.parameters(), gan.parameters(), strict=True):
        p.view(len(models), -1).copy_(own.view(gan.stack, -1)[models])
    return found


@dataclass(frozen=True)
class Problem:
    """What is trained: networks, images and where."""

    teacher_widths: tuple[int, int, int]
    student_widths: tuple[int, int, int]
    images_per_class: int
    device: torch.device
    channels: int = 1
    structure: Structure = KDGAN[2]

    def members(self, stack: int) -> list[Member]:
        """Ten classes of a seed, then those of the next."""
        return [Member(m % CLASSES, m // CLASSES) for m in range(stack)]

    def gan(self, role: str, members: Sequence[Member]) -> GAN:
        """Networks of a stack; a member begins with the weights of its class, in every stack."""
        widths = {"teacher": self.teacher_widths, "student": self.student_widths}[role]
        classes = list(dict.fromkeys(member.normal_class for member in members))
        seeds = tuple(Member(k, 0).initial_seed(ROLES.index(role)) for k in classes)
        first = first_weights(Architecture(self.channels, widths), seeds, self.device)
        return spread(first, [classes.index(member.normal_class) for member in members])

    def pixels(self) -> Tensor:
        """(classes, images, C, 32, 32) uint8 on the CPU."""
        shape = (CLASSES, self.images_per_class, self.channels, 32, 32)
        generator = torch.Generator().manual_seed(0)
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8)

    def data(self, members: Sequence[Member]) -> TrainSet:
        labels = np.repeat(np.arange(CLASSES), self.images_per_class)
        return TrainSet(self.pixels().flatten(0, 1), labels, members, device=self.device)

    def images(self, members: Sequence[Member]) -> Tensor:
        """(M, images, C, 32, 32) in [-1, 1]: each member's class."""
        classes = [member.normal_class for member in members]
        return to_unit(self.pixels()[classes]).to(self.device)

    def order(self, members: Sequence[Member]) -> Tensor:
        """(images, M) on the CPU: the image of its class that each member sees in each step."""
        orders = [member.data_order(self.images_per_class, phase=0, epoch=0) for member in members]
        return torch.from_numpy(np.stack(orders, 1))


class Contender(Protocol):
    """A way to train `members`; a further rung or peer is one more of these."""

    members: Sequence[Member]

    def advance(self, steps: int) -> None:
        """Make that many further steps, without waiting for the device at the end."""

    def trained(self, index: int) -> dict[str, list[Tensor]]:
        """Parameters of members[index], in the order of a plain network, by name of network.

        Of the networks that the structure trains, "teacher", "student" or both.
        """


def plain_gan(form: Architecture) -> PlainGAN:
    """A plain network of that form."""
    return PlainGAN(form.channels, form.widths, form.latent)


class FusedLosses(PlainNetwork):
    """The plain network with the losses of `pkd_kernels`."""

    def __init__(self, gan: PlainGAN, own: bool, lr, betas, weights, reduction, **options):
        super().__init__(gan, own, lr, betas, weights, reduction, **options)
        device = next(gan.parameters()).device
        self.loss_weights = torch.tensor(weights, device=device)

    def discriminator_loss(self, x: Tensor, fake: Tensor) -> Tensor:
        """L_d, in one launch."""
        logits = [self.gan.discriminator(image)[0][:, None] for image in (x, fake)]
        return discriminator_loss(*logits).squeeze(0)

    def generator_loss(self, x: Tensor, made: Outputs, target: Outputs | None) -> Tensor:
        """L_g, K_l, or both, in one launch."""
        real, fake = None, None
        if self.own:
            (_, real), (_, fake) = (self.gan.discriminator(image) for image in (x, made.xh))
            real = real.detach()
        total, _ = generator_loss(
            x if self.own else None,
            made.xh,
            made.z1,
            made.z2,
            real,
            fake,
            teacher=target,
            weights=self.loss_weights,
            reduction=self.reduction,
        )
        return total.squeeze(0)


class FlatNetwork(FusedLosses):
    """With fused losses, and one flat Adam for generator and discriminator."""

    def __init__(self, gan: PlainGAN, own: bool, lr, betas, weights, reduction):
        super().__init__(gan, own, lr, betas, weights, reduction)
        del self.optimizer_g, self.optimizer_d
        self.generator_params = list(gan.generator.parameters())
        self.discriminator_params = list(gan.discriminator.parameters()) if own else []
        params = self.generator_params + self.discriminator_params
        self.optimizer = FlatAdam(params, lr=lr, betas=betas)

    def step(self, x: Tensor, target: Outputs | None) -> Outputs:
        made = self.gan.generator(x)
        d_loss = self.discriminator_loss(x, made.xh.detach()) if self.own else None
        g_loss = self.generator_loss(x, made, target)
        grads = torch.autograd.grad(g_loss, self.generator_params)
        if d_loss is not None:
            grads += torch.autograd.grad(d_loss, self.discriminator_params)
        self.optimizer.set_grads(grads)
        self.optimizer.step()
        return Outputs(*(t.detach() for t in made))


class FunctionalNetwork(PlainNetwork):
    """The plain network's gradients as one function, by torch.func.grad, of one forward pass."""

    def __init__(self, gan: PlainGAN, own: bool, *options, **more):
        super().__init__(gan, own, *options, **more)
        parts = {"generator": gan.generator, "discriminator": gan.discriminator}
        self.params = {
            name: dict(part.named_parameters())
            for name, part in parts.items()
            if own or name == "generator"
        }

    def judge(self, params: dict[str, Tensor]) -> Judge:
        """A discriminator with these parameters."""
        return lambda images: functional_call(self.gan.discriminator, params, (images,))

    def loss(
        self, params: dict[str, dict[str, Tensor]], x: Tensor, target: Outputs | None
    ) -> tuple[Tensor, Outputs]:
        """L_g, K_l or both for the generator, plus L_d for the discriminator; and the outputs."""
        made = Outputs(*functional_call(self.gan.generator, params["generator"], (x,)))
        if not self.own:
            return self.generator_loss(x, made, target), made
        own = params["discriminator"]
        constant = self.judge({name: p.detach() for name, p in own.items()})
        d_loss = self.discriminator_loss(x, made.xh.detach(), self.judge(own))
        return self.generator_loss(x, made, target, constant) + d_loss, made

    def gradients(self, x: Tensor, target: Outputs | None) -> tuple[dict, Outputs]:
        """Of `loss` in `params`, laid out as they are; and the outputs."""
        return grad(self.loss, has_aux=True)(self.params, x, target)

    def step(self, x: Tensor, target: Outputs | None) -> Outputs:
        """Update as `PlainNetwork` does."""
        gradients, made = self.gradients(x, target)
        for part, params in self.params.items():
            for name, p in params.items():
                p.grad = gradients[part][name]
        self.optimizer_g.step()
        if self.own:
            self.optimizer_d.step()
        return Outputs(*(t.detach() for t in made))


class VmapNetwork(FunctionalNetwork):
    """The gradients of M models at once, by vmap over parameters (M, ...), views of a stack's."""

    def __init__(self, gan: GAN, own: bool, lr, betas, *options, adam):
        one = plain_gan(gan.architecture).to(next(gan.parameters()).device)
        super().__init__(one, own, lr, betas, *options)
        stacked = {
            name: nn.Parameter(p.detach().view(gan.stack, -1, *p.shape[1:]))
            for (name, _), p in zip(one.named_parameters(), gan.parameters(), strict=True)
        }
        self.params = {
            part: {name: stacked[f"{part}.{name}"] for name in params}
            for part, params in self.params.items()
        }
        self.optimizer_g, self.optimizer_d = (
            adam([p for name, p in stacked.items() if name.startswith(part)], lr=lr, betas=betas)
            for part in ("generator", "discriminator")
        )

    def gradients(self, x: Tensor, target: Outputs | None) -> tuple[dict, Outputs]:
        """For images x (M, C, 32, 32), one a model, as are the outputs."""
        images = x.unsqueeze(1)
        if target is not None:
            target = Outputs(*(t.unsqueeze(1) for t in target))
        each = vmap(grad(self.loss, has_aux=True), (0, 0, None if target is None else 0))
        gradients, made = each(self.params, images, target)
        return gradients, Outputs(*(t.squeeze(1) for t in made))


@torch.no_grad()
def teacher_outputs(problem: Problem, members: Sequence[Member]) -> Outputs:
    """The frozen teachers' outputs, (M * images, ...) each, made by plain networks."""
    stacked, images = problem.gan("teacher", members), problem.images(members)
    teacher = plain_gan(stacked.architecture).to(problem.device)
    made = []
    for m, own in enumerate(images):
        copy_parameters(teacher, member_parameters(stacked, m, len(members)))
        made.append(teacher.generator(own))
    return Outputs(*map(torch.cat, zip(*made, strict=True)))


class Plain:
    """`bench.plain`, one model.

    Args:
        network: makes what trains a network, see `PlainLoop`.
        cached: a frozen teacher's outputs are looked up, not computed in every step.
    """

    def __init__(
        self,
        problem: Problem,
        members: Sequence[Member],
        network: Callable[..., PlainNetwork] = PlainNetwork,
        cached: bool = False,
    ):
        self.members = members
        gans = {role: self.plain(problem.gan(role, members)) for role in ROLES}
        self.networks = {name: gans[name] for name in problem.structure.trained}
        self.loop = PlainLoop(problem.structure, *gans.values(), network=network)
        self.images = problem.images(members).flatten(0, 1)  # [M * images, C, 32, 32]
        cached = cached and problem.structure.cached_teacher
        self.outputs = teacher_outputs(problem, members) if cached else None
        first = torch.arange(len(members)) * problem.images_per_class
        order = first + problem.order(members)
        self.order = order.to(problem.device)  # [images, M]
        self.rows = order[:, 0].tolist()
        self.done = 0

    def plain(self, gan: GAN) -> PlainGAN:
        """The networks that the loop trains, with these weights."""
        network = plain_gan(gan.architecture).to(next(gan.parameters()).device)
        copy_parameters(network, member_parameters(gan, 0, 1))
        return network

    def step(self, at: slice | Tensor) -> None:
        """One step on these rows of the images."""
        outputs = self.outputs and Outputs(*(t[at] for t in self.outputs))
        self.loop.step(self.images[at], outputs)

    def places(self, steps: int) -> Iterator[int]:
        """Places in the order of that many further steps; a pass follows the other."""
        for step in range(self.done, self.done + steps):
            yield step % len(self.rows)
        self.done += steps

    def advance(self, steps: int) -> None:
        for place in self.places(steps):
            row = self.rows[place]
            self.step(slice(row, row + 1))  # a view: nothing is launched

    def trained(self, index: int) -> dict[str, list[Tensor]]:
        return {
            name: [p.detach() for p in network.parameters()]
            for name, network in self.networks.items()
        }

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Those of the trained networks, where they are torch's."""
        trained = [n for n in (self.loop.learning_teacher, self.loop.student) if n is not None]
        return [adam for n in trained for adam in (n.optimizer_g, n.optimizer_d)]


class Vmap(Plain):
    """A stack by torch.func; frozen teachers' outputs are looked up."""

    def __init__(self, problem: Problem, members: Sequence[Member], capturable: bool = False):
        adam = partial(torch.optim.Adam, fused=True, capturable=capturable)
        super().__init__(problem, members, partial(VmapNetwork, adam=adam), cached=True)

    def plain(self, gan: GAN) -> GAN:
        return gan

    def advance(self, steps: int) -> None:
        for place in self.places(steps):
            self.step(self.order[place])

    def trained(self, index: int) -> dict[str, list[Tensor]]:
        return {
            name: member_parameters(gan, index, len(self.members))
            for name, gan in self.networks.items()
        }


class Graphed:
    """The whole step of a plain contender as one CUDA graph; its static input is the rows.

    It is captured in the first `advance`; its Adam must be capturable.
    """

    def __init__(self, inner: Plain):
        self.inner, self.members, self.trained = inner, inner.members, inner.trained
        self.at = inner.order[0].clone()
        self.replay: Callable | None = None

    def capture(self) -> Callable:
        """Warm-up trains, so what it changed is put back; Adam's state begins with zeros."""
        params = [p for network in self.inner.networks.values() for p in network.parameters()]
        before = [p.detach().clone() for p in params]
        replay = captured(lambda: self.inner.step(self.at))
        with torch.no_grad():
            for p, value in zip(params, before, strict=True):
                p.copy_(value)
            for optimizer in self.inner.optimizers():
                for state in optimizer.state.values():
                    for tensor in state.values():
                        tensor.zero_()
        return replay

    def advance(self, steps: int) -> None:
        self.replay = self.replay or self.capture()
        for place in self.inner.places(steps):
            self.at.copy_(self.inner.order[place])
            self.replay()


def compiled(mode: str | None, problem: Problem, members: Sequence[Member]) -> Plain:
    """The plain step under torch.compile, its gradients one function; a graph breaks at Adam alone.

    Compiled as it stands, the plain loop breaks at every `zero_grad`, `backward` and `step`.
    """
    adam = partial(torch.optim.Adam, capturable=problem.device.type == "cuda")
    plain = Plain(problem, members, partial(FunctionalNetwork, adam=adam))
    step = torch.compile(plain.loop.step, mode=mode, dynamic=False)

    def marked(*args) -> None:
        torch.compiler.cudagraph_mark_step_begin()
        step(*args)

    plain.loop.step = marked
    return plain


def refuse(reason: str) -> None:
    """Without its graph a contender is another: it fails."""
    raise RuntimeError(f"no CUDA graph: {reason}")


class Pkd:
    """`pkd.training.trainer.Trainer`, a stack of models; its loop over an epoch less its reports.

    Args:
        graph: the step is one CUDA graph.
    """

    def __init__(self, problem: Problem, members: Sequence[Member], graph: bool = False):
        self.members = members
        gans = {role: problem.gan(role, members) for role in ROLES}
        data = problem.data(members)
        self.trainer = Trainer(
            problem.structure,
            *gans.values(),
            members,
            data,
            use_graph=graph,
            on_graph_failure=refuse,
        )
        self.networks = {name: gans[name] for name in problem.structure.trained}
        self.trainer.begin_epoch(0)
        self.done = 0

    def advance(self, steps: int) -> None:
        for step in range(self.done, self.done + steps):
            if step % len(self.trainer.order) == 0:
                self.trainer.counter.zero_()  # the same epoch again
            self.trainer.advance()
        self.done += steps

    def trained(self, index: int) -> dict[str, list[Tensor]]:
        return {
            name: member_parameters(gan, index, len(self.members))
            for name, gan in self.networks.items()
        }


class Under:
    """A contender that is made and trained inside a context."""

    def __init__(
        self, context: Callable[[], AbstractContextManager], build: Callable[[], Contender]
    ):
        self.context = context
        with context():
            self.inner = build()
        self.members, self.trained = self.inner.members, self.inner.trained

    def advance(self, steps: int) -> None:
        with self.context():
            self.inner.advance(steps)


without_onednn = partial(torch.backends.mkldnn.flags, enabled=False)

by_definition = partial(mock.patch.object, dispatch, "BACKEND", "reference")

FUSED_ADAM = partial(torch.optim.Adam, fused=True)

CAPTURABLE_ADAM = partial(FUSED_ADAM, capturable=True)


@dataclass(frozen=True)
class Entry:
    """A contender of the ladder and where it takes part.

    Attributes:
        build: makes it for the members of a cell.
        stacks: where it takes part: for one model, for several, or both.
        devices: types of them.
        frozen_only: it differs from another only where a frozen teacher is looked up.
        peer: it is not of this project; where one fails, the ladder still stands.
        exact: it computes float32 in full, so that updates may differ by rounding alone.
    """

    build: Callable[[Problem, Sequence[Member]], Contender]
    stacks: tuple[str, ...] = ("one",)
    devices: tuple[str, ...] = ("cpu", "cuda")
    frozen_only: bool = False
    peer: bool = True
    exact: bool = True

    def applies(self, structure: Structure, stack: int, device: torch.device) -> bool:
        return (
            ("one" if stack == 1 else "several") in self.stacks
            and device.type in self.devices
            and (structure.cached_teacher or not self.frozen_only)
        )


def graphed_plain(problem: Problem, members: Sequence[Member], cached: bool = False) -> Graphed:
    network = partial(PlainNetwork, adam=CAPTURABLE_ADAM)
    return Graphed(Plain(problem, members, network, cached))


def in_tf32(problem: Problem, members: Sequence[Member]) -> Under:
    """Captured so, and what is captured replays so."""
    if not hardware.in_tf32("tf32", problem.device):
        raise RuntimeError("this GPU has no TF32")
    context = partial(hardware.precision, "tf32", problem.device)
    return Under(context, partial(Pkd, problem, members, graph=True))


_rung = partial(Entry, peer=False)

_both = {"stacks": ("one", "several")}

_several = {"stacks": ("several",)}

_cuda = {"devices": ("cuda",)}

# The first is what the others are compared with; it is in every cell, always of one model.
BASE = "plain loop"

COMPILE = {
    "torch.compile": Entry(partial(compiled, None)),
    "torch.compile, reduce-overhead": Entry(partial(compiled, "reduce-overhead"), **_cuda),
    "torch.compile, max-autotune": Entry(partial(compiled, "max-autotune"), **_cuda),
}

CONTENDERS = {
    BASE: Entry(lambda problem, members: Plain(problem, members[:1]), **_both),
    "fused losses": _rung(partial(Plain, network=FusedLosses)),
    "flat Adam": _rung(partial(Plain, network=FlatNetwork)),
    "pkd, eager": _rung(Pkd, **_both),
    "pkd, one graph": _rung(partial(Pkd, graph=True), **_both, **_cuda),
    "pkd, one graph, TF32": _rung(in_tf32, **_both, **_cuda, exact=False),
    "torch's fused Adam": Entry(partial(Plain, network=partial(PlainNetwork, adam=FUSED_ADAM))),
    "plain loop, oneDNN off": Entry(
        lambda problem, members: Under(without_onednn, partial(Plain, problem, members)),
        devices=("cpu",),
    ),
    "plain graph": Entry(graphed_plain, **_cuda),
    "plain graph, teacher cached": Entry(
        partial(graphed_plain, cached=True), frozen_only=True, **_cuda
    ),
    "vmap(grad)": Entry(Vmap, **_several),
    "vmap(grad), graph": Entry(
        lambda problem, members: Graphed(Vmap(problem, members, capturable=True)),
        **_several,
        **_cuda,
    ),
    "grouped convolution": Entry(
        lambda problem, members: Under(by_definition, partial(Pkd, problem, members)),
        **_several,
        **_cuda,
    ),
} | COMPILE
