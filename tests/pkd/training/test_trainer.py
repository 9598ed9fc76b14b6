"""Training a stack: equal to single runs, idle members, checkpoints, and non-finite values.

In float64: Adam divides by the size of a gradient, so a gradient near zero turns rounding errors
into steps.
"""

import pytest
import torch
from stack_helpers import (
    CLOSE,
    LOSS_WEIGHTS,
    MEMBERS,
    NORMS,
    ROWS,
    STRUCTURES,
    assert_tensors_close,
    assert_tensors_equal,
    each_structure,
    each_structure_and_norm,
    make_networks,
    make_trainer,
    member_tensors,
    next_rows,
    tensors_of,
    train,
    train_set,
    with_prefix,
)

from pkd.models.stack import Member
from pkd.training.losses import LOSSES, Objective
from pkd.training.schedule import EpochSchedule
from pkd.training.structures import KDGAN, TEACHER
from pkd.training.trainer import Trainer
from pkd.utils.errors import CheckpointError, PkdError

pytestmark = pytest.mark.usefixtures("double_precision")

FAST_PAIRS = {("KDGAN-2", "batch"), ("KDGAN-4", "instance")}


# -- A stack equals single runs --------------------------------------------------------------------


def stack_and_singles(structure, norm="instance", reduction="mean", **options):
    options |= {"objective": Objective(LOSS_WEIGHTS, reduction), "norm": norm}
    stack = make_trainer(structure, **options)
    return stack, [make_trainer(structure, (member,), **options) for member in MEMBERS]


def assert_member_equals(stack: Trainer, k: int, single: Trainer) -> None:
    assert_tensors_close(
        member_tensors(tensors_of(stack), k), member_tensors(tensors_of(single), 0, 1)
    )
    steps = single.steps[0]
    assert stack.steps[k] == steps
    torch.testing.assert_close(
        stack.history.values[:steps, k], single.history.values[:, 0], **CLOSE
    )
    for network, losses in single.history.epoch_means().items():
        for loss, (value,) in losses.items():
            assert stack.history.epoch_means()[network][loss][k] == pytest.approx(value, abs=1e-10)


STACKS = [
    pytest.param(
        structure,
        reduction,
        id=f"{name}-{reduction}",
        marks=() if (name, reduction) == ("KDGAN-4", "mean") else pytest.mark.slow,
    )
    for name, structure in STRUCTURES.items()
    for reduction in ("mean", "norm")
]


@pytest.mark.parametrize(("structure", "reduction"), STACKS)
def test_a_stack_of_three_equals_three_single_runs(structure, reduction):
    stack, singles = stack_and_singles(structure, reduction=reduction)
    before = tensors_of(stack)
    epochs = 4
    train(stack, epochs)
    assert epochs * min(stack.steps) >= 50
    assert len(set(stack.steps)) == 3
    for k, single in enumerate(singles):
        assert_member_equals(stack, k, train(single, epochs))
    moved = {k.split(".")[0] for k, v in tensors_of(stack).items() if (v - before[k]).max() > 0.01}
    assert moved == set(stack.networks)


