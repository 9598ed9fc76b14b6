"""Types and ranges of settings; errors have the name of the setting."""

import pytest

from pkd.training.config import TrainConfig
from pkd.utils.errors import ConfigError


@pytest.mark.parametrize("widths", [(1, 2), (0, 1, 2), (1, 2, -3), (1.5, 2, 3), "1-2-3", 8])
@pytest.mark.parametrize("name", ["teacher_widths", "student_widths"])
def test_widths_are_three_positive_integers(name, widths):
    with pytest.raises(ConfigError, match=f"`{name}` is .*8-16-64") as caught:
        TrainConfig(**{name: widths}).resolved()
    assert caught.value.parameter == name


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
        *(("members", value) for value in ((), ((0, 0), (0, 0)), ((0,),), ((-1, 0),), (0, 1))),
        *(("teacher", value) for value in ((), (3,), "run")),
        *((name, 0) for name in ("teacher_batch_size", "teacher_max_train_images")),
        *((name, 0.0) for name in ("teacher_lr", "step2_teacher_lr")),
        ("checkpoint_every", -1.0),
        ("checkpoint_every", float("nan")),
    ],
)
def test_an_invalid_value_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"`{name}` is ") as caught:
        TrainConfig(**{name: value}).resolved()
    assert caught.value.parameter == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("contamination", share) for share in (0.5, 1e-9)),
        *(("held_out", share) for share in (0.999, 1e-9)),
        ("betas", (0.0, 0.0)),
        ("weights", (0.0,) * 6),
        ("lr", 1),
        ("checkpoint_every", 0),
        ("normal_class", (0,)),
        ("seeds", 1),
    ],
)
def test_values_at_the_ends_of_a_range_are_accepted(name, value):
    assert getattr(TrainConfig(**{name: value}).resolved(), name) == value
