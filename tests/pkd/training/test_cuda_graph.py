"""A step as one graph. What only a driver can do is imitated here, and marked gpu at the end."""

import copy
import gc
import weakref

import pytest
import torch
from stack_helpers import (
    MEMBERS,
    STRUCTURES,
    make_networks,
    make_trainer,
    tensors_of,
    train,
    train_set,
)

import pkd.training.trainer
from bench.profiling import measured
from pkd.training import cuda_graph as graph
from pkd.training.structures import KDGAN, TEACHER
from pkd.training.trainer import Trainer

EVERY_STRUCTURE = pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
NORMS = pytest.mark.parametrize("norm", ["instance", "batch"])


def everything(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Copies of all that a step may change and the next one reads, and of the random state."""
    adam = trainer.optimizer
    found = tensors_of(trainer) | trainer.state(len(trainer.history.values))
    found |= {"active": adam.active, "lr": adam.param_groups[0]["lr"], "counter": trainer.counter}
    return {k: v.clone() for k, v in found.items()} | {"random": torch.get_rng_state()}


def differing(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    assert found.keys() == expected.keys()
    return [key for key, value in expected.items() if not torch.equal(found[key], value)]


@pytest.fixture
def imitation(monkeypatch) -> list[str]:
    """Graphs on the CPU: a recording that runs the call again. Returns what was done."""
    done = []

    def warm_up(call):
        for _ in range(graph.WARM_UP):
            call()
        done.append("warm-up")

    def record(call):
        done.append("record")
        return call

    monkeypatch.setattr(graph, "available", lambda device: True)
    monkeypatch.setattr(graph, "_warm_up", warm_up)
    monkeypatch.setattr(graph, "_record", record)
    return done


def test_restored_undoes_what_happens_inside_in_place():
    weights, count = torch.randn(3, requires_grad=True), torch.arange(2)
    before, random, address = weights.clone(), torch.get_rng_state(), weights.data_ptr()
    with graph.restored([weights, count]):
        with torch.no_grad():
            weights.uniform_()
        count += 5
    assert torch.equal(weights, before)
    assert weights.data_ptr() == address
    assert count.tolist() == [0, 1]
    assert torch.equal(torch.get_rng_state(), random)


def test_restored_undoes_what_happens_before_an_error():
    count = torch.zeros(1)
    with pytest.raises(KeyError), graph.restored([count]):
        count += 1
        raise KeyError
    assert count.item() == 0


@NORMS
@EVERY_STRUCTURE
@pytest.mark.parametrize("start", [0, 15, 19])
def test_getting_ready_to_replay_changes_nothing(structure, norm, start, imitation):
    """Also amid an epoch, where a member idles, and where one step is left."""
    trainer = make_trainer(structure, norm=norm)
    train(trainer, 1)
    fresh = make_trainer(structure, norm=norm, networks=copied(trainer))
    fresh.load_state(trainer.state(start))
    fresh.begin_epoch(1, start)
    before = everything(fresh)
    assert fresh._replay is not None
    assert imitation == ["warm-up", "record"] * 2
    assert differing(everything(fresh), before) == []


def copied(trainer: Trainer) -> dict:
    """The networks of a trainer, out of its flat buffer."""
    networks = make_networks(norm=trainer.student.architecture.norm)
    for name, gan in networks.items():
        gan.load_state_dict(copy.deepcopy(getattr(trainer, name).state_dict()))
    return networks


@NORMS
@EVERY_STRUCTURE
def test_training_by_replays_ends_with_the_bits_of_eager_steps(structure, norm, imitation):
    eager = train(make_trainer(structure, norm=norm, use_graph=False), 2)
    assert imitation == []
    replayed = train(make_trainer(structure, norm=norm), 2)
    assert imitation == ["warm-up", "record"]
    assert differing(everything(replayed), everything(eager)) == []


def test_without_a_gpu_nothing_is_captured(monkeypatch):
    monkeypatch.delattr(graph, "captured")
    told = []
    train(make_trainer(KDGAN[2], on_graph_failure=told.append), 1)
    assert told == []


def fail(error: Exception):
    def failing(call):
        raise error

    return failing


def refuse_within_a_capture(call):
    """As torch does it: the reason first, then an error of ending the broken capture."""
    try:
        raise RuntimeError("operation not permitted when stream is capturing\nCompile with ...")
    finally:
        raise RuntimeError("capture invalidated")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (fail(RuntimeError("driver too old")), "driver too old"),
        (refuse_within_a_capture, "operation not permitted when stream is capturing"),
        (lambda call: lambda: None, "its replay does nothing"),
    ],
)
def test_where_no_graph_can_be_had_steps_run_eagerly_and_the_reason_is_told_once(
    record, reason, imitation, monkeypatch
):
    monkeypatch.setattr(graph, "_record", record)
    told = []
    trainer = train(make_trainer(KDGAN[2], on_graph_failure=told.append), 2)
    assert told == [reason]
    eager = train(make_trainer(KDGAN[2], use_graph=False), 2)
    assert differing(everything(trainer), everything(eager)) == []


def out_of_memory_within_a_capture(call):
    try:
        raise torch.OutOfMemoryError("out of memory")
    finally:
        raise RuntimeError("capture invalidated")


@pytest.mark.parametrize(
    ("part", "action", "error"),
    [
        ("_warm_up", fail(RuntimeError("an illegal memory access")), "illegal memory access"),
        ("_warm_up", fail(torch.OutOfMemoryError("out of memory")), "out of memory"),
        ("_record", fail(torch.OutOfMemoryError("out of memory")), "out of memory"),
        ("_record", out_of_memory_within_a_capture, "out of memory"),
        ("_record", fail(TypeError("a bug")), "a bug"),
    ],
)
def test_errors_that_eager_steps_would_meet_too_are_not_hidden(
    part, action, error, imitation, monkeypatch
):
    monkeypatch.setattr(graph, part, action)
    with pytest.raises((RuntimeError, TypeError), match=error) as raised:
        train(make_trainer(KDGAN[2], on_graph_failure=pytest.fail), 1)
    assert isinstance(raised.value, torch.OutOfMemoryError) == (error == "out of memory")


# -- What a step costs the host --------------------------------------------------------------------


def on_device(structure, members, device, norm="instance", **options) -> Trainer:
    networks = {k: gan.to(device) for k, gan in make_networks(members, norm).items()}
    data = train_set(members, device=device)
    return make_trainer(structure, members, networks=networks, data=data, **options)


@NORMS
@EVERY_STRUCTURE
def test_a_step_never_waits_for_the_device(structure, norm, monkeypatch):
    """On the meta device there is nothing to read: any attempt raises.

    Of the ops their definitions run. That of Adam reads rates on the host, the kernel does not.
    """
    monkeypatch.setattr("pkd_kernels.adam.adam_step", lambda *args, **kwargs: None)
    trainer = on_device(structure, MEMBERS, "meta", norm)
    trainer.begin_epoch(0)
    trainer.step()
    with pytest.raises((RuntimeError, NotImplementedError)):
        trainer.check_finite(0, 1, 0)  # this one waits


@pytest.mark.parametrize("members", [MEMBERS[:1], MEMBERS], ids=["M=1", "M=3"])
@EVERY_STRUCTURE
def test_a_step_adds_few_launches_to_losses_gradients_and_adam(structure, members):
    trainer = make_trainer(structure, members)
    trainer.begin_epoch(0)
    trainer.step()
    with measured() as step:
        trainer.step()
    with measured() as work:
        trainer.set_grads(trainer.losses())
        trainer.optimizer.step()
    assert len(step.launches) - len(work.launches) <= 5


@EVERY_STRUCTURE
def test_steps_allocate_nothing_that_stays(structure):
    """Every tensor, and every container that could keep one, is an object that gc counts."""
    trainer = make_trainer(structure)

    def objects_after(steps):
        for _ in range(steps):
            trainer.counter.zero_()
            trainer.step()
        gc.collect()
        return len(gc.get_objects())

    before = objects_after(20)
    assert objects_after(100) <= before


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_trainer_is_let_go_at_once(device):
    """Phase follows phase: what one held must be free for the next, its graph too."""
    trainer = on_device(KDGAN[2], MEMBERS, device, on_graph_failure=pytest.fail)
    trainer.begin_epoch(0)
    trainer.advance()
    held = [weakref.ref(x) for x in (trainer, trainer.optimizer.exp_avg, trainer.sources[1][0])]
    del trainer
    assert [reference() for reference in held] == [None] * len(held)


def test_an_interval_between_reports_holds_as_many_steps_as_fit_into_its_time(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("pkd.training.trainer.REPORT_SECONDS", 0.05)
    monkeypatch.setattr(pkd.training.trainer.time, "monotonic", lambda: clock[0])
    trainer, step = make_trainer(KDGAN[1]), [0.01]

    def advance():
        clock[0] += step[0]

    monkeypatch.setattr(trainer, "advance", advance)
    assert list(trainer.epoch(0)) == [1, 6, 11, 16, 20]
    assert list(trainer.epoch(1)) == [5, 10, 15, 20]  # the pace is known
    step[0] = 0.06
    assert list(trainer.epoch(2)) == [5, *range(6, 21)]  # at least one
    step[0] = 0.0001
    assert list(trainer.epoch(3)) == [1, 20]


def test_the_host_reads_from_the_device_once_an_interval(monkeypatch):
    trainer = make_trainer(KDGAN[4])
    trainer.begin_epoch(0)
    trainer.step()
    reads = []
    for name in ("tolist", "item", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        method = getattr(torch.Tensor, name)

        def counted(self, *args, name=name, method=method):
            reads.append(name)
            return method(self, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    trainer.check_finite(0, 1, 0)
    assert set(trainer.history.recent()) == {"teacher G", "teacher D", "student G", "student D"}
    assert reads == ["tolist"]


# -- On a GPU --------------------------------------------------------------------------------------

STEPS = 200


@pytest.fixture
def reproducible(monkeypatch):
    """Of the libraries' convolutions (norm="batch"); our kernels always are."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def after_steps(trainer: Trainer) -> dict[str, torch.Tensor]:
    for done in range(STEPS):
        if done % len(trainer.order) == 0:
            trainer.begin_epoch(done // len(trainer.order))
        trainer.advance()
    return everything(trainer)


@pytest.mark.gpu
@pytest.mark.usefixtures("reproducible")
@NORMS
@pytest.mark.parametrize("members", [MEMBERS[:1], MEMBERS], ids=["M=1", "M=3"])
@EVERY_STRUCTURE
def test_replays_of_a_captured_step_equal_eager_steps(structure, members, norm):
    options = {"device": "cuda", "norm": norm, "told": pytest.fail}
    replayed = on_device(structure, members, **options)
    eager = on_device(structure, members, use_graph=False, **options)
    assert differing(after_steps(replayed), after_steps(eager)) == []
    assert replayed._replay is not None


@pytest.mark.gpu
@pytest.mark.usefixtures("double_precision")
@NORMS
@EVERY_STRUCTURE
def test_an_epoch_on_a_gpu_ends_as_by_the_definitions_on_a_cpu(structure, norm):
    """By kernels and replays, idle members and all; in float64, so that rounding stays small."""
    found, expected = (
        everything(train(on_device(structure, MEMBERS, device, norm, on_graph_failure=pytest.fail), 1))
        for device in ("cuda", "cpu")
    )
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key].cpu(), value, rtol=0, atol=1e-10)


@pytest.mark.gpu
@EVERY_STRUCTURE
def test_neither_a_step_nor_a_replay_waits_for_the_gpu(structure):
    trainer = on_device(structure, MEMBERS, "cuda", on_graph_failure=pytest.fail)
    trainer.begin_epoch(0)
    trainer.advance()  # compiles and captures
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.step()
        trainer.advance()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.counter.item() == 3


@pytest.mark.gpu
@pytest.mark.parametrize("structure", [TEACHER, KDGAN[4]])
def test_replays_allocate_nothing(structure):
    trainer = on_device(structure, MEMBERS, "cuda", on_graph_failure=pytest.fail)
    trainer.begin_epoch(0)
    trainer.advance()
    before = torch.cuda.memory_allocated()
    for _ in range(100):
        trainer.counter.zero_()
        trainer.advance()
    assert torch.cuda.memory_allocated() == before
