"""Training a stack: equal to single runs, and every gradient where it belongs.

In float64: Adam divides by the size of a gradient, so where that is nearly zero it turns rounding
into steps.
"""

import numpy as np
import pytest
import torch
from pkd_kernels import gather
from stack_helpers import (
    MEMBERS,
    SIZES,
    STRUCTURES,
    WIDTHS,
    batch,
    gradients,
    make_networks,
    make_trainer,
    member_tensors,
    next_rows,
    tensors_of,
    train,
    train_set,
)
from torch import nn
from torch.func import functional_call, grad, vmap

from pkd.models.ganomaly import GAN, Reconstruction
from pkd.models.stack import Member
from pkd.training.callbacks import Callback, TrainingInterrupted
from pkd.training.losses import LOSSES, Objective, network_losses
from pkd.training.structures import KDGAN, TEACHER
from pkd.training.train_set import TeacherCache
from pkd.training.trainer import Trainer
from pkd.utils.errors import PkdError

pytestmark = pytest.mark.usefixtures("double_precision")

# Rounding in float64 is 1e-16; up to 80 steps of Adam make some 1e-11 of it.
CLOSE = {"rtol": 0, "atol": 1e-10}
WEIGHTS = (10.0, 1.0, 2.0, 0.5, 1.5, 0.7)
EVERY_STRUCTURE = pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)


