"""Precision of float32 products, full or TF32: set during computation, restored, reported."""

import json
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import yaml

from pkd import Detector
from pkd.cli.main import main
from pkd.runs import run_parts
from pkd.training.config import TrainConfig
from pkd.training.trainer import Trainer
from pkd.utils import device as hardware
from pkd.utils.errors import ConfigError

CPU, GPU = torch.device("cpu"), torch.device("cuda")
BACKENDS = torch.backends
NEWER = (
    *(BACKENDS.cuda.matmul, BACKENDS.mkldnn.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn),
    BACKENDS,
)
TINY = (
    *("--normal-class", "0,1", "--latent", "8", "--batch-size", "2", "--max-train-images", "4"),
    *("--teacher-widths", "2-4-8", "--student-widths", "1-2-4"),
    *("--teacher-epochs", "1", "--step1-epochs", "1", "--step2-epochs", "1"),
)


def read(switch: Callable) -> object:
    """Value of an older switch; None where a newer one contradicts it."""
    try:
        return switch()
    except RuntimeError:
        return None


def older_switches() -> list[object]:
    return [read(torch.get_float32_matmul_precision), read(lambda: BACKENDS.cudnn.allow_tf32)]


def newer_switches() -> list[str]:
    return [switch.fp32_precision for switch in NEWER]


def library_precision() -> tuple[str, str]:
    """Precision of matrix products and convolutions in the libraries; "ieee" is full."""
    return BACKENDS.cuda.matmul.fp32_precision, BACKENDS.cudnn.conv.fp32_precision


@pytest.fixture(autouse=True)
def restored_switches() -> Iterator[None]:
    before, (matmul, convolution) = newer_switches(), older_switches()
    yield
    torch.set_float32_matmul_precision(matmul)
    BACKENDS.cudnn.allow_tf32 = convolution
    for switch, value in zip(NEWER, before, strict=True):
        switch.fp32_precision = value


@pytest.fixture
def tf32_gpu(monkeypatch) -> None:
    """TF32 is supported, also where there is no GPU."""
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: True)


def set_newer(switch: object, value: str) -> Callable[[], None]:
    return lambda: setattr(switch, "fp32_precision", value)


CHOICES_OUTSIDE = {
    "nothing": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "convolutions in full": lambda: setattr(BACKENDS.cudnn, "allow_tf32", False),
    "products in TF32, newer switch": set_newer(BACKENDS.cuda.matmul, "tf32"),
    "convolutions in full, newer switch": set_newer(BACKENDS.cudnn.conv, "ieee"),
    "all in TF32, newer switch": set_newer(BACKENDS, "tf32"),
    "all in full, newer switch": set_newer(BACKENDS, "ieee"),
}


