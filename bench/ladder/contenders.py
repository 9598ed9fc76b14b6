"""Table of the contenders: the rungs of the ladder, and peers that are not part of this project."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from unittest import mock

import torch
from pkd_kernels import dispatch

from bench.baseline import PlainNetwork
from bench.ladder.loops import Contender, Graphed, InContext, Pkd, Plain, Vmap, compiled
from bench.ladder.networks import FlatNetwork, FusedLosses
from bench.ladder.training_setup import TrainingSetup
from pkd.models.stack import Member
from pkd.training.structures import Structure
from pkd.utils import device as hardware

FUSED_ADAM = partial(torch.optim.Adam, fused=True)

CAPTURABLE_ADAM = partial(FUSED_ADAM, capturable=True)


@dataclass(frozen=True)
class Entry:
    """A contender and the cells in which it takes part.

    Attributes:
        build: function of the setup and the members of a cell.
        stacks: "one" model, "several" models, or both.
        devices: types of devices.
        frozen_only: take part only if the structure has a frozen teacher, whose outputs this
            contender caches; otherwise it would equal another contender.
        peer: not part of this project; its failure is not a failure of the ladder.
        exact: computes in full float32, so that its updates differ by rounding alone.
    """

    build: Callable[[TrainingSetup, Sequence[Member]], Contender]
    stacks: tuple[str, ...] = ("one",)
    devices: tuple[str, ...] = ("cpu", "cuda")
    frozen_only: bool = False
    peer: bool = True
    exact: bool = True

    def applies(self, structure: Structure, stack: int, device: torch.device) -> bool:
        """Whether the contender takes part in a cell."""
        return (
            ("one" if stack == 1 else "several") in self.stacks
            and device.type in self.devices
            and (structure.cached_teacher or not self.frozen_only)
        )


def _plain(setup: TrainingSetup, members: Sequence[Member]) -> Plain:
    """One model, also in a cell of several models."""
    return Plain(setup, members[:1])


def _without_onednn(setup: TrainingSetup, members: Sequence[Member]) -> InContext:
    context = partial(torch.backends.mkldnn.flags, enabled=False)
    return InContext(context, partial(Plain, setup, members))


def _graphed_plain(
    setup: TrainingSetup, members: Sequence[Member], cached: bool = False
) -> Graphed:
    network = partial(PlainNetwork, adam=CAPTURABLE_ADAM)
    return Graphed(Plain(setup, members, network, cached))


def _graphed_vmap(setup: TrainingSetup, members: Sequence[Member]) -> Graphed:
    return Graphed(Vmap(setup, members, capturable=True))


def _grouped_convolution(setup: TrainingSetup, members: Sequence[Member]) -> InContext:
    """Run the reference ops, whose stacks are grouped convolutions."""
    context = partial(mock.patch.object, dispatch, "BACKEND", "reference")
    return InContext(context, partial(Pkd, setup, members))


def _in_tf32(setup: TrainingSetup, members: Sequence[Member]) -> InContext:
    """Capture the graph in TF32; its replays then compute in TF32 as well."""
    if not hardware.in_tf32("tf32", setup.device):
        raise RuntimeError("this GPU does not support TF32")
    context = partial(hardware.precision, "tf32", setup.device)
    return InContext(context, partial(Pkd, setup, members, graph=True))


_rung = partial(Entry, peer=False)

_ANY_STACK = {"stacks": ("one", "several")}

_SEVERAL = {"stacks": ("several",)}

_CUDA = {"devices": ("cuda",)}

# The first contender of every cell, always one model; the others are compared with it.
BASE = "plain loop"

COMPILE = {
    "torch.compile": Entry(partial(compiled, None)),
    "torch.compile, reduce-overhead": Entry(partial(compiled, "reduce-overhead"), **_CUDA),
    "torch.compile, max-autotune": Entry(partial(compiled, "max-autotune"), **_CUDA),
}

CONTENDERS = {
    BASE: Entry(_plain, **_ANY_STACK),
    "fused losses": _rung(partial(Plain, network=FusedLosses)),
    "flat Adam": _rung(partial(Plain, network=FlatNetwork)),
    "pkd, eager": _rung(Pkd, **_ANY_STACK),
    "pkd, one graph": _rung(partial(Pkd, graph=True), **_ANY_STACK, **_CUDA),
    "pkd, one graph, TF32": _rung(_in_tf32, **_ANY_STACK, **_CUDA, exact=False),
    "torch's fused Adam": Entry(partial(Plain, network=partial(PlainNetwork, adam=FUSED_ADAM))),
    "plain loop, oneDNN off": Entry(_without_onednn, devices=("cpu",)),
    "plain graph": Entry(_graphed_plain, **_CUDA),
    "plain graph, teacher cached": Entry(
        partial(_graphed_plain, cached=True), frozen_only=True, **_CUDA
    ),
    "vmap(grad)": Entry(Vmap, **_SEVERAL),
    "vmap(grad), graph": Entry(_graphed_vmap, **_SEVERAL, **_CUDA),
    "grouped convolution": Entry(_grouped_convolution, **_SEVERAL, **_CUDA),
} | COMPILE
