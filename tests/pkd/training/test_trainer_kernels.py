"""Training with the interpreted kernels equals training with the reference functions."""

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from pkd_kernels import dispatch, unit_grad
from pkd_kernels.aot.launches import kernels
from stack_helpers import MEMBERS, STRUCTURES, WIDTHS, make_trainer, tensors_of, train_set
from torch.utils._python_dispatch import TorchDispatchMode

from bench.profiling import measured
from pkd.models.architecture import Architecture
from pkd.models.ganomaly import GAN
from pkd.models.stack import Member
from pkd.training import losses
from pkd.training.trainer import Trainer

pytestmark = [
    pytest.mark.usefixtures("double_precision"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the kernels are compiled"),
]
STEPS = 2
LEVELS = 12  # layers of a generator; the discriminators' run beside them


# Interpreted kernels take a time that grows with channels and images.
TINY = {"teacher": (2, 1, 1), "student": (1, 1, 2)}
NARROWEST = dict.fromkeys(TINY, (1, 1, 1))


def small_trainer(
    structure: str,
    members: Sequence[Member] = MEMBERS,
    images: int = STEPS + 1,
    widths: dict[str, tuple[int, int, int]] = TINY,
    latent: int = 2,
) -> Trainer:
    seeds = range(len(members))
    networks = {name: GAN(Architecture(1, widths[name], latent), seeds) for name in widths}
    data = train_set(members, limit=images)
    return make_trainer(STRUCTURES[structure], members, networks=networks, data=data)


def trained(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Weights after a few steps, and the losses of each."""
    trainer.begin_epoch(0)
    for _ in range(STEPS):
        trainer.step()
    return tensors_of(trainer) | {"losses": trainer.history.values[:STEPS]}


@pytest.fixture
def launches_of_losses(monkeypatch) -> list[str]:
    """Launches in the forward calls of a trainer's losses, hidden copies included."""
    launches = []

    def watched(op):
        def call(*args, **kwargs):
            with measured() as traffic:
                result = op(*args, **kwargs)
            launches.extend(traffic.launches)
            return result

        return call

    for name in ("generator_loss", "gan_losses"):
        monkeypatch.setattr(losses, name, watched(getattr(losses, name)))
    return launches


@pytest.mark.parametrize(
    ("structure", "networks", "members", "sizes"),
    [
        pytest.param("KDGAN-2", 1, MEMBERS[:1], {}, id="one model"),
        pytest.param(
            "KDGAN-4",
            2,
            MEMBERS[:2],
            {"widths": WIDTHS, "latent": 8},
            id="stack",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_training_with_kernels_equals_training_with_the_reference(
    monkeypatch, structure, networks, members, sizes
):
    expected = trained(small_trainer(structure, members, **sizes))
    monkeypatch.setattr(dispatch, "BACKEND", "triton")
    trainer = small_trainer(structure, members, **sizes)
    actual = trained(trainer)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=0, atol=1e-10)
    with measured() as traffic:
        trainer.step()
    counts = Counter(name for name in traffic.launches if not name.startswith("aten"))
    assert counts == {
        "gather": 1,
        "conv_forward": LEVELS,
        "conv_backward": LEVELS,
        "gan_losses": networks,
        "record_step": 1,
        "adam_step": 1,
    }


@pytest.mark.parametrize("members", [MEMBERS[:1], MEMBERS * 10], ids=["M=1", "M=30"])
@pytest.mark.parametrize(("structure", "launches"), [("KDGAN-2", 28), ("KDGAN-4", 29)])
def test_launches_of_a_step(monkeypatch, structure, launches, members):
    """Kernels and PyTorch operations together, for one model and for thirty.

    The kernels are launched but compute nothing: no launch depends on a value.
    """
    monkeypatch.setattr(dispatch, "BACKEND", "triton")
    for module, name in kernels().values():
        monkeypatch.setattr(getattr(module, name), "run", lambda *args, **options: None)
    trainer = small_trainer(structure, members, images=1, widths=NARROWEST, latent=1)
    trainer.begin_epoch(0)
    unit_grad(trainer.rates[0])  # computed once, then cached
    with measured() as traffic:
        trainer.step()
    assert len(traffic.launches) == launches


@pytest.mark.parametrize(
    "members",
    [pytest.param(MEMBERS[:1], id="M=1", marks=pytest.mark.slow), pytest.param(MEMBERS, id="M=3")],
)
def test_the_losses_copy_nothing(monkeypatch, launches_of_losses, members):
    """One launch, also for logits that are views of the logits of a stack."""
    monkeypatch.setattr(dispatch, "BACKEND", "triton")
    trainer = small_trainer("KDGAN-2", members, images=1)
    trainer.losses()
    assert launches_of_losses == ["gan_losses"]


class NoHostReads(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero"), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("structure", "members"),
    [
        pytest.param("KDGAN-2", MEMBERS[:1], id="KDGAN-2-M=1"),
        *(
            pytest.param(name, MEMBERS, id=f"{name}-M=3", marks=pytest.mark.slow)
            for name in STRUCTURES
        ),
    ],
)
def test_a_step_with_kernels_reads_nothing_on_the_host(monkeypatch, structure, members):
    """Including Adam, whose reference function reads on the host."""
    monkeypatch.setattr(dispatch, "BACKEND", "triton")
    trainer = small_trainer(structure, members, images=1)
    trainer.begin_epoch(0)
    monkeypatch.setattr(torch.Tensor, "tolist", pytest.fail)
    with NoHostReads():
        trainer.step()
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            trainer.counter.item()


def test_checkpoints_do_not_depend_on_the_padding_of_adams_buffers(monkeypatch):
    """Moments of the kernels' layout load into that of the definitions, and the reverse."""
    plain = small_trainer("KDGAN-2", MEMBERS, images=1)
    monkeypatch.setattr(dispatch, "BACKEND", "triton")
    padded = small_trainer("KDGAN-2", MEMBERS, images=1)
    assert len(padded.optimizer.flat) > len(plain.optimizer.flat)
    for source, target in ((plain, padded), (padded, plain)):
        generator = torch.Generator().manual_seed(len(source.optimizer.flat))
        for views in source.optimizer.moments().values():
            for view in views:
                view.copy_(torch.randn(view.shape, generator=generator))
        target.load_state(source.state(0))
        expected = source.state(0)
        actual = target.state(0)
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[key], value) for key, value in expected.items())
