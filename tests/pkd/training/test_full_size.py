"""Training in float32 with the paper's widths; the other tests use tiny stacks in float64."""

import pytest
import torch
from stack_helpers import MEMBERS, make_trainer, next_rows, tensors_of, train, train_set

from pkd.models.architecture import Architecture
from pkd.models.ganomaly import GAN
from pkd.training.structures import KDGAN, Structure
from pkd.training.trainer import Trainer

pytestmark = pytest.mark.slow

WIDTHS = {"teacher": (64, 128, 256), "student": (8, 16, 64)}
ROWS = torch.tensor([[12, 16, 19], [0, 4, 8]])


def full_size(structure: Structure, members=MEMBERS) -> Trainer:
    networks = {
        name: GAN(Architecture(1, widths), [member.initial_seed(role) for member in members])
        for role, (name, widths) in enumerate(WIDTHS.items())
    }
    data = train_set(members)
    return make_trainer(structure, members, networks=networks, data=data, batch_size=2)


def test_gradients_of_a_member_equal_those_of_a_single_model():
    stack = full_size(KDGAN[4])
    stack.set_grads(next_rows(stack, ROWS).losses())
    params = stack.optimizer.param_groups[0]["params"]
    stacked = [p.grad.view(len(MEMBERS), -1) for p in params]
    for k, member in enumerate(MEMBERS):
        single = full_size(KDGAN[4], (member,))
        single.set_grads(next_rows(single, ROWS[:, k : k + 1]).losses())
        grad = torch.cat([grads[k] for grads in stacked])
        assert (grad - single.optimizer.grad).norm() < 1e-4 * single.optimizer.grad.norm()


@pytest.mark.parametrize("number", [2, 3])
def test_a_resumed_training_ends_with_the_same_bits(number, every_step_reported):
    """With a new cache of teacher outputs, and all threads of the machine."""
    whole, interrupted = full_size(KDGAN[number]), full_size(KDGAN[number])
    train(whole, 1)
    for step in interrupted.epoch(0):
        if step == 3:
            state = {key: value.clone() for key, value in interrupted.state(step).items()}
            break
    resumed = full_size(KDGAN[number])
    resumed.load_state(state)
    list(resumed.epoch(0, 3))
    tensors, expected = tensors_of(resumed), tensors_of(whole)
    assert [key for key, value in expected.items() if not torch.equal(tensors[key], value)] == []


def test_gradients_of_an_earlier_phase_are_released():
    trainer = full_size(KDGAN[3])
    networks = {"teacher": trainer.teacher, "student": trainer.student}
    later = make_trainer(KDGAN[2], networks=networks, data=train_set(), batch_size=2)
    assert all(p.grad is None for p in later.teacher.parameters())
