"""Losses of an epoch: checks for non-finite values, means, and the losses shown during training."""

import pytest
import torch
from stack_helpers import MEMBERS

from pkd.training.history import LossHistory
from pkd.training.losses import LOSSES
from pkd.utils.errors import PkdError

STEPS = (3, 5, 4)


@pytest.fixture
def history() -> LossHistory:
    """Losses 0, 1, 2... of three members; the student has no discriminator loss."""
    history = LossHistory(
        {"teacher": True, "student": False}, MEMBERS, STEPS, device=torch.device("cpu")
    )
    history.values.copy_(torch.arange(history.values.numel()).view_as(history.values))
    return history


@pytest.fixture
def weights() -> torch.Tensor:
    """(M * 2,) weights, two of each member."""
    return torch.ones(2 * len(MEMBERS))


def test_values_have_one_entry_per_step_member_network_and_loss(history):
    assert history.values.shape == (max(STEPS), len(MEMBERS), 2, len(LOSSES))
    assert history.steps_per_member.tolist() == list(STEPS)


def test_means_of_an_epoch_exclude_idle_steps(history):
    history.values[STEPS[0] :, 0] = float("nan")
    means = history.epoch_means()
    assert list(means) == ["teacher", "student"]
    assert list(means["student"]) == list(LOSSES)
    for k, steps in enumerate(STEPS):
        expected = history.values[:steps, k, 1, 0].mean().item()
        assert means["student"]["generator"][k] == pytest.approx(expected)


def test_recent_losses_are_those_of_the_last_checked_step(history, weights):
    history.check(0, 2, 0, weights, [weights])
    means = history.values[1].mean(0)
    assert history.recent() == {
        "teacher G": pytest.approx(means[0, 0].item()),
        "teacher D": pytest.approx(means[0, 1].item()),
        "student G": pytest.approx(means[1, 0].item()),
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_only_losses_of_active_members_are_checked(history, weights, value):
    last = STEPS[0] - 1
    history.values[last + 1 :, 0] = value
    history.check(0, max(STEPS), 0, weights, [weights])
    history.values[last, 0, 1, 3] = value
    message = rf"normal class 0, seed 5 are not finite at step {last + 1} of epoch 1;.* `lr`"
    with pytest.raises(PkdError, match=message):
        history.check(0, max(STEPS), 0, weights, [weights])


def test_only_the_given_steps_are_checked(history, weights):
    history.values[1, 1] = float("nan")
    history.check(2, max(STEPS), 0, weights, [weights])
    with pytest.raises(PkdError, match="at step 2 of epoch 3"):
        history.check(1, max(STEPS), 2, weights, [weights])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_reported_with_their_member(history, weights, value):
    weights[3] = value
    with pytest.raises(PkdError, match=r"normal class 3, seed 1 .* at step 5 of epoch 1"):
        history.check(0, max(STEPS), 0, weights, [weights])
