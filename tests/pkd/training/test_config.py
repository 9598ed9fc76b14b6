"""Settings: presets, valid values, text formats, and settings of a run folder."""

from pathlib import Path

import pytest
import torch

from pkd.training.config import TrainConfig
from pkd.training.settings import (
    BEFORE,
    from_plain,
    parse_classes,
    parse_numbers,
    parse_widths,
    to_plain,
)
from pkd.utils.errors import CheckpointError, ConfigError


@pytest.mark.parametrize(
    ("dataset", "widths"),
    [
        ("cifar10", (8, 16, 64)),
        ("mnist", (2, 4, 8)),
        ("fashion_mnist", (1, 2, 4)),
        ("digits", (2, 4, 8)),
    ],
)
def test_preset_paper_is_batch_1_and_500_epochs_with_the_students_of_the_paper(dataset, widths):
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
        *((images, [4, 10, 2], 8) for images in (None, 5000, 1000)),
        (300, [13, 33, 7], 8),
        (3, [1333, 3333, 667], 3),
    ],
)
def test_preset_quick_takes_more_epochs_for_few_images(images, epochs, batch_size):
    config = TrainConfig().resolved(images)
    assert [phase.epochs for phase in config.phases()] == epochs
    assert config.batch_size == batch_size
    given = TrainConfig(teacher_epochs=7, batch_size=9).resolved(images)
    assert (given.teacher_epochs, given.batch_size) == (7, 9)
    paper = TrainConfig(preset="paper")
    assert paper.resolved(images) == paper.resolved()


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


@pytest.mark.parametrize(
    "text", ["1-2", "1-2-3-4", "a-b-c", "-1-2-3", "1--3", "", "1-2-", "1.5-2-3", "²-1-1", 8, [1]]
)
def test_text_that_is_not_three_integers_is_refused(text):
    with pytest.raises(ValueError, match="expected three positive integers such as 8-16-64"):
        parse_widths(text)


@pytest.mark.parametrize("widths", [(1, 2), (0, 1, 2), (1, 2, -3), (1.5, 2, 3), "1-2-3", 8])
@pytest.mark.parametrize("name", ["teacher_widths", "student_widths"])
def test_widths_are_three_positive_integers(name, widths):
    with pytest.raises(ConfigError, match=f"`{name}` is .*8-16-64") as caught:
        TrainConfig(**{name: widths}).resolved()
    assert caught.value.parameter == name


@pytest.mark.parametrize("value", ["8-16-64", [8, 16, 64], (8, 16, 64)])
def test_widths_are_parsed_in_order(value):
    assert parse_widths(value) == (8, 16, 64)


@pytest.mark.parametrize("lr", [0.0, -0.1, float("nan"), float("inf"), 1e39, 1e-60])
def test_learning_rate_is_positive_and_finite_in_float32(lr):
    with pytest.raises(ConfigError, match=r"`lr` is .* must be positive and finite"):
        TrainConfig(lr=lr).resolved()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 0) for name in ("seeds", "teacher_epochs", "step1_epochs", "step2_epochs")),
        *((name, -1) for name in ("batch_size", "latent", "max_train_images")),
        *(("betas", betas) for betas in ((0.5, 1.0), (-0.1, 0.9), (float("nan"), 0.9))),
        ("weights", (1.0, 1.0, 1.0, 1.0, 1.0, -1.0)),
        ("weights", (float("inf"), 1.0, 1.0, 1.0, 1.0, 1.0)),
        *(("image_size", size) for size in (0, 8, 33, 256)),
        *(("channels", count) for count in (0, 2, 4)),
        *(("held_out", share) for share in (0.0, 1.0, -0.1, float("nan"))),
        *(("contamination", share) for share in (0.0, 0.51, float("nan"))),
        *(("device", "tpu"), ("dataset", "imagenet"), ("structure", "5"), ("structure", 4)),
        *(("batch_size", 2.5), ("batch_size", True), ("seeds", None), ("lr", "fast")),
        *(("betas", (0.5,)), ("weights", (1.0,)), ("graph", 1), ("data_dir", 3)),
        *(("normal_class", value) for value in ("one", (), (1, 1), 3, ("1",))),
        ("checkpoint_every", -1.0),
        ("checkpoint_every", float("nan")),
    ],
)
def test_an_invalid_value_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"`{name}` is ") as caught:
        TrainConfig(**{name: value}).resolved()
    assert caught.value.parameter == name


