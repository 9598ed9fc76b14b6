"""Training through the interpreted kernels equals training through the definitions."""

from collections import Counter

import pytest
import torch
from pkd_kernels import dispatch
from stack_helpers import MEMBERS, STRUCTURES, make_trainer, tensors_of
from torch.utils._python_dispatch import TorchDispatchMode

import pkd.trainer
from bench.counting import measured
from pkd.trainer import Trainer

pytestmark = [
    pytest.mark.usefixtures("double_precision"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU nothing is interpreted"),
]
STEPS = 3
KERNELS = {"generator_loss", "discriminator_loss", "upstream", "adam_step"}


def trained(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Weights after a few steps, and the losses of each."""
    trainer.begin_epoch(0)
    for _ in range(STEPS):
        trainer.step()
    return tensors_of(trainer) | {"losses": trainer.history[:STEPS]}


@pytest.fixture
def inside_ops(monkeypatch) -> list[str]:
    """Whatever is launched inside the losses' forward calls of a trainer, hidden copies too."""
    found = []

    def watched(op):
        def call(*args, **kwargs):
            with measured() as traffic:
                result = op(*args, **kwargs)
            found.extend(traffic.launches)
            return result

        return call

    for name in ("generator_loss", "discriminator_loss"):
        monkeypatch.setattr(pkd.trainer, name, watched(getattr(pkd.trainer, name)))
    return found


@pytest.mark.parametrize("members", [MEMBERS[:1], MEMBERS], ids=["M=1", "M=3"])
@pytest.mark.parametrize(("structure", "networks"), [("KDGAN-2", 1), ("KDGAN-4", 2)])
def test_trained_through_kernels_equals_trained_through_definitions(
    monkeypatch, structure, networks, members
):
    expected = trained(make_trainer(STRUCTURES[structure], members))
    monkeypatch.setattr(dispatch, "BACKEND", "triton")
    trainer = make_trainer(STRUCTURES[structure], members)
    found = trained(trainer)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-10)
    with measured() as traffic:
        trainer.step()
    kernels = Counter(name for name in traffic.launches if name in KERNELS)
    assert kernels == {
        "generator_loss": networks,
        "discriminator_loss": networks,
        "upstream": 2 * networks,
        "adam_step": 1,
    }


@pytest.mark.parametrize("members", [MEMBERS[:1], MEMBERS], ids=["M=1", "M=3"])
def test_the_losses_copy_nothing(monkeypatch, inside_ops, members):
    """One launch each, also of logits that are views of a stack's."""
    monkeypatch.setattr(dispatch, "BACKEND", "triton")
    trainer = make_trainer(STRUCTURES["KDGAN-2"], members)
    trainer.losses()
    assert inside_ops == ["generator_loss", "discriminator_loss"]


class NoHostReads(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero"), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
def test_a_step_through_kernels_reads_nothing_on_the_host(monkeypatch, structure):
    """Adam included, which on the reference path does."""
    monkeypatch.setattr(dispatch, "BACKEND", "triton")
    trainer = make_trainer(structure)
    trainer.begin_epoch(0)
    monkeypatch.setattr(torch.Tensor, "tolist", pytest.fail)
    with NoHostReads():
        trainer.step()
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            trainer.counter.item()
