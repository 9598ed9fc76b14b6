"""Settings as text and as plain values, and settings of a run folder."""

from pathlib import Path

import pytest

from pkd.training.config import TrainConfig
from pkd.training.settings import (
    BEFORE,
    from_plain,
    parse_classes,
    parse_members,
    parse_numbers,
    parse_paths,
    parse_widths,
    to_plain,
)
from pkd.utils.errors import CheckpointError


@pytest.mark.parametrize(
    "text", ["1-2", "1-2-3-4", "a-b-c", "-1-2-3", "1--3", "", "1-2-", "1.5-2-3", "²-1-1", 8, [1]]
)
def test_text_that_is_not_three_integers_is_refused(text):
    with pytest.raises(ValueError, match="expected three positive integers such as 8-16-64"):
        parse_widths(text)


@pytest.mark.parametrize("value", ["8-16-64", [8, 16, 64], (8, 16, 64)])
def test_widths_are_parsed_in_order(value):
    assert parse_widths(value) == (8, 16, 64)


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


@pytest.mark.parametrize("value", ["0.5,0.9", "[0.5, 0.9]", "(.5,.9)", [0.5, 0.9]])
def test_numbers_are_parsed(value):
    assert parse_numbers(value) == (0.5, 0.9)


@pytest.mark.parametrize("value", ["a,b", "", 0.5, [1, None]])
def test_text_that_is_not_numbers_is_refused(value):
    with pytest.raises(ValueError, match="expected numbers separated by commas"):
        parse_numbers(value)


@pytest.mark.parametrize("value", ["3:0,1:12", [[3, 0], [1, 12]], ["3:0", "1:12"]])
def test_members_are_parsed_in_order(value):
    assert parse_members(value) == ((3, 0), (1, 12))


@pytest.mark.parametrize("value", ["3", "3:0,", "3:-1", "a:0", "1:2:3", [3], [[1, None]]])
def test_text_that_is_not_members_is_refused(value):
    with pytest.raises(ValueError, match="expected models as CLASS:SEED such as 0:0,1:0"):
        parse_members(value)


def test_members_that_yaml_has_read_as_a_number_of_base_60_are_explained():
    with pytest.raises(ValueError, match='in quotes, such as "3:1": YAML has read 181'):
        parse_members(181)


@pytest.mark.parametrize(("value", "paths"), [("a,b", ("a,b",)), (["a", "b"], ("a", "b"))])
def test_paths_are_parsed(value, paths):
    assert parse_paths(value) == paths


@pytest.mark.parametrize("value", [3, [1], {"a": 1}])
def test_values_that_are_not_paths_are_refused(value):
    with pytest.raises(ValueError, match="expected paths"):
        parse_paths(value)


def test_members_and_teachers_equal_themselves_after_saving_and_loading():
    members, teacher = ((3, 0), (1, 2)), ("/runs/a", "/runs/b")
    config = TrainConfig(structure="2", members=members, teacher=teacher).resolved()
    plain = to_plain(config)
    assert from_plain(plain, Path("config.yaml")) == config
    assert (plain["members"], plain["teacher"]) == ("3:0,1:2", ["/runs/a", "/runs/b"])


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
        ({"lr": None}, "`lr` is None, but must be a number"),
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
