"""Data order and learning rates of the epochs."""

import pytest
import torch
from stack_helpers import MEMBERS, SIZES

from pkd.models.stack import Member
from pkd.training.schedule import EpochSchedule

CLASS_SIZES = tuple(SIZES[member.normal_class] for member in MEMBERS)


def make_schedule(
    members=MEMBERS, *, batch_size=1, phase=0, lr=0.1, decay_epochs=float("inf")
) -> EpochSchedule:
    sizes = [SIZES[member.normal_class] for member in members]
    return EpochSchedule(members, sizes, batch_size, phase, lr, decay_epochs)


def test_an_epoch_contains_every_image_of_a_class_exactly_once():
    schedule = make_schedule()
    order = schedule.order(0)
    assert order.shape == (20, 1, 3)
    for k, (size, steps) in enumerate(zip(CLASS_SIZES, schedule.steps, strict=True)):
        assert steps == size
        assert sorted(order[:steps, 0, k].tolist()) == list(range(steps))


def test_the_order_depends_on_phase_and_epoch():
    orders = [
        make_schedule(phase=phase).order(epoch) for phase, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    for k, size in enumerate(CLASS_SIZES):
        assert len({tuple(order[:size, 0, k].tolist()) for order in orders}) == len(orders)


def test_an_incomplete_batch_is_dropped():
    schedule = make_schedule(batch_size=4)
    assert schedule.steps == (3, 4, 5)
    order = schedule.order(0)
    assert order.shape == (5, 4, 3)
    for k, (size, steps) in enumerate(zip(CLASS_SIZES, schedule.steps, strict=True)):
        rows = order[:steps, :, k].flatten().tolist()
        assert len(set(rows)) == len(rows) == 4 * steps
        assert set(rows) <= set(range(size))
        assert (order[steps:, :, k] == 0).all()
    assert set(order[..., 2].flatten().tolist()) == set(range(20))


def test_the_dropped_image_differs_by_epoch():
    member = MEMBERS[0]
    assert len({int(member.data_order(13, 0, epoch)[12]) for epoch in range(20)}) > 3


def test_the_order_of_a_member_does_not_depend_on_the_stack():
    stack = make_schedule(batch_size=4).order(2)
    for k, member in enumerate(MEMBERS):
        alone = make_schedule((member,), batch_size=4).order(2)
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


def test_seeds_of_initial_weights_differ_by_seed_class_and_role():
    members = [Member(k, seed) for k in range(10) for seed in range(3)]
    seeds = [member.initial_seed(role) for member in members for role in (0, 1)]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [member.initial_seed(role) for member in members for role in (0, 1)]


def test_the_learning_rate_decreases_to_zero_with_the_steps_of_each_member():
    schedule = make_schedule(lr=0.1, decay_epochs=4)
    rates = torch.cat([schedule.rates(epoch) for epoch in range(4)]).view(4, 20, 3)
    for k, steps in enumerate(schedule.steps):
        member_rates = rates[:, :steps, k].flatten()
        expected = 0.1 * (1 - torch.arange(4 * steps) / (4 * steps))
        torch.testing.assert_close(member_rates, expected.to(member_rates))
    assert (rates >= 0).all()


@pytest.mark.parametrize("epoch", [0, 499])
def test_the_learning_rate_is_constant_without_decay(epoch):
    rates = make_schedule(lr=0.1).rates(epoch)
    assert rates.dtype == torch.float64
    assert (rates == 0.1).all()
