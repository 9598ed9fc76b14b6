"""Preparation of a run: settings against data, members, and the split of the training images."""

import math

import numpy as np
import pytest
import torch

from pkd.data.dataset import Dataset
from pkd.models.stack import Member
from pkd.runs.data import RunData, load_dataset, prepare
from pkd.training.config import TrainConfig
from pkd.utils.errors import ConfigError, DataError

CPU = torch.device("cpu")
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


def make_dataset(train_labels: list[int], test_labels: list[int], channels: int = 1) -> Dataset:
    """Images of 20 x 20 pixels; the value of a training image is its row."""
    train = np.arange(len(train_labels), dtype=np.uint8)[:, None, None, None]
    return Dataset(
        "npz",
        ("nut", "bolt", "dust"),
        np.broadcast_to(train, (len(train_labels), channels, 20, 20)).copy(),
        np.array(train_labels),
        np.zeros((len(test_labels), channels, 20, 20), np.uint8),
        np.array(test_labels),
    )


def make_data(dataset: Dataset, **settings) -> RunData:
    settings = {"dataset": "npz", "image_size": 16, "held_out": 0.25, "structure": "2"} | settings
    return RunData(TrainConfig(**settings).resolved(), dataset)


LABELS = [0] * 8 + [1] * 20


def test_members_are_all_classes_of_each_seed():
    data = make_data(make_dataset(LABELS, [0, 1, 2]), seeds=2)
    assert data.members == [Member(0, 0), Member(1, 0), Member(0, 1), Member(1, 1)]
    data = make_data(make_dataset(LABELS, [0, 1, 2]), normal_class=(1,))
    assert data.members == [Member(1, 0)]


def test_sizes_are_the_training_images_without_the_held_out_up_to_the_limit():
    dataset = make_dataset(LABELS, [0, 1, 2])
    assert make_data(dataset).sizes == {0: 6, 1: 15}
    assert make_data(dataset, max_train_images=10).sizes == {0: 6, 1: 10}


def test_training_and_held_out_images_are_disjoint_and_of_one_class():
    data = make_data(make_dataset(LABELS, [0, 1, 2]))
    for member in data.members:
        train = data.train_set([member], CPU, None).images[:, 0, 0, 0].tolist()
        (held_out,) = data.held_out_images([member])
        rows = [*train, *held_out[:, 0, 0, 0].tolist()]
        expected = [k for k, label in enumerate(LABELS) if label == member.normal_class]
        assert sorted(rows) == expected
        assert len(train) == data.sizes[member.normal_class]


def test_images_are_resized():
    data = make_data(make_dataset(LABELS, [0, 1, 2], channels=3))
    assert data.channels == 3
    assert data.train_images.shape == (28, 3, 16, 16)
    assert data.test_images.shape == (3, 3, 16, 16)
    assert data.train_images.dtype == data.test_images.dtype == torch.uint8


@pytest.mark.parametrize(
    ("train_labels", "test_labels", "settings", "parameter", "problem"),
    [
        (LABELS, [0, 1], {"normal_class": (3,)}, "normal_class", "3 is not a class .* 2 dust"),
        (LABELS, [0, 1], {"normal_class": (2,)}, "normal_class", "2 has no images"),
        (LABELS, [0, 2], {"normal_class": (1,)}, "normal_class", "1 has no images"),
        ([0, *LABELS[8:]], [0, 1], {}, "held_out", "none of the 1 training images .* 0 nut"),
    ],
)
def test_classes_that_cannot_be_used_are_refused(
    train_labels, test_labels, settings, parameter, problem
):
    with pytest.raises(ConfigError, match=f"`{parameter}` .*{problem}") as caught:
        make_data(make_dataset(train_labels, test_labels), **settings)
    assert caught.value.parameter == parameter


def test_a_test_split_without_novel_images_is_refused():
    with pytest.raises(DataError, match=r"only one class.* add images"):
        make_data(make_dataset([0] * 8, [0, 0]))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"batch_size": 6}, None),
        ({"batch_size": 7}, r"`batch_size` 7 .* class 0 .* choose at most 6"),
        ({"batch_size": 2, "teacher_batch_size": 7}, r"`teacher_batch_size` 7 .* at most 6"),
        ({"batch_size": 3, "max_train_images": 2}, r"`batch_size` 3 .* at most 2"),
        ({"batch_size": 3, "teacher_max_train_images": 2}, r"`batch_size` 3 .* at most 2"),
        ({"batch_size": 3, "teacher_batch_size": 2, "teacher_max_train_images": 2}, None),
    ],
)
def test_a_batch_must_not_exceed_the_smallest_class(settings, problem):
    data = make_data(make_dataset(LABELS, [0, 1, 2]), **settings)
    phases = data.config.phases()
    if problem is None:
        data.check_batch_sizes(phases)
        return
    with pytest.raises(ConfigError, match=problem):
        data.check_batch_sizes(phases)


