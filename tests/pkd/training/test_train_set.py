"""Training images of a stack, and the cached outputs of its frozen teacher."""

import numpy as np
import pytest
import torch
from pkd_kernels import gather
from stack_helpers import (
    CLOSE,
    NORMS,
    assert_tensors_close,
    batch,
    make_trainer,
    tensors_of,
    train,
    train_set,
)

from pkd.models.stack import Member
from pkd.training.callbacks import Callback, TrainingInterrupted
from pkd.training.structures import KDGAN, TEACHER
from pkd.training.train_set import TeacherCache, TrainSet

pytestmark = pytest.mark.usefixtures("double_precision")

# Members 0 and 2 share a class but not a teacher.
SHARED_CLASS = (Member(0, 0), Member(1, 0), Member(0, 1), Member(3, 7))


def test_a_batch_holds_images_of_each_members_class_scaled_to_plus_minus_one():
    labels = np.array([1, 0, 1, 0, 2])
    images = torch.tensor([0, 51, 102, 204, 255], dtype=torch.uint8)[:, None, None, None]
    data = TrainSet(images.expand(-1, 1, 32, 32), labels, [Member(1, 0), Member(0, 0)])
    assert data.sizes == (2, 2)
    x = batch(data, torch.tensor([[0, 1], [1, 0]]))
    assert x.shape == (2, 2, 32, 32)
    expected = [[-1.0, 0.6], [-0.2, -0.6]]
    np.testing.assert_allclose(x[:, :, 31, 0], expected, atol=1e-6)


def test_a_limit_keeps_the_first_images_of_each_class():
    unlimited, limited = train_set(), train_set(limit=15)
    assert limited.sizes == (13, 15, 15)
    rows = torch.tensor([[12, 14, 14], [0, 0, 0]])
    assert torch.equal(batch(limited, rows), batch(unlimited, rows))


@NORMS
@pytest.mark.parametrize("cache_batch", [1, 8, 64])
def test_cached_teacher_outputs_equal_live_ones_for_every_image(norm, cache_batch, monkeypatch):
    """Also where a class ends within a batch."""
    monkeypatch.setattr("pkd.training.train_set.CACHE_BATCH", cache_batch)
    data = train_set(SHARED_CLASS)
    teacher = train(make_trainer(TEACHER, SHARED_CLASS, norm=norm, data=data), 1).teacher.eval()
    sizes = torch.tensor(data.sizes)
    order = torch.minimum(torch.arange(max(data.sizes))[:, None], sizes - 1)[:, None]
    with torch.no_grad():
        sources = TeacherCache(teacher, data, Callback()).sources
        assert {len(outputs) for outputs, _ in sources} == {sum(data.sizes)}
        for step in range(max(data.sizes)):
            live = teacher.generator(batch(data, order[step]))
            cached = gather(sources, order, torch.tensor([step]))
            for actual, expected in zip(cached, live, strict=True):
                torch.testing.assert_close(actual, expected, **CLOSE)


@NORMS
@pytest.mark.parametrize("number", [1, 2])
def test_training_with_a_cached_teacher_equals_training_with_a_live_one(number, norm, monkeypatch):
    cached, live = (
        make_trainer(KDGAN[number], SHARED_CLASS, norm=norm, batch_size=2) for _ in range(2)
    )
    train(cached, 3)

    def gather_live(sources, order, step):
        (x,) = gather(sources[:1], order, step)
        with torch.no_grad():
            return x, *live.teacher.generator(x)

    monkeypatch.setattr("pkd.training.trainer.gather", gather_live)
    assert_tensors_close(tensors_of(train(live, 3)), tensors_of(cached))


@pytest.mark.parametrize("number", KDGAN)
def test_only_a_frozen_teacher_is_cached(number):
    assert (len(make_trainer(KDGAN[number]).sources) == 4) == (number in (1, 2))


def test_a_callback_can_stop_the_caching_of_the_teacher():
    class Stop(Callback):
        def on_batch_end(self):
            raise TrainingInterrupted

    with pytest.raises(TrainingInterrupted):
        make_trainer(KDGAN[1], callback=Stop())
