"""CUDA graphs of a training step. On a CPU a fake records a graph; the last tests need a GPU."""

import copy
import gc
import weakref
from contextlib import nullcontext

import pytest
import torch
from pkd_kernels import dispatch
from stack_helpers import (
    MEMBERS,
    NORMS,
    each_structure,
    each_structure_and_norm,
    make_networks,
    make_trainer,
    tensors_of,
    train,
    train_set,
)

import pkd.training.trainer
from bench.profiling import measured
from pkd.training import cuda_graph
from pkd.training.structures import KDGAN, TEACHER
from pkd.training.trainer import Trainer

FAST_PAIRS = {("KDGAN-2", "batch"), ("KDGAN-4", "instance")}


def full_state(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Copies of all tensors that a step may change and the next one reads, and the random state."""
    adam = trainer.optimizer
    state = tensors_of(trainer) | trainer.state(len(trainer.history.values))
    state |= {"active": adam.active, "lr": adam.param_groups[0]["lr"], "counter": trainer.counter}
    return {k: v.clone() for k, v in state.items()} | {"random": torch.get_rng_state()}


def differing(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    assert actual.keys() == expected.keys()
    return [key for key, value in expected.items() if not torch.equal(actual[key], value)]


@pytest.fixture
def fake_graphs(monkeypatch) -> list[str]:
    """Graphs on the CPU, whose replay is a call. Returns a list of the operations, in order."""
    operations = []

    def warm_up(call):
        for _ in range(cuda_graph.WARM_UP_CALLS):
            call()
        operations.append("warm-up")

    def record(call):
        operations.append("record")
        return call

    monkeypatch.setattr(cuda_graph, "available", lambda device: True)
    monkeypatch.setattr(cuda_graph, "_warm_up", warm_up)
    monkeypatch.setattr(cuda_graph, "_record", record)
    return operations


def test_restored_undoes_changes_in_place():
    weights, count = torch.randn(3, requires_grad=True), torch.arange(2)
    before, random, address = weights.clone(), torch.get_rng_state(), weights.data_ptr()
    with cuda_graph.restored([weights, count]):
        with torch.no_grad():
            weights.uniform_()
        count += 5
    assert torch.equal(weights, before)
    assert weights.data_ptr() == address
    assert count.tolist() == [0, 1]
    assert torch.equal(torch.get_rng_state(), random)


def test_restored_undoes_changes_before_an_error():
    count = torch.zeros(1)

    def fail_after_a_change():
        with cuda_graph.restored([count]):
            count.add_(1)
            raise KeyError

    with pytest.raises(KeyError):
        fail_after_a_change()
    assert count.item() == 0


@each_structure_and_norm(FAST_PAIRS)
@pytest.mark.parametrize(
    "start", [pytest.param(0, marks=pytest.mark.slow), 15, pytest.param(19, marks=pytest.mark.slow)]
)
def test_capture_leaves_the_training_state_unchanged(structure, norm, start, fake_graphs):
    """Also in the middle of an epoch, while a member idles, and before the last step."""
    trainer = make_trainer(structure, norm=norm)
    train(trainer, 1)
    fresh = make_trainer(structure, norm=norm, networks=copied_networks(trainer))
    fresh.load_state(trainer.state(start))
    fresh.begin_epoch(1, start)
    before = full_state(fresh)
    assert fresh._replay is not None
    assert fake_graphs == ["warm-up", "record"] * 2
    assert differing(full_state(fresh), before) == []


def copied_networks(trainer: Trainer) -> dict:
    """Copies of a trainer's networks, with parameters outside of its flat buffer."""
    networks = make_networks(norm=trainer.student.architecture.norm)
    for name, gan in networks.items():
        gan.load_state_dict(copy.deepcopy(getattr(trainer, name).state_dict()))
    return networks


@each_structure_and_norm(FAST_PAIRS)
def test_replays_train_to_the_same_bits_as_eager_steps(structure, norm, fake_graphs):
    eager = train(make_trainer(structure, norm=norm, use_graph=False), 2)
    assert fake_graphs == []
    replayed = train(make_trainer(structure, norm=norm), 2)
    assert fake_graphs == ["warm-up", "record"]
    assert differing(full_state(replayed), full_state(eager)) == []


def test_without_a_gpu_nothing_is_captured(monkeypatch):
    monkeypatch.delattr(cuda_graph, "capture")
    reasons = []
    train(make_trainer(KDGAN[2], on_graph_failure=reasons.append), 1)
    assert reasons == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the kernels are compiled")
def test_a_step_beyond_the_epoch_changes_nothing_but_the_counter(monkeypatch):
    """As a replay of the graph too many would take it: no data to read, no row to write."""
    trainer = make_trainer(KDGAN[2], MEMBERS[:1], data=train_set(MEMBERS[:1], limit=1))
    monkeypatch.setattr(dispatch, "BACKEND", "triton")
    train(trainer, 1)
    before = full_state(trainer)
    trainer.step()
    after = full_state(trainer)
    assert differing(after, before) == ["active", "counter"]
    assert not after["active"].any()
    assert after["counter"].item() == 2


def test_every_device_has_its_own_capture_stream(monkeypatch):
    """torch.cuda.graph alone takes one stream for all devices of a process."""
    current, used, created = [0], [], []

    class Capture(nullcontext):
        def __init__(self, graph, stream):
            super().__init__()
            used.append(stream)

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: created.append(device) or f"s{device}")
    cuda_graph._capture_stream.cache_clear()
    for device in (0, 1, 0):
        current[0] = device
        cuda_graph._record(lambda: None)
    cuda_graph._capture_stream.cache_clear()
    assert used == ["s0", "s1", "s0"]
    assert created == [0, 1]


