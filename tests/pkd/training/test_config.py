"""Settings of a run: presets, phases and devices."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from pkd.data.standard import DATASETS
from pkd.models.architecture import Architecture
from pkd.training.config import StandardName, TrainConfig
from pkd.utils.errors import ConfigError


def test_the_setting_dataset_has_all_standard_data_sets():
    assert get_args(StandardName) == DATASETS


@pytest.mark.parametrize(
    ("dataset", "widths"),
    [
        ("cifar10", (8, 16, 64)),
        ("mnist", (2, 4, 8)),
        ("fashion_mnist", (1, 2, 4)),
        ("digits", (2, 4, 8)),
    ],
)
def test_preset_paper_uses_batch_1_500_epochs_and_the_students_of_the_paper(dataset, widths):
    config = TrainConfig(dataset=dataset, preset="paper").resolved()
    assert config.batch_size == 1
    assert [phase.epochs for phase in config.phases()] == [500, 500, 500]
    assert config.student_widths == widths
    assert config.teacher_widths == (64, 128, 256)
    assert (config.lr, config.lr_schedule) == (0.002, "constant")
    assert config.max_train_images is None


@pytest.mark.parametrize("preset", ["quick", "paper"])
def test_explicit_values_override_the_preset(preset):
    given = {"batch_size": 3, "teacher_epochs": 7, "student_widths": (3, 3, 3), "lr": 0.5}
    config = TrainConfig(preset=preset, max_train_images=11, **given).resolved()
    assert {name: getattr(config, name) for name in given} == given
    assert config.max_train_images == 11
    assert config.step1_epochs == TrainConfig(preset=preset).resolved().step1_epochs


@pytest.mark.parametrize(
    ("images", "epochs", "batch_size"),
    [
        *((images, [10, 20, 2], 8) for images in (5000, 1000)),
        (300, [33, 67, 7], 8),
        (3, [3333, 6667, 667], 3),
    ],
)
def test_preset_quick_uses_more_epochs_for_few_images(images, epochs, batch_size):
    settings = TrainConfig(structure="progressive-23")
    config = replace(settings.resolved(), **settings.lengths(images))
    assert [phase.epochs for phase in config.phases()] == epochs
    assert config.batch_size == batch_size
    assert TrainConfig(teacher_epochs=7, batch_size=9).lengths(images).keys() == {
        "step1_epochs",
        "step2_epochs",
    }
    paper = TrainConfig(preset="paper")
    assert replace(paper.resolved(), **paper.lengths(images)) == paper.resolved()


def test_resolving_twice_equals_resolving_once():
    config = TrainConfig(dataset="mnist", preset="paper", data_dir="files").resolved()
    assert config.resolved() == config


def test_the_data_folder_is_stored_as_an_absolute_path():
    assert TrainConfig(data_dir="files").resolved().data_dir == str(Path.cwd() / "files")


@pytest.mark.parametrize(
    ("structure", "names", "networks"),
    [
        ("1", ["teacher", "step1"], ["teacher", "student"]),
        ("3", ["teacher", "step1"], ["teacher", "student"]),
        ("progressive-24", ["teacher", "step1", "step2"], ["teacher", "student", "student"]),
    ],
)
def test_phases_of_a_structure(structure, names, networks):
    phases = TrainConfig(structure=structure).resolved().phases()
    assert [phase.name for phase in phases] == names
    assert [phase.network for phase in phases] == networks


def test_device_cuda_needs_a_gpu_and_auto_does_not(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert TrainConfig(device="auto").torch_device() == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"`device` is 'cuda'.* use 'cpu' or 'auto'"):
        TrainConfig(device="cuda").torch_device()


def test_an_architecture_has_the_settings_of_its_network():
    settings = {"latent": 12, "norm": "batch", "norm_first": False, "image_size": 64}
    config = TrainConfig(student_widths=(1, 2, 3), **settings).resolved()
    for network, widths in (("teacher", config.teacher_widths), ("student", (1, 2, 3))):
        assert config.architecture(network, 3) == Architecture(3, widths, 12, "batch", False, 64)


def test_the_epochs_of_a_phase_are_those_of_its_setting():
    lengths = {"teacher_epochs": 5, "step1_epochs": 6, "step2_epochs": 7}
    config = TrainConfig(structure="progressive-23", **lengths).resolved()
    assert [phase.epochs for phase in config.phases()] == [5, 6, 7]
