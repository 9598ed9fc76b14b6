"""The choice of kernel or definition; import without GPU, driver or triton."""

import subprocess
import sys
from types import SimpleNamespace

import pkd_kernels
import pytest
import torch
from pkd_kernels import dispatch, novelty_score

Z = torch.zeros(2, 4)


def run(code: str, **environment: str) -> str:
    """Output of a new Python process with this environment and the import paths of this one."""
    paths = ":".join(sys.path)
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
    )
    return process.stdout + process.stderr


def test_reference_on_cpu_unless_asked(monkeypatch):
    for backend, expected in (("", False), ("reference", False)):
        monkeypatch.setattr(dispatch, "BACKEND", backend)
        assert dispatch.uses_triton(Z) is expected


def test_triton_on_request(device):
    assert dispatch.uses_triton(Z.to(device))


@pytest.mark.gpu
def test_triton_on_cuda(monkeypatch):
    monkeypatch.setattr(dispatch, "BACKEND", "")
    assert dispatch.uses_triton(Z.cuda())
    monkeypatch.setattr(dispatch, "BACKEND", "reference")
    assert not dispatch.uses_triton(Z.cuda())


def test_errors_explain_why_triton_cannot_run(monkeypatch):
    monkeypatch.setattr(dispatch, "BACKEND", "triton")
    monkeypatch.setattr(dispatch, "INTERPRETED", False)
    with pytest.raises(RuntimeError, match="are on cpu: Triton needs CUDA"):
        novelty_score(Z, Z)
    monkeypatch.setattr(dispatch, "triton", None)
    with pytest.raises(RuntimeError, match="triton is not installed"):
        novelty_score(Z, Z)
    monkeypatch.setattr(dispatch, "BACKEND", "cuda")
    with pytest.raises(RuntimeError, match="must be 'triton' or 'reference', not 'cuda'"):
        novelty_score(Z, Z)


def test_call_without_tensors_raises():
    with pytest.raises(TypeError, match="novelty_score requires tensors"):
        novelty_score([1.0], [2.0])


def test_tensors_of_another_gpu_raise(monkeypatch):
    monkeypatch.setattr(dispatch, "BACKEND", "triton")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    tensor = SimpleNamespace(is_cuda=True, device=torch.device("cuda:1"))
    with pytest.raises(RuntimeError, match="are on cuda:1, but the current device is 0"):
        dispatch.uses_triton(tensor)


@pytest.mark.parametrize(
    ("environment", "output"),
    [
        ({"PKD_BACKEND": "triton"}, "Triton needs CUDA"),
        pytest.param({"PKD_BACKEND": "reference"}, "tensor([[0.]])\n", marks=pytest.mark.slow),
        pytest.param(
            {"PKD_BACKEND": "triton", "TRITON_INTERPRET": "1"},
            "tensor([[0.]])\n",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["triton", "reference", "interpreter"],
)
def test_environment_variable(environment, output):
    code = "import torch, pkd_kernels as k; z = torch.zeros(1, 4); print(k.novelty_score(z, z))"
    assert output in run(code, **environment)


def test_works_without_triton():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, pkd_kernels as k; z = torch.zeros(1, 4); print(k.novelty_score(z, z))\n"
        "print(k.unit_grad(z))"
    )
    assert run(code) == "tensor([[0.]])\ntensor([[1., 1., 1., 1.]])\n"


def test_import_touches_no_driver():
    code = (
        "from triton.runtime import driver\n"
        "import pkd_kernels, torch\n"
        "print(driver._active, driver._default, torch.cuda.is_initialized())"
    )
    assert run(code) == "None None False\n"


def test_exports_are_the_dispatched_functions():
    names = ("generator_loss", "discriminator_loss", "novelty_score", "adam_step", "gather")
    names += ("record_step",)
    for name in names:
        assert getattr(pkd_kernels, name) is getattr(dispatch, name)
        assert "Args:" in getattr(pkd_kernels, name).__doc__
