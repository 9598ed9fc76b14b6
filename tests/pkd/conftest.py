from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def double_precision() -> Iterator[None]:
    """New tensors are float64, so that Adam does not blow rounding up into steps."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def every_step_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Trainer.epoch` yields after each step."""
    monkeypatch.setattr("pkd.trainer.REPORT_SECONDS", 0.0)