@pytest.mark.usefixtures("tf32_gpu")
@pytest.mark.parametrize("choose", CHOICES_OUTSIDE.values(), ids=CHOICES_OUTSIDE)
@pytest.mark.parametrize(("name", "matmul"), [("float32", "highest"), ("tf32", "high")])
def test_the_context_sets_the_precision_and_restores_what_was_set_before(name, matmul, choose):
    choose()
    before = newer_switches()
    readable = {k: v for k, v in enumerate(older_switches()) if v is not None}

    def fail_inside():
        with hardware.precision(name, GPU):
            assert torch.get_float32_matmul_precision() == matmul
            assert library_precision() == (("tf32", "tf32") if name == "tf32" else ("ieee", "ieee"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert newer_switches() == before
    assert {k: older_switches()[k] for k in readable} == readable


@pytest.mark.parametrize("name", ["float32", "tf32"])
def test_the_context_changes_nothing_on_a_cpu(name):
    torch.set_float32_matmul_precision("medium")
    before = newer_switches(), older_switches()
    with hardware.precision(name, CPU):
        assert (newer_switches(), older_switches()) == before
    assert (newer_switches(), older_switches()) == before


def test_a_gpu_without_tf32_computes_in_full_precision(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: False)
    torch.set_float32_matmul_precision("high")
    with hardware.precision("tf32", GPU):
        assert torch.get_float32_matmul_precision() == "highest"
        assert library_precision() == ("ieee", "ieee")


@pytest.fixture
def precisions(monkeypatch) -> set[tuple[str, str]]:
    """(function, precision) of training steps and scores on a CPU, with the switches of a GPU."""
    calls = set()

    def watch(owner: object, name: str) -> None:
        call = getattr(owner, name)

        def watched(*args, **kwargs):
            calls.add((name, torch.get_float32_matmul_precision()))
            return call(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    watch(Trainer, "step")
    watch(run_parts, "score_parts")
    watch(run_parts, "score_parts_per_member")
    monkeypatch.setattr("pkd.training.config.in_tf32", lambda name, device: name == "tf32")
    monkeypatch.setattr("pkd.runs.results.in_tf32", lambda name, device: name == "tf32")
    on_gpu = lambda name, device: hardware.precision(name, GPU)  # noqa: E731
    monkeypatch.setattr("pkd.runs.run.precision", on_gpu)
    monkeypatch.setattr("pkd.training.fit.precision", on_gpu)
    return calls


@pytest.mark.usefixtures("tf32_gpu")
@pytest.mark.parametrize(
    ("name", "inside", "outside"), [("tf32", "high", "highest"), ("float32", "highest", "high")]
)
def test_a_run_trains_and_scores_in_its_precision_and_reports_it(
    name, inside, outside, precisions, tmp_path
):
    torch.set_float32_matmul_precision(outside)
    folder = tmp_path / "run"
    argv = ["train", *TINY, "--device", "cpu", "--precision", name, "--out", str(folder)]
    assert main(argv) == 0
    functions = ("step", "score_parts", "score_parts_per_member")
    assert precisions == {(function, inside) for function in functions}
    assert torch.get_float32_matmul_precision() == outside
    assert yaml.safe_load((folder / "config.yaml").read_text())["precision"] == name
    results = json.loads((folder / "results.json").read_text())
    assert results["config"]["precision"] == name
    assert results["hardware"].endswith(", TF32") == (name == "tf32")
    precisions.clear()
    assert main(["evaluate", str(folder), "--device", "cpu"]) == 0
    assert precisions == {(function, inside) for function in functions[1:]}
    assert main(["report", str(folder), "--device", "cpu"]) == 0
    page = (folder / "report.html").read_text()
    assert (f">{name}<" in page, ", TF32" in page) == (True, name == "tf32")


@pytest.mark.usefixtures("tf32_gpu")
def test_a_detector_trains_in_its_precision(precisions):
    images = np.random.default_rng(0).integers(0, 256, (8, 12, 12), np.uint8)
    sizes = {"latent": 8, "teacher_widths": (2, 4, 8), "student_widths": (1, 2, 4)}
    epochs = {"teacher_epochs": 1, "step1_epochs": 1, "step2_epochs": 1}
    for name, inside in (("float32", "highest"), ("tf32", "high")):
        precisions.clear()
        Detector(**sizes, **epochs, device="cpu", precision=name, random_state=0).fit(images)
        assert precisions == {("step", inside)}
        assert torch.get_float32_matmul_precision() == "highest"


def test_tf32_is_refused_on_a_cpu_and_nothing_is_written(tmp_path, refused):
    words = ("--precision is 'tf32'", "NVIDIA GPU", "in float32")
    argv = ("train", *TINY, "--device", "cpu", "--precision", "tf32", "--out", tmp_path / "run")
    refused(argv, *words)
    assert not (tmp_path / "run").exists()
    detector = Detector(device="cpu", precision="tf32")
    with pytest.raises(ConfigError, match=r"^`precision` is 'tf32', which takes .* in float32"):
        detector.fit(np.zeros((20, 8, 8), np.uint8))
    with pytest.raises(ConfigError, match=r"`precision` is 'fp8', but .* one of float32, tf32"):
        TrainConfig(precision="fp8").resolved()


def test_a_tf32_run_is_scored_but_not_continued_without_tf32(tmp_path, monkeypatch, refused):
    folder = tmp_path / "run"
    with monkeypatch.context() as supported:
        supported.setattr("pkd.training.config.in_tf32", lambda name, device: name == "tf32")
        argv = ["train", *TINY, "--device", "cpu", "--precision", "tf32", "--out", str(folder)]
        assert main(argv) == 0
    assert main(["evaluate", str(folder), "--device", "cpu"]) == 0
    assert main(["train", "--resume", str(folder)]) == 0  # nothing is left to train
    for name in ("progress.json", "results.json"):  # the state before the first checkpoint
        (folder / name).unlink()
    refused(("train", "--resume", folder), "--precision is 'tf32'", "in float32")


@pytest.mark.gpu
def test_steps_on_a_gpu_run_in_their_precision(tmp_path, monkeypatch):
    step, precisions = Trainer.step, set()

    def watched(trainer):
        precisions.add((torch.get_float32_matmul_precision(), *library_precision()))
        step(trainer)

    monkeypatch.setattr(Trainer, "step", watched)
    argv = ["train", *TINY, "--device", "cuda"]
    assert main([*argv, "--out", str(tmp_path / "full")]) == 0
    assert precisions == {("highest", "ieee", "ieee")}
    if not torch.cuda.is_tf32_supported():
        assert main([*argv, "--precision", "tf32", "--out", str(tmp_path / "tf32")]) == 2
        return
    precisions.clear()
    assert main([*argv, "--precision", "tf32", "--out", str(tmp_path / "tf32")]) == 0
    assert precisions == {("high", "tf32", "tf32")}
    assert json.loads((tmp_path / "tf32" / "results.json").read_text())["hardware"].endswith("TF32")
