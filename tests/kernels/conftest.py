"""What every kernel test shares: the device, the backend, one table of tolerances."""

import pytest
import torch
from pkd_kernels import dispatch

INTERPRETED_ONLY = pytest.mark.skipif(
    torch.cuda.is_available(), reason="with a GPU the kernels are not interpreted"
)


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=INTERPRETED_ONLY),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ]
)
def device(request, monkeypatch) -> str:
    """Where the kernels run; the ops are made to take the Triton path there."""
    monkeypatch.setattr(dispatch, "BACKEND", "triton")
    return request.param