def assert_tensors_close(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(
            found[key], value, **(tolerance or CLOSE), msg=lambda m, key=key: f"{key}: {m}"
        )


def assert_tensors_equal(found, expected):
    assert found.keys() == expected.keys()
    assert [k for k, v in expected.items() if not torch.equal(found[k], v)] == []


def by_prefix(tensors, prefix):
    return {k: v for k, v in tensors.items() if k.startswith(prefix)}


def single_and_stacked(structure, norm="instance", reduction="mean", **options):
    options |= {"objective": Objective(WEIGHTS, reduction), "norm": norm}
    stack = make_trainer(structure, **options)
    return stack, [make_trainer(structure, (member,), **options) for member in MEMBERS]


def assert_member_equals(stack, k, single):
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


@EVERY_STRUCTURE
@pytest.mark.parametrize("reduction", ["mean", "norm"])
def test_a_stack_of_three_equals_three_single_runs(structure, reduction):
    stack, singles = single_and_stacked(structure, reduction=reduction)
    before = tensors_of(stack)
    epochs = 4
    train(stack, epochs)
    assert epochs * min(stack.steps) >= 50
    assert len(set(stack.steps)) == 3
    for k, single in enumerate(singles):
        assert_member_equals(stack, k, train(single, epochs))
    moved = {k.split(".")[0] for k, v in tensors_of(stack).items() if (v - before[k]).max() > 0.01}
    assert moved == set(stack.networks)


@pytest.mark.parametrize("number", [2, 4])
def test_a_stack_normalised_over_batches_equals_single_runs(number):
    stack, singles = single_and_stacked(KDGAN[number], norm="batch", batch_size=3)
    epochs = 13
    train(stack, epochs)
    assert epochs * min(stack.steps) >= 50
    assert any("running_mean" in key for key in tensors_of(stack))
    for k, single in enumerate(singles):
        assert_member_equals(stack, k, train(single, epochs))


@pytest.mark.parametrize("norm", ["instance", "batch"])
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


@pytest.mark.usefixtures("every_step_reported")
@pytest.mark.parametrize("norm", ["instance", "batch"])
@EVERY_STRUCTURE
def test_a_member_that_is_done_stays_unchanged_while_others_go_on(structure, norm):
    """Bit for bit: weights, running statistics and Adam's state, at every step of the others."""
    trainer = make_trainer(structure, norm=norm)

    def parts(tensors):
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
        now = parts(tensors_of(trainer) | moments())
        for k, steps in enumerate(trainer.steps):
            if done > steps:
                assert_tensors_equal(now[k], before[k])
            elif before is not None:
                assert any(not torch.equal(now[k][key], before[k][key]) for key in now[k])
        before = now
    assert done == max(trainer.steps)
    assert trainer.optimizer.step_count.tolist() == list(trainer.steps)


def test_a_finished_member_takes_part_again_in_the_next_epoch():
    trainer = train(make_trainer(KDGAN[2]), 2)
    assert trainer.optimizer.step_count.tolist() == [2 * steps for steps in trainer.steps]


def test_members_that_share_a_class_and_a_seed_are_equal():
    twins = (Member(0, 5), Member(1, 2), Member(0, 5))
    tensors = tensors_of(train(make_trainer(KDGAN[4], twins), 1))
    assert_tensors_close(member_tensors(tensors, 0), member_tensors(tensors, 2))


# -- Gradients -------------------------------------------------------------------------------------

ROWS = torch.tensor([[0, 3, 7], [12, 16, 19], [5, 3, 0]])  # [N, M], with a repeated image


class Loss(nn.Module):
    """Loss of one model as a function of its parameters."""

    def __init__(self, gan, kind, reduction):
        super().__init__()
        self.gan, self.kind, self.reduction = gan, kind, reduction

    def forward(self, x, *target):
        weights = torch.tensor([WEIGHTS])
        _, losses = network_losses(
            self.gan, x, Reconstruction(*target), weights, self.reduction, adversarial=True
        )
        return getattr(losses, self.kind).sum()


@pytest.mark.parametrize("reduction", ["mean", "norm"])
def test_stacked_gradients_are_vmap_of_the_single_models_gradient(reduction):
    trainer = make_trainer(KDGAN[2], objective=Objective(WEIGHTS, reduction))
    found = gradients(trainer, ROWS)["student"]
    m = len(MEMBERS)

    def by_model(tensor):  # [N, M*C, ...] to [M, N, C, ...]
        return tensor.view(len(ROWS), m, -1, *tensor.shape[2:]).transpose(0, 1)

    x, *cached = gather(trainer.sources, trainer.order, trainer.counter)
    x, target = by_model(x), [by_model(t) for t in cached]
    target[0], target[2] = (t.reshape(m, len(ROWS), -1) for t in (target[0], target[2]))
    state = {
        f"gan.{k}": p.detach().view(m, p.shape[0] // m, *p.shape[1:])
        for k, p in trainer.student.named_parameters()
    }
    single = GAN(trainer.student.architecture, [0])
    for kind in ("generator", "discriminator"):
        loss = Loss(single, kind, reduction)
        expected = vmap(grad(lambda p, *args, loss=loss: functional_call(loss, p, args)))(
            state, x, *target
        )
        for key, value in expected.items():
            key = key.removeprefix("gan.")
            if key.startswith(kind):
                torch.testing.assert_close(
                    found[key], value.reshape(found[key].shape), rtol=1e-8, atol=1e-10
                )
                assert key.endswith("beta") or value.abs().max() > 1e-6, key


@pytest.mark.parametrize("reduction", ["mean", "norm"])
@EVERY_STRUCTURE
def test_the_gradient_of_a_batch_is_the_mean_over_its_images(structure, reduction):
    trainer = make_trainer(structure, objective=Objective(WEIGHTS, reduction))
    whole = gradients(trainer, ROWS)
    single = [gradients(trainer, row[None]) for row in ROWS]
    for name in WIDTHS:
        mean = {k: sum(g[name][k] for g in single) / len(ROWS) for k in whole[name]}
        assert_tensors_close(whole[name], mean, rtol=1e-8, atol=1e-10)


def test_the_gradient_of_a_batch_normalised_over_it_is_no_such_mean():
    """Guards the test above."""
    trainer = make_trainer(KDGAN[2], norm="batch")
    whole = gradients(trainer, ROWS)["student"]
    single = [gradients(trainer, row[None])["student"] for row in ROWS]
    key = "generator.encoder.1.weight"
    assert (whole[key] - sum(g[key] for g in single) / len(ROWS)).abs().max() > 1e-4


def learning_by_their_own_losses(structure):
    own = {"teacher": structure.teacher, "student": structure.student}
    return [name for name, on in own.items() if on]


def largest(grads, part):
    return max(g.abs().max().item() for k, g in grads.items() if k.startswith(part))


@pytest.mark.parametrize("number", KDGAN)
def test_the_distillation_loss_leaves_no_gradient_in_the_teacher(number):
    """With nothing but K_l on, the teacher's generator has none and the student's has."""
    trainer = make_trainer(KDGAN[number], objective=Objective((0, 0, 0, 1, 1, 1)))
    found = gradients(trainer, ROWS)
    assert largest(found["teacher"], "generator") == 0
    assert largest(found["student"], "generator") > 1e-3


@pytest.mark.parametrize("number", [3, 4])
def test_a_teacher_learns_with_a_student_exactly_what_it_learns_without(number):
    with_student = tensors_of(train(make_trainer(KDGAN[number], batch_size=2), 2))
    alone = tensors_of(train(make_trainer(TEACHER, batch_size=2), 2))
    assert_tensors_close(by_prefix(with_student, "teacher"), by_prefix(alone, "teacher"))


@pytest.mark.parametrize("structure", [TEACHER, KDGAN[2], KDGAN[4]])
def test_generator_losses_leave_no_gradient_in_discriminators(structure):
    """Not even the adversarial term, which is computed through them."""
    adversarial, nothing = (
        gradients(make_trainer(structure, objective=Objective((0, 0, adv, 0, 0, 0))), ROWS)
        for adv in (100.0, 0.0)
    )
    for name in learning_by_their_own_losses(structure):
        assert largest(adversarial[name], "generator") > 1e-3
        for key, value in by_prefix(nothing[name], "discriminator").items():
            assert torch.equal(adversarial[name][key], value), key
        assert largest(nothing[name], "discriminator") > 1e-3


@pytest.mark.parametrize("structure", [TEACHER, KDGAN[2], KDGAN[4]])
def test_the_discriminator_loss_leaves_generators_unchanged(structure):
    """With every generator term off a step moves the discriminators alone."""
    trainer = make_trainer(structure, objective=Objective((0.0,) * 6))
    before = tensors_of(trainer)
    next_rows(trainer, ROWS).step()
    trained = learning_by_their_own_losses(structure)
    for key, value in tensors_of(trainer).items():
        network, part = key.split(".")[:2]
        moves = part == "discriminator" and network in trained
        assert torch.equal(value, before[key]) != moves, key


@pytest.mark.parametrize("norm", ["instance", "batch"])
@EVERY_STRUCTURE
def test_what_a_structure_does_not_train_stays_bit_for_bit(structure, norm):
    """A frozen teacher's weights and statistics, and a discriminator that has no loss."""
    trainer = make_trainer(structure, norm=norm, batch_size=2)
    before = tensors_of(trainer)
    train(trainer, 1)
    after = tensors_of(trainer)
    trained = {
        "teacher.generator": structure.teacher,
        "teacher.discriminator": structure.teacher,
        "student.generator": "student" in structure.trained,
        "student.discriminator": structure.student,
    }
    for key, value in after.items():
        on = trained[".".join(key.split(".")[:2])]
        assert torch.equal(value, before[key]) != on, key
    frozen = [] if structure.teacher else list(trainer.teacher.parameters())
    assert all(p.grad is None for p in frozen)


def test_a_teacher_is_trained_without_any_student():
    members, data = MEMBERS[:1], train_set(MEMBERS[:1])
    trainer = Trainer(TEACHER, make_networks(members)["teacher"], None, members, data)
    list(trainer.epoch(0))
    assert list(trainer.history.epoch_means()) == ["teacher"]


# -- The frozen teacher's cache --------------------------------------------------------------------

SHARING = (Member(0, 0), Member(1, 0), Member(0, 1), Member(3, 7))


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("cache_batch", [1, 8, 64])
def test_the_cached_teacher_is_the_live_teacher_for_every_image(norm, cache_batch, monkeypatch):
    """Members 0 and 2 share a class but not a teacher; classes end amid a batch."""
    monkeypatch.setattr("pkd.training.train_set.CACHE_BATCH", cache_batch)
    data = train_set(SHARING)
    teacher = train(make_trainer(TEACHER, SHARING, norm=norm, data=data), 1).teacher.eval()
    sizes = torch.tensor(data.sizes)
    order = torch.minimum(torch.arange(max(data.sizes))[:, None], sizes - 1)[:, None]
    with torch.no_grad():
        sources = TeacherCache(teacher, data, lambda: None).sources
        assert {len(outputs) for outputs, _ in sources} == {sum(data.sizes)}
        for step in range(max(data.sizes)):
            live = teacher.generator(batch(data, order[step]))
            cached = gather(sources, order, torch.tensor([step]))
            for found, expected in zip(cached, live, strict=True):
                torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("number", [1, 2])
def test_training_with_the_cached_teacher_is_training_with_the_live_one(number, norm, monkeypatch):
    cached, live = (make_trainer(KDGAN[number], SHARING, norm=norm, batch_size=2) for _ in range(2))
    train(cached, 3)

    def gather_live(sources, order, step):
        (x,) = gather(sources[:1], order, step)
        with torch.no_grad():
            return x, *live.teacher.generator(x)

    monkeypatch.setattr("pkd.training.trainer.gather", gather_live)
    assert_tensors_close(tensors_of(train(live, 3)), tensors_of(cached))


@pytest.mark.parametrize("number", KDGAN)
def test_only_a_frozen_teacher_is_cached(number):
    assert (len(make_trainer(KDGAN[number]).sources) == 4) == (number in (1, 2))


def test_a_callback_can_stop_the_caching_of_the_teacher():
    class Stop(Callback):
        def on_batch_end(self):
            raise TrainingInterrupted

    with pytest.raises(TrainingInterrupted):
        make_trainer(KDGAN[1], callback=Stop())


def test_an_epoch_shows_every_image_of_a_class_exactly_once():
    trainer = make_trainer(KDGAN[4])
    order = trainer.schedule.order(0)
    assert order.shape == (20, 1, 3)
    for k, (member, steps) in enumerate(zip(MEMBERS, trainer.steps, strict=True)):
        assert steps == SIZES[member.normal_class]
        assert sorted(order[:steps, 0, k].tolist()) == list(range(steps))


def test_a_trainer_orders_by_its_phase_and_epoch():
    orders = [
        make_trainer(KDGAN[4], phase=phase).schedule.order(epoch)
        for phase, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    for k, size in enumerate(SIZES[member.normal_class] for member in MEMBERS):
        assert len({tuple(order[:size, 0, k].tolist()) for order in orders}) == len(orders)


def test_an_incomplete_batch_is_dropped():
    trainer = make_trainer(KDGAN[4], batch_size=4)
    assert trainer.steps == (3, 4, 5)
    order = trainer.schedule.order(0)
    assert order.shape == (5, 4, 3)
    for k, (size, steps) in enumerate(zip(trainer.data.sizes, trainer.steps, strict=True)):
        shown = order[:steps, :, k].flatten().tolist()
        assert len(set(shown)) == len(shown) == 4 * steps
        assert set(shown) <= set(range(size))
        assert (order[steps:, :, k] == 0).all()
    assert set(order[..., 2].flatten().tolist()) == set(range(20))


def test_the_image_that_is_dropped_differs_by_epoch():
    member = MEMBERS[0]
    assert len({int(member.data_order(13, 0, epoch)[12]) for epoch in range(20)}) > 3


def test_a_members_order_does_not_depend_on_its_neighbours():
    stack = make_trainer(KDGAN[4], batch_size=4).schedule.order(2)
    for k, member in enumerate(MEMBERS):
        alone = make_trainer(KDGAN[4], (member,), batch_size=4).schedule.order(2)
        assert torch.equal(stack[: len(alone), :, k], alone[..., 0])


def test_the_order_differs_by_epoch_phase_seed_and_class_and_is_repeatable():
    orders = {
        (member, phase, epoch): tuple(member.data_order(20, phase, epoch))
        for member in (Member(0, 0), Member(0, 1), Member(1, 0))
        for phase in range(3)
        for epoch in range(3)
    }
    assert len(set(orders.values())) == len(orders)
    assert orders == {(m, *rest): tuple(m.data_order(20, *rest)) for m, *rest in orders}


def test_seeds_of_first_weights_differ_by_seed_class_and_role():
    members = [Member(k, seed) for k in range(10) for seed in range(3)]
    seeds = [member.initial_seed(role) for member in members for role in (0, 1)]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [member.initial_seed(role) for member in members for role in (0, 1)]


def test_a_batch_holds_each_members_own_class_scaled_to_plus_minus_one():
    labels = np.array([1, 0, 1, 0, 2])
    images = torch.tensor([0, 51, 102, 204, 255], dtype=torch.uint8)[:, None, None, None]
    data = type(train_set())(images.expand(-1, 1, 32, 32), labels, [Member(1, 0), Member(0, 0)])
    assert data.sizes == (2, 2)
    x = batch(data, torch.tensor([[0, 1], [1, 0]]))
    assert x.shape == (2, 2, 32, 32)
    expected = [[-1.0, 0.6], [-0.2, -0.6]]
    np.testing.assert_allclose(x[:, :, 31, 0], expected, atol=1e-6)


def test_a_limit_takes_the_first_images_of_each_class():
    everything, limited = train_set(), train_set(limit=15)
    assert limited.sizes == (13, 15, 15)
    rows = torch.tensor([[12, 14, 14], [0, 0, 0]])
    assert torch.equal(batch(limited, rows), batch(everything, rows))


def spoil(trainer, member, value=float("nan")):
    """Make one weight of a member's trained networks not finite."""
    gan = next(iter(trainer.networks.values()))
    with torch.no_grad():
        gan.generator.encoder[1].weight.view(len(MEMBERS), -1)[member, 0] = value


def spoil_at(trainer, spoiled_step, member, *, after):
    """Have a member spoiled just before or just after a step."""
    step, taken = trainer.step, []

    def spoiling_step():
        if len(taken) == spoiled_step and not after:
            spoil(trainer, member)
        step()
        if len(taken) == spoiled_step and after:
            spoil(trainer, member)
        taken.append(None)

    trainer.step = spoiling_step


def complaint(member, step, epoch):
    named = MEMBERS[member]
    return rf"class {named.normal_class}, seed {named.seed} .* finite at step {step + 1} of {epoch}"


def test_the_learning_rate_falls_to_zero_with_each_members_own_steps():
    trainer = make_trainer(KDGAN[1], lr=0.1, decay_epochs=4)
    rates = torch.cat([trainer.schedule.rates(epoch) for epoch in range(4)]).view(4, 20, 3)
    for k, steps in enumerate(trainer.steps):
        mine = rates[:, :steps, k].flatten()
        expected = 0.1 * (1 - torch.arange(4 * steps) / (4 * steps))
        torch.testing.assert_close(mine, expected.to(mine))
    assert (rates >= 0).all()


def test_the_learning_rate_is_constant_unless_asked_to_fall():
    trainer = make_trainer(KDGAN[1], lr=0.1)
    assert (trainer.schedule.rates(499) == torch.tensor(0.1).to(trainer.history.values)).all()
    list(trainer.epoch(0))
    assert trainer.optimizer.param_groups[0]["lr"].tolist() == pytest.approx([0.1] * 3)


@pytest.mark.usefixtures("every_step_reported")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("member", range(3))
@EVERY_STRUCTURE
def test_a_loss_that_is_not_finite_names_member_and_step(structure, member, value):
    """Steps and epochs count from 1 for the reader."""
    trainer = make_trainer(structure)
    with pytest.raises(PkdError, match=complaint(member, 3, "epoch 3")):
        for step in trainer.epoch(2):
            if step == 3:
                spoil(trainer, member, value)
    assert step == 3


def test_the_first_bad_step_is_named_when_several_are_checked_at_once(monkeypatch):
    monkeypatch.setattr("pkd.training.trainer.REPORT_SECONDS", 1e9)
    trainer = make_trainer(KDGAN[2])
    spoil_at(trainer, 7, member=1, after=False)
    with pytest.raises(PkdError, match=complaint(1, 7, "epoch 1")):
        list(trainer.epoch(0))


def test_weights_that_the_last_step_spoils_are_noticed():
    """No loss tells: nothing is computed with them any more."""
    trainer = make_trainer(KDGAN[2])
    spoil_at(trainer, max(trainer.steps) - 1, member=2, after=True)
    with pytest.raises(PkdError, match=complaint(2, 19, "epoch 1")):
        list(trainer.epoch(0))


def test_weights_that_a_members_own_last_step_spoils_are_noticed():
    """The others go on; what the idle member computes then is not looked at, its weights are."""
    trainer = make_trainer(KDGAN[2])
    spoil_at(trainer, trainer.steps[0] - 1, member=0, after=True)
    with pytest.raises(PkdError, match="class 0, seed 5"):
        list(trainer.epoch(0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_losses_of_a_member_that_is_done_are_not_checked(value):
    trainer = make_trainer(KDGAN[2])
    trainer.history.values[trainer.steps[0] :, 0] = value
    trainer.check_finite(0, max(trainer.steps), 0)
    trainer.history.values[trainer.steps[0] - 1, 0, 0, 3] = value
    with pytest.raises(PkdError, match=complaint(0, trainer.steps[0] - 1, "epoch 1")):
        trainer.check_finite(0, max(trainer.steps), 0)


@pytest.mark.parametrize("norm", ["instance", "batch"])
@EVERY_STRUCTURE
def test_a_member_that_is_not_finite_disturbs_no_other(structure, norm):
    spoiled, clean = make_trainer(structure, norm=norm), make_trainer(structure, norm=norm)
    spoil(spoiled, 0)
    for trainer in (spoiled, clean):
        for _ in range(3):
            next_rows(trainer, ROWS).step()
    for k in (1, 2):
        assert_tensors_equal(
            member_tensors(tensors_of(spoiled), k), member_tensors(tensors_of(clean), k)
        )


@pytest.mark.usefixtures("every_step_reported")
@pytest.mark.parametrize(("stop", "norm"), [(1, "instance"), (14, "batch"), (18, "instance")])
@EVERY_STRUCTURE
def test_an_interrupted_training_ends_with_the_same_bits(structure, stop, norm):
    """Before, between and after the ends of the smaller classes."""
    whole, broken = make_trainer(structure, norm=norm), make_trainer(structure, norm=norm)
    train(whole, 2)
    list(broken.epoch(0))
    for step in broken.epoch(1):
        if step == stop:
            state = {k: v.clone() for k, v in broken.state(step).items()}
            break
    fresh = make_trainer(structure, norm=norm)
    fresh.load_state(state)
    list(fresh.epoch(1, stop))
    assert_tensors_equal(tensors_of(fresh), tensors_of(whole))
    assert_tensors_equal(fresh.state(20), whole.state(20))
    assert fresh.history.epoch_means() == whole.history.epoch_means()


def test_a_state_holds_everything_that_is_trained_and_no_frozen_teacher():
    state = make_trainer(KDGAN[2]).state(0)
    assert {k.split(".")[0] for k in state} == {"student", "optimizer", "history"}
    state = make_trainer(KDGAN[3]).state(0)
    assert {k.split(".")[0] for k in state} == {"teacher", "student", "optimizer", "history"}


def test_a_state_of_another_architecture_is_refused():
    state = make_trainer(KDGAN[2], networks=make_networks(latent=4)).state(0)
    with pytest.raises(PkdError, match="student is of another architecture"):
        make_trainer(KDGAN[2]).load_state(state)


LOADED = ["history", *(f"optimizer.{name}" for name in ("exp_avg", "exp_avg_sq", "step_count"))]


@pytest.mark.parametrize("name", LOADED)
def test_a_state_that_lacks_a_tensor_is_refused(name):
    state = make_trainer(KDGAN[2]).state(5)
    del state[name]
    with pytest.raises(PkdError, match=name):
        make_trainer(KDGAN[2]).load_state(state)


@pytest.mark.parametrize("name", LOADED)
def test_a_state_with_a_tensor_of_another_shape_is_refused(name):
    state = make_trainer(KDGAN[2]).state(20)
    state[name] = torch.cat([state[name], state[name]])
    with pytest.raises(PkdError, match=name):
        make_trainer(KDGAN[2]).load_state(state)


def test_loading_a_state_keeps_the_weights_views_of_the_flat_buffer():
    trainer = make_trainer(KDGAN[2])
    trainer.load_state({k: v.clone() for k, v in trainer.state(0).items()})
    before = tensors_of(trainer)
    trainer.optimizer.flat.add_(1)
    after = tensors_of(trainer)
    student = [k for k in before if k.startswith("student")]
    assert all(not torch.equal(after[k], before[k]) for k in student)


def test_losses_shown_are_those_of_the_step_and_switched_off_terms_are_zero():
    trainer = make_trainer(KDGAN[1])
    list(trainer.epoch(0))
    columns = dict(zip(LOSSES, trainer.history.values[:13, 0, 0].T, strict=True))
    for off in ("discriminator", "con", "enc", "adv"):
        assert (columns[off] == 0).all()
    total = columns["k1"] + columns["kx"] + columns["k2"]
    torch.testing.assert_close(columns["generator"], total, **CLOSE)
    shown = trainer.history.recent()  # of a discriminator that is not trained, nothing
    assert shown == {"student G": pytest.approx(trainer.history.values[19, :, 0, 0].mean().item())}


def test_mean_losses_of_an_epoch_leave_idle_steps_out():
    trainer = make_trainer(KDGAN[2])
    list(trainer.epoch(0))
    trainer.history.values[13:, 0] = float("nan")
    found = trainer.history.epoch_means()["student"]["generator"]
    assert found[0] == pytest.approx(trainer.history.values[:13, 0, 0, 0].mean().item())