@pytest.mark.parametrize("number", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_stack_with_batch_normalisation_equals_single_runs(number):
    stack, singles = stack_and_singles(KDGAN[number], norm="batch", batch_size=3)
    epochs = 13
    train(stack, epochs)
    assert epochs * min(stack.steps) >= 50
    assert any("running_mean" in key for key in tensors_of(stack))
    for k, single in enumerate(singles):
        assert_member_equals(stack, k, train(single, epochs))


@NORMS
def test_a_stack_equals_single_runs_over_the_phases_of_a_progressive_run(norm):
    def run(members):
        networks = make_networks(members, norm)
        for phase, structure in enumerate([TEACHER, KDGAN[2], KDGAN[3]]):
            trainer = make_trainer(
                structure,
                members,
                networks=networks,
                phase=phase,
                batch_size=3,
                lr=0.001,
                decay_epochs=3,
            )
            train(trainer, 3)
        return tensors_of(trainer)

    stack = run(MEMBERS)
    for k, member in enumerate(MEMBERS):
        assert_tensors_close(member_tensors(stack, k), member_tensors(run((member,)), 0, 1))


def test_members_with_the_same_class_and_seed_are_equal():
    twins = (Member(0, 5), Member(1, 2), Member(0, 5))
    tensors = tensors_of(train(make_trainer(KDGAN[4], twins), 1))
    assert_tensors_close(member_tensors(tensors, 0), member_tensors(tensors, 2))


def test_a_teacher_is_trained_without_a_student():
    members, data = MEMBERS[:1], train_set(MEMBERS[:1])
    trainer = Trainer(TEACHER, make_networks(members)["teacher"], None, members, data)
    list(trainer.epoch(0))
    assert list(trainer.history.epoch_means()) == ["teacher"]


@pytest.mark.parametrize("phase", [0, 1])
def test_a_trainer_follows_the_schedule_of_its_phase(phase):
    trainer = make_trainer(KDGAN[4], phase=phase, batch_size=4, lr=0.1, decay_epochs=7)
    schedule = EpochSchedule(MEMBERS, trainer.data.sizes, 4, phase, 0.1, 7)
    trainer.begin_epoch(3)
    assert torch.equal(trainer.order, schedule.order(3))
    assert torch.equal(trainer.rates, schedule.rates(3))


def test_the_optimizer_keeps_a_constant_learning_rate_without_decay():
    trainer = make_trainer(KDGAN[1], lr=0.1)
    list(trainer.epoch(0))
    assert trainer.optimizer.param_groups[0]["lr"].tolist() == pytest.approx([0.1] * 3)


# -- Learning rates of networks -------------------------------------------------------------------


@NORMS
def test_factors_give_each_network_the_rate_of_an_optimizer_of_its_own(norm):
    """A teacher's factor of 0.1 moves the teacher as a trainer at a tenth of the rate does.

    A trained teacher is independent of the student, so training it alone is the same.
    """
    factored = train(make_trainer(KDGAN[3], norm=norm, lr=0.01, lr_factors={"teacher": 0.1}), 1)
    teacher = with_prefix(tensors_of(factored), "teacher")
    alone = train(make_trainer(TEACHER, norm=norm, lr=0.001), 1)
    assert_tensors_close(teacher, with_prefix(tensors_of(alone), "teacher"))
    common = train(make_trainer(KDGAN[3], norm=norm, lr=0.01), 1)
    assert not torch.equal(
        teacher["teacher.generator.encoder.0.weight"],
        tensors_of(common)["teacher.generator.encoder.0.weight"],
    )


@each_structure(fast=("KDGAN-4",))
def test_a_factor_of_one_changes_no_bit(structure):
    plain = train(make_trainer(structure), 1)
    factored = train(make_trainer(structure, lr_factors={"teacher": 1.0, "student": 1.0}), 1)
    assert_tensors_equal(tensors_of(factored), tensors_of(plain))
    assert_tensors_equal(factored.state(20), plain.state(20))


def test_factors_hold_for_generator_and_discriminator():
    trainer = make_trainer(KDGAN[4], lr_factors={"teacher": 0.1})
    factors = dict(
        zip(trainer.optimizer.param_groups[0]["params"], trainer.optimizer.lr_factors, strict=True)
    )
    assert {factors[p] for p in trainer.teacher.parameters()} == {0.1}
    assert {factors[p] for p in trainer.student.parameters()} == {1.0}


def test_recorded_losses_are_those_of_the_step_and_disabled_terms_are_zero():
    trainer = make_trainer(KDGAN[1])
    list(trainer.epoch(0))
    columns = dict(zip(LOSSES, trainer.history.values[:13, 0, 0].T, strict=True))
    for disabled in ("discriminator", "con", "enc", "adv"):
        assert (columns[disabled] == 0).all()
    total = columns["k1"] + columns["kx"] + columns["k2"]
    torch.testing.assert_close(columns["generator"], total, **CLOSE)
    recent = trainer.history.recent()  # no entry for a discriminator that is not trained
    assert recent == {"student G": pytest.approx(trainer.history.values[19, :, 0, 0].mean().item())}


# -- Idle members ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("every_step_reported")
@each_structure_and_norm(fast=FAST_PAIRS)
def test_an_idle_member_stays_bitwise_unchanged_while_others_train(structure, norm):
    """Weights, running statistics and Adam's state, at every step of the other members."""
    trainer = make_trainer(structure, norm=norm)

    def by_member(tensors):
        return {k: member_tensors(tensors, k) for k in range(len(MEMBERS))}

    def moments():
        optimizer, sizes = trainer.optimizer, trainer.optimizer.sizes
        pieces = [3 * n for n in sizes]
        return {
            f"{name}.{i}": piece.clone()
            for name in ("exp_avg", "exp_avg_sq")
            for i, piece in enumerate(getattr(optimizer, name).split(pieces))
        } | {"step": optimizer.step_count.clone()}

    before = None
    for done in trainer.epoch(0):
        now = by_member(tensors_of(trainer) | moments())
        for k, steps in enumerate(trainer.steps):
            if done > steps:
                assert_tensors_equal(now[k], before[k])
            elif before is not None:
                assert any(not torch.equal(now[k][key], before[k][key]) for key in now[k])
        before = now
    assert done == max(trainer.steps)
    assert trainer.optimizer.step_count.tolist() == list(trainer.steps)


def test_an_idle_member_is_active_again_in_the_next_epoch():
    trainer = train(make_trainer(KDGAN[2]), 2)
    assert trainer.optimizer.step_count.tolist() == [2 * steps for steps in trainer.steps]


# -- Values that are not finite --------------------------------------------------------------------


def spoil(trainer: Trainer, member: int, value: float = float("nan")) -> None:
    """Set one weight of a member's trained networks to a value that is not finite."""
    gan = next(iter(trainer.networks.values()))
    with torch.no_grad():
        gan.generator.encoder[1].weight.view(len(MEMBERS), -1)[member, 0] = value


def spoil_at(trainer: Trainer, spoiled_step: int, member: int, *, after: bool) -> None:
    """Spoil a member just before or just after a step."""
    step, steps_done = trainer.step, []

    def spoiling_step():
        if len(steps_done) == spoiled_step and not after:
            spoil(trainer, member)
        step()
        if len(steps_done) == spoiled_step and after:
            spoil(trainer, member)
        steps_done.append(None)

    trainer.step = spoiling_step


def error_pattern(member: int, step: int, epoch: str) -> str:
    normal_class, seed = MEMBERS[member].normal_class, MEMBERS[member].seed
    return rf"class {normal_class}, seed {seed} .* finite at step {step + 1} of {epoch}.* `lr`"


SPOILED = [
    pytest.param(
        structure,
        member,
        value,
        id=f"{name}-{member}-{value}",
        marks=() if (name, member) == ("KDGAN-4", 1) else pytest.mark.slow,
    )
    for name, structure in STRUCTURES.items()
    for member in range(3)
    for value in (float("nan"), float("inf"), -float("inf"))
]


@pytest.mark.usefixtures("every_step_reported")
@pytest.mark.parametrize(("structure", "member", "value"), SPOILED)
def test_a_loss_that_is_not_finite_is_reported_with_member_and_step(structure, member, value):
    """Messages count steps and epochs from 1."""
    trainer = make_trainer(structure)
    steps = trainer.epoch(2)
    assert [next(steps) for _ in range(3)] == [1, 2, 3]
    spoil(trainer, member, value)
    with pytest.raises(PkdError, match=error_pattern(member, 3, "epoch 3")):
        next(steps)


def test_the_first_bad_step_is_reported_when_several_are_checked_at_once(monkeypatch):
    monkeypatch.setattr("pkd.training.trainer.REPORT_SECONDS", 1e9)
    trainer = make_trainer(KDGAN[2])
    spoil_at(trainer, 7, member=1, after=False)
    with pytest.raises(PkdError, match=error_pattern(1, 7, "epoch 1")):
        list(trainer.epoch(0))


def test_weights_that_turn_bad_in_the_last_step_are_reported():
    """No loss shows it: nothing is computed from these weights any more."""
    trainer = make_trainer(KDGAN[2])
    spoil_at(trainer, max(trainer.steps) - 1, member=2, after=True)
    with pytest.raises(PkdError, match=error_pattern(2, 19, "epoch 1")):
        list(trainer.epoch(0))


def test_weights_that_turn_bad_in_a_members_last_step_are_reported():
    """The losses of an idle member are not checked, but its weights are."""
    trainer = make_trainer(KDGAN[2])
    spoil_at(trainer, trainer.steps[0] - 1, member=0, after=True)
    with pytest.raises(PkdError, match="class 0, seed 5"):
        list(trainer.epoch(0))


@each_structure_and_norm(fast=FAST_PAIRS)
def test_a_member_that_is_not_finite_leaves_the_others_unchanged(structure, norm):
    spoiled, clean = make_trainer(structure, norm=norm), make_trainer(structure, norm=norm)
    spoil(spoiled, 0)
    for trainer in (spoiled, clean):
        for _ in range(3):
            next_rows(trainer, ROWS).step()
    for k in (1, 2):
        assert_tensors_equal(
            member_tensors(tensors_of(spoiled), k), member_tensors(tensors_of(clean), k)
        )


# -- Checkpoints -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("every_step_reported")
@pytest.mark.parametrize(
    ("stop", "norm"),
    [
        pytest.param(1, "instance", marks=pytest.mark.slow),
        (14, "batch"),
        pytest.param(18, "instance", marks=pytest.mark.slow),
    ],
)
@each_structure(fast=("KDGAN-2", "KDGAN-4"))
def test_interrupted_training_ends_with_the_same_bits(structure, stop, norm):
    """Interrupted before, between and after the last steps of the smaller classes."""
    uninterrupted, interrupted = (make_trainer(structure, norm=norm) for _ in range(2))
    train(uninterrupted, 2)
    list(interrupted.epoch(0))
    for step in interrupted.epoch(1):
        if step == stop:
            state = {k: v.clone() for k, v in interrupted.state(step).items()}
            break
    resumed = make_trainer(structure, norm=norm)
    resumed.load_state(state)
    list(resumed.epoch(1, stop))
    assert_tensors_equal(tensors_of(resumed), tensors_of(uninterrupted))
    assert_tensors_equal(resumed.state(20), uninterrupted.state(20))
    assert resumed.history.epoch_means() == uninterrupted.history.epoch_means()


def test_a_state_holds_everything_that_is_trained_and_no_frozen_teacher():
    state = make_trainer(KDGAN[2]).state(0)
    assert {k.split(".")[0] for k in state} == {"student", "optimizer", "history"}
    state = make_trainer(KDGAN[3]).state(0)
    assert {k.split(".")[0] for k in state} == {"teacher", "student", "optimizer", "history"}


def test_a_state_of_another_architecture_is_refused():
    state = make_trainer(KDGAN[2], networks=make_networks(latent=4)).state(0)
    with pytest.raises(PkdError, match="student is of another architecture"):
        make_trainer(KDGAN[2]).load_state(state)


STATE_NAMES = [
    "history",
    *(f"optimizer.{name}" for name in ("exp_avg", "exp_avg_sq", "step_count")),
]


@pytest.mark.parametrize("name", STATE_NAMES)
def test_a_state_without_a_tensor_is_refused(name):
    state = make_trainer(KDGAN[2]).state(5)
    del state[name]
    with pytest.raises(CheckpointError, match=name):
        make_trainer(KDGAN[2]).load_state(state)


@pytest.mark.parametrize("name", STATE_NAMES)
def test_a_state_with_a_tensor_of_another_shape_is_refused(name):
    state = make_trainer(KDGAN[2]).state(20)
    state[name] = torch.cat([state[name], state[name]])
    with pytest.raises(CheckpointError, match=name):
        make_trainer(KDGAN[2]).load_state(state)


def test_weights_stay_views_of_the_flat_buffer_after_loading_a_state():
    trainer = make_trainer(KDGAN[2])
    trainer.load_state({k: v.clone() for k, v in trainer.state(0).items()})
    before = tensors_of(trainer)
    trainer.optimizer.flat.add_(1)
    after = tensors_of(trainer)
    student = [k for k in before if k.startswith("student")]
    assert all(not torch.equal(after[k], before[k]) for k in student)