def test_explicit_members_are_the_models_in_their_order():
    data = make_data(make_dataset(LABELS, [0, 1, 2]), members=((1, 4), (0, 2), (1, 0)))
    assert data.members == [Member(1, 4), Member(0, 2), Member(1, 0)]
    assert data.count == 3
    assert data.sizes == {1: 15, 0: 6}
    with pytest.raises(ConfigError, match="`members` 3 is not a class"):
        make_data(make_dataset(LABELS, [0, 1, 2]), members=((3, 0),))


def test_without_held_out_images_the_training_images_set_the_threshold():
    """Runs of versions that held nothing out still have thresholds."""
    config = TrainConfig(dataset="npz", image_size=16, held_out=0.0, max_train_images=5)
    data = RunData(config, make_dataset(LABELS, [0, 1, 2]))
    images = data.held_out_images(data.members)
    assert [image_set[:, 0, 0, 0].tolist() for image_set in images] == [
        [0, 1, 2, 3, 4],
        [8, 9, 10, 11, 12],
    ]


def test_prepare_resolves_the_settings_against_the_data(tmp_path):
    dataset = make_dataset(LABELS, [0, 1, 2], channels=3)
    path = tmp_path / "data.npz"
    np.savez(
        path,
        train_images=dataset.train_images,
        train_labels=dataset.train_labels,
        test_images=dataset.test_images,
        test_labels=dataset.test_labels,
    )
    settings = TrainConfig(dataset="npz", data_dir=str(path), image_size=16, held_out=0.25)
    config, data = prepare(settings)
    assert data.sizes == {0: 6, 1: 15}
    # The smallest class has 6 images, so that "quick" takes 1000 / 6 times its epochs.
    assert (config.channels, config.batch_size, config.teacher_epochs) == (3, 6, 1667)
    assert None not in (config.step1_epochs, config.step2_epochs, config.student_widths, config.lr)
    with pytest.raises(ConfigError, match=r"`batch_size` 7 "):
        prepare(TrainConfig(dataset="npz", data_dir=str(path), held_out=0.25, batch_size=7))


@pytest.mark.parametrize("name", ["folder", "npz"])
def test_own_data_need_a_path(name):
    with pytest.raises(ConfigError, match=f"`data_dir` is missing: the data set '{name}'"):
        load_dataset(TrainConfig(dataset=name))


def test_a_data_set_with_other_channels_is_refused():
    assert load_dataset(TrainConfig(channels=1)).train_images.shape[1] == 1
    with pytest.raises(ConfigError, match="`channels` is 3, but digits has images with 1 channel:"):
        load_dataset(TrainConfig(channels=3))


def test_development_images_are_taken_from_the_training_images():
    settings = {"dataset": "digits", "held_out": 0.1}
    test = RunData(config := TrainConfig(**settings).resolved(), load_dataset(config))
    config = TrainConfig(**settings, evaluate_on="development").resolved()
    development = RunData(config, load_dataset(config))
    whole, split = test.dataset, development.dataset
    assert len(split.train_images) + len(split.test_images) == len(whole.train_images)
    rows = {image.tobytes() for image in whole.train_images}
    assert {image.tobytes() for image in split.test_images} <= rows
    train = {image.tobytes() for image in split.train_images}
    assert not train & {image.tobytes() for image in split.test_images}
    for label in range(10):
        total = (whole.train_labels == label).sum()
        assert (split.test_labels == label).sum() == math.ceil(total / 6)
    assert split.digest != whole.digest


def test_one_class_has_no_development_images(tmp_path):
    dataset = make_dataset([0] * 12, [0, 1])
    path = tmp_path / "data.npz"
    np.savez(path, **{name: getattr(dataset, name) for name in ARRAYS})
    config = TrainConfig(dataset="npz", data_dir=str(path), evaluate_on="development").resolved()
    with pytest.raises(ConfigError, match=r"`evaluate_on` .* only one class"):
        load_dataset(config)
