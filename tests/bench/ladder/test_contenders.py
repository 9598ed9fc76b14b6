"""All contenders of the ladder perform the same training as the plain loop.

On small networks: the result does not depend on the widths.
"""

from functools import partial

import pytest
import torch
from pkd_kernels import dispatch

from bench.baseline import PlainNetwork, largest_difference, member_parameters
from bench.ladder import loops, timing
from bench.ladder.cells import STRUCTURES, Cell, Settings
from bench.ladder.contenders import BASE, COMPILE, CONTENDERS, FUSED_ADAM
from bench.ladder.loops import Graphed, Plain, Vmap
from bench.ladder.timing import CHECK_STEPS, DisagreementError, check
from bench.ladder.training_setup import TrainingSetup

CPU = torch.device("cpu")
WIDTHS, IMAGES = (4, 8, 16), 8


def training_setup(structure: str, device: torch.device = CPU) -> TrainingSetup:
    return Cell(structure, "1-2-4", 1).training_setup(Settings(device, WIDTHS, images=IMAGES))


CASES = [
    pytest.param(structure, stack, name, id=f"{structure}, M = {stack}, {name}")
    for structure in STRUCTURES
    for stack in (1, 3)
    for name, entry in CONTENDERS.items()
    if name not in COMPILE and entry.applies(STRUCTURES[structure], stack, CPU)
]


@pytest.mark.parametrize(("structure", "stack", "name"), CASES)
def test_contenders_equal_the_plain_loop(structure, stack, name):
    setup = training_setup(structure)
    contender = CONTENDERS[name].build(setup, setup.members(stack))
    assert len(contender.members) == (1 if name == BASE else stack)
    contender.advance(CHECK_STEPS)
    check(setup, contender)


@pytest.mark.parametrize(
    ("error", "exact", "accepted"), [(1e-2, False, True), (1e-2, True, False), (1e-1, False, False)]
)
def test_tf32_may_round_more_but_not_hide_a_missing_term(error, exact, accepted, monkeypatch):
    monkeypatch.setattr(timing, "disagreement", lambda *_: {"student": error})
    setup = training_setup("KDGAN-2")
    if accepted:
        assert check(setup, None, exact) == error
    else:
        with pytest.raises(DisagreementError):
            check(setup, None, exact)


def test_grouped_convolution_runs_the_reference_with_any_backend(monkeypatch):
    monkeypatch.setattr(dispatch, "BACKEND", "none such")
    setup = training_setup("KDGAN-2")
    contender = CONTENDERS["grouped convolution"].build(setup, setup.members(3))
    contender.advance(CHECK_STEPS)
    check(setup, contender)


@pytest.mark.parametrize("name", ["torch.compile", "vmap(grad)"])
def test_gradients_by_torch_func_keep_no_intermediate_results(name, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    setup = training_setup("KDGAN-2")
    contender = CONTENDERS[name].build(setup, setup.members(3 if name == "vmap(grad)" else 1))
    contender.advance(1)
    params = [p for adam in contender.optimizers() for p in adam.param_groups[0]["params"]]
    assert all(p.grad is not None and p.grad.grad_fn is None for p in params)


@pytest.mark.slow
def test_torch_compile_captures_all_gradients_in_one_graph(monkeypatch):
    """A graph break inside `torch.func.grad` costs speed, or the compilation fails."""
    graphs, compile_step = [], torch.compile

    def run_graph(module, inputs):
        graphs.append([str(node.target) for node in module.graph.nodes])
        return module.forward

    def compile_eagerly(call, mode, dynamic):
        return compile_step(call, backend=run_graph, dynamic=dynamic)

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    setup = training_setup("KDGAN-2")
    contender = CONTENDERS["torch.compile"].build(setup, setup.members(1))
    contender.advance(CHECK_STEPS)
    check(setup, contender)
    convolutions = [sum("conv" in target for target in graph) for graph in graphs]
    # The frozen teacher; the student with both losses; Adam.
    assert [count > 0 for count in convolutions[:3]] == [True, True, False]
    assert not any(convolutions[2:])
    assert len(graphs) <= 5


@pytest.fixture
def fake_graphs(monkeypatch) -> None:
    """Capture on a CPU: the call runs three times, and a replay is a call."""

    def capture_call(call):
        for _ in range(3):
            call()
        return call

    monkeypatch.setattr(loops, "capture_call", capture_call)


@pytest.mark.usefixtures("fake_graphs")
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(
    "build",
    [
        lambda setup: Plain(setup, setup.members(1), partial(PlainNetwork, adam=FUSED_ADAM)),
        lambda setup: Plain(setup, setup.members(1), partial(PlainNetwork, adam=FUSED_ADAM), True),
        lambda setup: Vmap(setup, setup.members(3)),
    ],
    ids=["plain", "plain, teacher cached", "vmap"],
)
def test_the_warm_up_of_a_graph_changes_nothing(structure, build):
    setup = training_setup(structure)
    contender = Graphed(build(setup))
    contender.advance(CHECK_STEPS)
    check(setup, contender)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["plain graph", "plain graph, teacher cached"])
def test_graphs_of_the_plain_loop_equal_it(name, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # as in the measurement
    setup = training_setup("KDGAN-2", torch.device("cuda"))
    contender = CONTENDERS[name].build(setup, setup.members(1))
    contender.advance(CHECK_STEPS)
    check(setup, contender)


def test_members_of_one_class_start_with_equal_weights_in_every_stack():
    setup = training_setup("KDGAN-3")
    members = setup.members(13)
    stack = setup.gan("student", members)
    for m in (0, 2, 9, 12):
        single = setup.gan("student", [members[m]])
        assert largest_difference(single, member_parameters(stack, m, 13)) == 0
    # The last one is class 2 with seed 1: it equals class 2 with seed 0, and no other class.
    assert largest_difference(single, member_parameters(stack, 2, 13)) == 0
    assert largest_difference(single, member_parameters(stack, 3, 13)) > 0


def test_a_trained_stack_does_not_change_the_weights_of_the_next():
    setup = training_setup("KDGAN-3")
    for p in setup.gan("student", setup.members(13)).parameters():
        p.data.zero_()
    assert any(p.any() for p in setup.gan("student", setup.members(13)).parameters())


@pytest.mark.parametrize("term", range(6))
@pytest.mark.parametrize("structure", ["KDGAN-2", "KDGAN-3"])
def test_a_missing_loss_term_is_detected(structure, term):
    setup = training_setup(structure)
    plain = Plain(setup, setup.members(1))
    for network in filter(None, (plain.loop.trained_teacher, plain.loop.student)):
        network.weights = [0.0 if i == term else w for i, w in enumerate(network.weights)]
    plain.advance(CHECK_STEPS)
    with pytest.raises(DisagreementError, match="differ from the plain loop's"):
        check(setup, plain)