def fail(error: Exception):
    def failing(call):
        raise error

    return failing


def fail_within_a_capture(call):
    """Raise as torch does: first the cause, then an error from the end of the broken capture."""
    try:
        raise RuntimeError("operation not permitted when stream is capturing\nCompile with ...")
    finally:
        raise RuntimeError("capture invalidated")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (fail(RuntimeError("driver too old")), "driver too old"),
        (fail_within_a_capture, "operation not permitted when stream is capturing"),
        (lambda call: lambda: None, "the replay of the graph has no effect"),
    ],
)
def test_steps_run_eagerly_after_a_failed_capture_and_the_reason_is_reported_once(
    record, reason, fake_graphs, monkeypatch
):
    monkeypatch.setattr(cuda_graph, "_record", record)
    reasons = []
    trainer = train(make_trainer(KDGAN[2], on_graph_failure=reasons.append), 2)
    assert reasons == [reason]
    eager = train(make_trainer(KDGAN[2], use_graph=False), 2)
    assert differing(full_state(trainer), full_state(eager)) == []


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
def test_errors_that_eager_steps_would_also_raise_are_not_hidden(
    part, action, error, fake_graphs, monkeypatch
):
    monkeypatch.setattr(cuda_graph, part, action)
    with pytest.raises((RuntimeError, TypeError), match=error) as raised:
        train(make_trainer(KDGAN[2], on_graph_failure=pytest.fail), 1)
    assert isinstance(raised.value, torch.OutOfMemoryError) == (error == "out of memory")


# -- Work of the host ------------------------------------------------------------------------------


def on_device(structure, members, device, norm="instance", **options) -> Trainer:
    networks = {k: gan.to(device) for k, gan in make_networks(members, norm).items()}
    data = train_set(members, device=device)
    return make_trainer(structure, members, networks=networks, data=data, **options)


@NORMS
@each_structure()
def test_a_step_never_waits_for_the_device(structure, norm, monkeypatch):
    """Tensors on the meta device have no values: an attempt to read one raises.

    The reference functions of the ops run. Adam's reads rates on the host, its kernel does not.
    """
    monkeypatch.setattr("pkd_kernels.flat_adam.adam_step", lambda *args, **kwargs: None)
    trainer = on_device(structure, MEMBERS, "meta", norm)
    trainer.begin_epoch(0)
    trainer.step()
    with pytest.raises((RuntimeError, NotImplementedError)):
        trainer.check_finite(0, 1, 0)  # this one waits


@pytest.mark.parametrize("members", [MEMBERS[:1], MEMBERS], ids=["M=1", "M=3"])
@each_structure()
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


@each_structure(fast=("KDGAN-4",))
def test_steps_keep_no_objects(structure):
    """The garbage collector counts every tensor and every container that could keep one."""
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
def test_a_trainer_is_freed_at_once(device):
    """The next phase needs its memory, including that of its graph."""
    trainer = on_device(KDGAN[2], MEMBERS, device, on_graph_failure=pytest.fail)
    trainer.begin_epoch(0)
    trainer.advance()
    objects = (trainer, trainer.optimizer.exp_avg, trainer.sources[1][0])
    references = [*map(weakref.ref, objects)]
    del trainer, objects
    assert [reference() for reference in references] == [None] * len(references)


def test_as_many_steps_run_between_reports_as_fit_into_the_interval(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("pkd.training.trainer.REPORT_SECONDS", 0.05)
    monkeypatch.setattr(pkd.training.trainer.time, "monotonic", lambda: clock[0])
    trainer, step = make_trainer(KDGAN[1]), [0.01]

    def advance():
        clock[0] += step[0]

    monkeypatch.setattr(trainer, "advance", advance)
    assert list(trainer.epoch(0)) == [1, 6, 11, 16, 20]
    assert list(trainer.epoch(1)) == [5, 10, 15, 20]  # the time of a step is known
    step[0] = 0.06
    assert list(trainer.epoch(2)) == [5, *range(6, 21)]  # at least one step
    step[0] = 0.0001
    assert list(trainer.epoch(3)) == [1, 20]


def test_the_host_reads_from_the_device_once_per_interval(monkeypatch):
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
    """Deterministic library convolutions (norm="batch"); pkd_kernels always are."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def after_steps(trainer: Trainer) -> dict[str, torch.Tensor]:
    for done in range(STEPS):
        if done % len(trainer.order) == 0:
            trainer.begin_epoch(done // len(trainer.order))
        trainer.advance()
    return full_state(trainer)


@pytest.mark.gpu
@pytest.mark.usefixtures("reproducible")
@NORMS
@pytest.mark.parametrize("members", [MEMBERS[:1], MEMBERS], ids=["M=1", "M=3"])
@each_structure()
def test_replays_of_a_captured_step_equal_eager_steps(structure, members, norm):
    options = {"device": "cuda", "norm": norm, "on_graph_failure": pytest.fail}
    replayed = on_device(structure, members, **options)
    eager = on_device(structure, members, use_graph=False, **options)
    assert differing(after_steps(replayed), after_steps(eager)) == []
    assert replayed._replay is not None


@pytest.mark.gpu
@pytest.mark.usefixtures("double_precision")
@NORMS
@each_structure()
def test_an_epoch_on_a_gpu_equals_one_with_the_reference_functions_on_a_cpu(structure, norm):
    """With kernels, replays and idle members; in float64, which keeps rounding errors small."""
    actual, expected = (
        full_state(
            train(on_device(structure, MEMBERS, device, norm, on_graph_failure=pytest.fail), 1)
        )
        for device in ("cuda", "cpu")
    )
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(actual[key].cpu(), value, rtol=0, atol=1e-10)


@pytest.mark.gpu
@each_structure()
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