@pytest.mark.parametrize(
    ("value", "classes"),
    [("all", "all"), ("1", (1,)), ("2,0", (2, 0)), ("02", (2,)), (3, (3,)), ([1, 5], (1, 5))],
)
def test_classes_are_parsed(value, classes):
    assert parse_classes(value) == classes


@pytest.mark.parametrize("value", ["-1", "", "one", "1,", "1;2", "²", ["a"], 1.5, True])
def test_text_that_is_not_class_numbers_is_refused(value):
    with pytest.raises(ValueError, match="expected 'all' or class numbers such as 0,3"):
        parse_classes(value)


def test_device_cuda_needs_a_gpu_and_auto_does_not(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert TrainConfig(device="auto").torch_device() == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"`device` is 'cuda'.* use 'cpu' or 'auto'"):
        TrainConfig(device="cuda").torch_device()


@pytest.mark.parametrize("value", ["0.5,0.9", "[0.5, 0.9]", "(.5,.9)", [0.5, 0.9]])
def test_numbers_are_parsed(value):
    assert parse_numbers(value) == (0.5, 0.9)


@pytest.mark.parametrize("value", ["a,b", "", 0.5, [1, None]])
def test_text_that_is_not_numbers_is_refused(value):
    with pytest.raises(ValueError, match="expected numbers separated by commas"):
        parse_numbers(value)


def test_a_configuration_equals_itself_after_saving_and_loading():
    config = TrainConfig(structure="2", normal_class=(3, 5), betas=(0.1, 0.2)).resolved()
    plain = to_plain(config)
    assert from_plain(plain, Path("config.yaml")) == config
    assert (plain["normal_class"], plain["student_widths"]) == ("3,5", "8-16-64")
    assert plain["betas"] == [0.1, 0.2]


def test_a_missing_setting_means_the_behaviour_before_it_existed():
    values = to_plain(TrainConfig().resolved())
    old = {name: value for name, value in values.items() if name not in BEFORE}
    config = from_plain(old, Path("config.yaml"))
    assert {name: getattr(config, name) for name in BEFORE} == BEFORE
    assert (config.lr_schedule, config.held_out) == ("constant", 0.0)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"colour": "red"}, "unknown setting colour"),
        ({"lr": "fast"}, "`lr` is 'fast', but must be a number"),
        ({"lr": None}, "it has no lr"),
        ({"preset": "slow"}, "`preset` is 'slow', but must be one of quick, paper"),
        ({"batch_size": 0}, "`batch_size` is 0"),
        ({"student_widths": "8-16"}, "`student_widths` is '8-16'"),
        ({"betas": [0.5]}, "`betas` is"),
        ({"seeds": [1]}, "`seeds` is"),
        ({"graph": "perhaps"}, "`graph` is"),
        ({"structure": "5"}, "`structure` is"),
        ({"held_out": -0.1}, "`held_out` is"),
    ],
)
def test_an_invalid_setting_of_a_run_folder_is_refused_by_name(change, problem):
    values = to_plain(TrainConfig().resolved()) | change
    with pytest.raises(CheckpointError, match=r"RUN/config\.yaml .*another version.*" + problem):
        from_plain(values, Path("RUN/config.yaml"))


@pytest.mark.parametrize("values", [None, "text", [], {}, {"dataset": "digits"}])
def test_a_truncated_config_yaml_is_refused(values):
    with pytest.raises(CheckpointError, match=r"config\.yaml is damaged or of another version"):
        from_plain(values, Path("config.yaml"))
