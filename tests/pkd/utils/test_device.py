"""Small networks go without oneDNN, and nothing else does."""

import pytest
import torch
from stack_helpers import MEMBERS, STRUCTURES, make_trainer

from pkd.utils import device as hardware


def test_onednn_is_off_inside_and_as_before_after_an_error():
    before = torch.backends.mkldnn.enabled
    with pytest.raises(ZeroDivisionError), hardware.without_onednn():
        assert not torch.backends.mkldnn.enabled
        raise ZeroDivisionError
    assert torch.backends.mkldnn.enabled == before


@pytest.mark.parametrize(
    ("images", "flops", "off"), [(1, 2e6, True), (5, 2e6, True), (6, 2e6, False), (1, 5e7, False)]
)
def test_few_images_of_a_small_network_go_without(images, flops, off):
    with hardware.convolutions(images, flops)():
        assert torch.backends.mkldnn.enabled != off


@pytest.mark.parametrize(("batch_size", "off"), [(1, True), (4, False)])
def test_a_small_step_of_training_does(batch_size, off):
    trainer = make_trainer(STRUCTURES["teacher"], MEMBERS, batch_size=batch_size)
    trainer.begin_epoch(0)
    seen = []
    trainer.step = lambda: seen.append(not torch.backends.mkldnn.enabled)
    trainer.advance()
    assert seen == [off]
