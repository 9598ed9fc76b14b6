"""Fixtures of all kernel tests: the device, and the ways to sum a layer."""

from collections.abc import Iterator

import pytest
import torch
from conv_cases import summed
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
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The device of the test; its ops run in Triton there."""
    monkeypatch.setattr(dispatch, "BACKEND", "triton")
    return request.param


@pytest.fixture(params=["matrix", "spread"])
def each_tiling(request: pytest.FixtureRequest) -> Iterator[None]:
    """Sum layers by matrix products wherever possible, then nowhere."""
    with summed(request.param):
        yield
