"""Networks and trainers from settings."""

import math

import pytest
import torch
from stack_helpers import LOSS_WEIGHTS, MEMBERS, train_set

from pkd.models.ganomaly import GAN
from pkd.training.config import TrainConfig
from pkd.training.factory import make_networks, make_trainer

SETTINGS = {
    **{"structure": "progressive-23", "teacher_widths": (2, 4, 8), "student_widths": (1, 2, 4)},
    **{"latent": 8, "batch_size": 4},
}


def make(number: int = 1, **settings):
    config = TrainConfig(**SETTINGS | settings).resolved()
    networks = make_networks(config, MEMBERS, 1, torch.device("cpu"))
    phase = config.phases()[number]
    return make_trainer(config, phase, networks, MEMBERS, train_set()), networks, config


def test_networks_have_the_architecture_of_the_settings_and_the_seeds_of_the_members():
    _, networks, config = make()
    assert list(networks) == ["teacher", "student"]
    for role, (name, gan) in enumerate(networks.items()):
        assert gan.architecture == config.architecture(name, 1)
        single = GAN(gan.architecture, [MEMBERS[1].initial_seed(role)])
        for value, expected in zip(gan.parameters(), single.parameters(), strict=True):
            member = value.view(len(MEMBERS), -1)[1]
            assert torch.equal(member, expected.flatten())


@pytest.mark.parametrize(("number", "trained"), [(0, ["teacher"]), (2, ["teacher", "student"])])
def test_a_trainer_trains_the_networks_of_its_phase(number, trained):
    trainer, networks, config = make(number, structure="progressive-24")
    assert trainer.networks == {name: networks[name] for name in trained}
    assert trainer.structure == config.phases()[number].structure
    assert trainer.schedule.phase == number


@pytest.mark.parametrize(
    ("structure", "network", "number"),
    [("teacher-only", "teacher", 0), ("student-only", "student", 1)],
)
def test_a_network_alone_has_the_weights_and_the_data_order_of_its_phase(
    structure, network, number
):
    trainer, networks, _ = make(0, structure=structure)
    assert list(networks) == list(trainer.networks) == [network]
    assert trainer.schedule.phase == number
    distilled = make(number, structure="2")
    assert torch.equal(trainer.schedule.order(1), distilled[0].schedule.order(1))
    for value, expected in zip(
        networks[network].parameters(), distilled[1][network].parameters(), strict=True
    ):
        assert torch.equal(value, expected)


def test_the_student_alone_has_no_loss_of_distillation():
    trainer, _, _ = make(0, structure="student-only")
    assert trainer.weights["student"][:, 3:].tolist() == [[0.0] * 3] * len(MEMBERS)
    assert trainer.adversarial == {"student": True}


def test_a_trainer_has_the_settings_of_the_optimisation():
    betas, weights = (0.3, 0.9), LOSS_WEIGHTS
    trainer, _, _ = make(lr=0.01, betas=betas, weights=weights, reduction="norm")
    assert (trainer.schedule.lr, trainer.schedule.batch_size) == (0.01, 4)
    assert trainer.optimizer.param_groups[0]["betas"] == betas
    assert trainer.reduction == "norm"
    assert trainer.weights["student"][0].tolist() == pytest.approx(weights)


def test_the_second_step_has_the_teachers_learning_rate_of_the_settings():
    trainer, networks, _ = make(2, structure="progressive-24", lr=0.01, step2_teacher_lr=0.001)
    factors = dict(
        zip(trainer.optimizer.param_groups[0]["params"], trainer.optimizer.lr_factors, strict=True)
    )
    assert {factors[p] for p in networks["teacher"].parameters()} == {0.001 / 0.01}
    assert {factors[p] for p in networks["student"].parameters()} == {1.0}


@pytest.mark.parametrize(("lr_schedule", "decay_epochs"), [("linear", 7), ("constant", math.inf)])
def test_a_linear_schedule_decreases_the_rate_over_the_epochs_of_the_phase(
    lr_schedule, decay_epochs
):
    trainer, _, _ = make(lr_schedule=lr_schedule, step1_epochs=7)
    assert trainer.schedule.decay_epochs == decay_epochs
