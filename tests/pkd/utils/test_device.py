"""Convolutions of few small images run without oneDNN."""

import pytest
import torch
from stack_helpers import MEMBERS, STRUCTURES, make_trainer

from pkd.utils import device


def test_onednn_is_off_in_the_context_and_restored_after_an_error():
    before = torch.backends.mkldnn.enabled
    with device.without_onednn():
        assert not torch.backends.mkldnn.enabled
    assert torch.backends.mkldnn.enabled == before

    def fail():
        with device.without_onednn():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.backends.mkldnn.enabled == before


@pytest.mark.parametrize(
    ("images", "flops", "off"), [(1, 2e6, True), (5, 2e6, True), (6, 2e6, False), (1, 5e7, False)]
)
def test_few_images_of_a_small_network_run_without_onednn(images, flops, off):
    with device.convolutions(images, flops)():
        assert torch.backends.mkldnn.enabled != off


@pytest.mark.parametrize(("batch_size", "off"), [(1, True), (4, False)])
def test_a_small_training_step_runs_without_onednn(batch_size, off):
    trainer = make_trainer(STRUCTURES["teacher"], MEMBERS, batch_size=batch_size)
    trainer.begin_epoch(0)
    observed = []
    trainer.step = lambda: observed.append(not torch.backends.mkldnn.enabled)
    trainer.advance()
    assert observed == [off]
