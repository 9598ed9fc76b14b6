"""Settings: presets, what they may be, the parser, and what is read back from a run folder."""

from pathlib import Path

import pytest
import torch

from pkd.runs.data import parse_classes
from pkd.training.config import TrainConfig, parse_widths
from pkd.training.settings import Numbers, config_from
from pkd.utils.errors import PkdError

CLASSES = ("zero", "one", "two")


@pytest.mark.parametrize(
    ("dataset", "widths"),
    [
        ("cifar10", "8-16-64"),
        ("mnist", "2-4-8"),
        ("fashion_mnist", "1-2-4"),
        ("digits", "2-4-8"),
    ],
)
def test_preset_paper_is_batch_1_and_500_epochs_with_the_students_of_the_paper(dataset, widths):
    config = TrainConfig(dataset=dataset, preset="paper").resolved()
    assert config.batch_size == 1
    assert [phase.epochs for phase in config.phases()] == [500, 500, 500]
    assert config.student_widths == widths
    assert config.teacher_widths == "64-128-256"
    assert (config.lr, config.lr_schedule) == (0.002, "constant")
    assert config.max_train_images is None


@pytest.mark.parametrize("preset", ["quick", "paper"])
def test_what_is_given_overrides_the_preset(preset):
    given = {"batch_size": 3, "teacher_epochs": 7, "student_widths": "3-3-3", "lr": 0.5}
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
def test_preset_quick_makes_more_epochs_of_few_images(images, epochs, batch_size):
    config = TrainConfig().resolved(images)
    assert [phase.epochs for phase in config.phases()] == epochs
    assert config.batch_size == batch_size
    given = TrainConfig(teacher_epochs=7, batch_size=9).resolved(images)
    assert (given.teacher_epochs, given.batch_size) == (7, 9)
    paper = TrainConfig(preset="paper")
    assert paper.resolved(images) == paper.resolved()


def test_resolving_twice_is_resolving_once():
    config = TrainConfig(dataset="mnist", preset="paper", data_dir="files").resolved()
    assert config.resolved() == config


def test_the_data_folder_is_remembered_wherever_a_run_is_resumed_from():
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
    "text", ["1-2", "1-2-3-4", "0-1-2", "a-b-c", "-1-2-3", "1--3", "", "1-2-", "1.5-2-3", "²-1-1"]
)
@pytest.mark.parametrize("name", ["teacher_widths", "student_widths"])
def test_widths_are_three_positive_integers(name, text):
    with pytest.raises(PkdError) as caught:
        TrainConfig(**{name: text}).resolved()
    assert f"--{name.replace('_', '-')} is {text!r}" in str(caught.value)
    assert "8-16-64" in str(caught.value)


def test_widths_are_read_in_order():
    assert parse_widths("teacher_widths", "8-16-64") == (8, 16, 64)


@pytest.mark.parametrize("lr", [0.0, -0.1, float("nan"), float("inf"), 1e39, 1e-60])
def test_learning_rate_is_positive_and_finite_also_in_single_precision(lr):
    with pytest.raises(PkdError, match=r"--lr is .* must be positive and finite"):
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
        *(("device", "tpu"), ("dataset", "imagenet"), ("structure", "5")),
        ("checkpoint_every", -1.0),
        ("checkpoint_every", float("nan")),
    ],
)
def test_values_that_no_training_could_use_are_named(name, value):
    with pytest.raises(PkdError, match=f"--{name.replace('_', '-')} is "):
        TrainConfig(**{name: value}).resolved()


@pytest.mark.parametrize(
    ("text", "chosen"), [("all", [0, 1, 2]), ("1", [1]), ("2,0", [2, 0]), ("02", [2])]
)
def test_classes_are_chosen_by_number(text, chosen):
    assert parse_classes(text, CLASSES) == chosen


@pytest.mark.parametrize("text", ["3", "-1", "", "one", "1,", "1;2", "0,7", "²"])
def test_a_class_that_the_data_set_has_not_is_named_beside_those_it_has(text):
    with pytest.raises(PkdError, match=r"--normal-class .* 0 zero, 1 one, 2 two"):
        parse_classes(text, CLASSES)


@pytest.mark.parametrize("text", ["1,1", "1,2,01"])
def test_a_class_is_trained_on_once(text):
    with pytest.raises(PkdError, match="names a class twice"):
        parse_classes(text, CLASSES)


def test_cuda_where_there_is_none_is_an_error_and_auto_is_not(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert TrainConfig(device="auto").torch_device() == torch.device("cpu")
    with pytest.raises(PkdError, match=r"--device cuda.* use cpu or auto"):
        TrainConfig(device="cuda").torch_device()


@pytest.mark.parametrize("value", ["0.5,0.9", "[0.5, 0.9]", "(.5,.9)", [0.5, 0.9]])
def test_numbers_are_written_with_commas_or_as_a_list(value):
    assert Numbers(2)(value) == (0.5, 0.9)


@pytest.mark.parametrize("value", ["0.5", "1,2,3", "a,b", "", 0.5, [1], [1, None], None])
def test_numbers_of_another_count_or_kind_are_refused(value):
    with pytest.raises(ValueError, match="expected 2 numbers"):
        Numbers(2)(value)


def test_a_configuration_survives_its_file():
    config = TrainConfig(structure="2", normal_class="3", betas=(0.1, 0.2)).resolved()
    assert config_from(config.as_dict(), Path("config.yaml")) == config


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"colour": "red"}, "colour"),
        ({"lr": "fast"}, "--lr"),
        ({"lr": None, "preset": "slow"}, "preset"),
        ({"batch_size": 0}, "--batch-size"),
        ({"student_widths": "8-16"}, "--student-widths"),
        ({"betas": [0.5]}, "betas"),
        ({"seeds": [1]}, "--seeds"),
        ({"graph": "perhaps"}, "--graph"),
        ({"structure": "5"}, "structure"),
    ],
)
def test_a_configuration_file_of_another_version_is_refused_by_name(change, named):
    values = TrainConfig().resolved().as_dict() | change
    with pytest.raises(PkdError, match=r"RUN/config\.yaml .*another version.*" + named):
        config_from(values, Path("RUN/config.yaml"))


@pytest.mark.parametrize("values", [None, "text", [], {}, {"dataset": "digits"}])
def test_a_truncated_configuration_file_is_refused(values):
    with pytest.raises(PkdError, match=r"config\.yaml is damaged or of another version"):
        config_from(values, Path("config.yaml"))
