"""float32 in full or TF32: what is on while networks compute, put back, named, and refused."""

import json
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import yaml

from pkd import Detector
from pkd.cli.main import main
from pkd.runs import pipeline as schedule
from pkd.runs import run
from pkd.training.config import TrainConfig
from pkd.training.trainer import Trainer
from pkd.utils import device as hardware
from pkd.utils.errors import DataError, PkdError

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
    """What an older switch says; None where newer ones contradict it."""
    try:
        return switch()
    except RuntimeError:
        return None


def older() -> list[object]:
    return [read(torch.get_float32_matmul_precision), read(lambda: BACKENDS.cudnn.allow_tf32)]


def newer() -> list[str]:
    return [switch.fp32_precision for switch in NEWER]


def computes() -> tuple[str, str]:
    """How libraries compute matrix products and convolutions; "ieee" is in full."""
    return BACKENDS.cuda.matmul.fp32_precision, BACKENDS.cudnn.conv.fp32_precision


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before, (matmul, convolution) = newer(), older()
    yield
    torch.set_float32_matmul_precision(matmul)
    BACKENDS.cudnn.allow_tf32 = convolution
    for switch, value in zip(NEWER, before, strict=True):
        switch.fp32_precision = value


@pytest.fixture
def tf32_gpu(monkeypatch) -> None:
    """The GPU, if there is none a pretended one, has TF32."""
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: True)


def set_newer(switch: object, value: str) -> Callable[[], None]:
    return lambda: setattr(switch, "fp32_precision", value)


CHOSEN_OUTSIDE = {
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
@pytest.mark.parametrize("choose", CHOSEN_OUTSIDE.values(), ids=CHOSEN_OUTSIDE)
@pytest.mark.parametrize(("name", "matmul"), [("float32", "highest"), ("tf32", "high")])
def test_inside_it_is_as_named_whatever_was_chosen_outside_and_after_that_as_before(
    name, matmul, choose
):
    choose()
    before, readable = newer(), [(k, v) for k, v in enumerate(older()) if v is not None]
    with pytest.raises(ZeroDivisionError), hardware.precision(name, GPU):
        assert torch.get_float32_matmul_precision() == matmul
        assert computes() == (("tf32", "tf32") if name == "tf32" else ("ieee", "ieee"))
        raise ZeroDivisionError
    assert newer() == before
    assert [(k, older()[k]) for k, _ in readable] == readable


@pytest.mark.parametrize("name", ["float32", "tf32"])
def test_on_a_cpu_nothing_changes(name):
    torch.set_float32_matmul_precision("medium")
    before = newer(), older()
    with hardware.precision(name, CPU):
        assert (newer(), older()) == before
    assert (newer(), older()) == before


def test_a_gpu_without_tf32_computes_in_full(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: False)
    torch.set_float32_matmul_precision("high")
    with hardware.precision("tf32", GPU):
        assert torch.get_float32_matmul_precision() == "highest"
        assert computes() == ("ieee", "ieee")


@pytest.fixture
def seen(monkeypatch) -> set[tuple[str, str]]:
    """(What computes, in which precision): a CPU's steps and scores, with the switches of a GPU."""
    found = set()

    def watch(owner: object, name: str) -> None:
        call = getattr(owner, name)

        def watched(*args, **kwargs):
            found.add((name, torch.get_float32_matmul_precision()))
            return call(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    watch(Trainer, "step")
    watch(run, "novelty_scores")
    watch(schedule, "scores_per_member")
    monkeypatch.setattr("pkd.training.config.in_tf32", lambda name, device: name == "tf32")
    monkeypatch.setattr("pkd.runs.results.in_tf32", lambda name, device: name == "tf32")
    on_gpu = lambda name, device: hardware.precision(name, GPU)  # noqa: E731
    monkeypatch.setattr("pkd.runs.run.precision", on_gpu)
    monkeypatch.setattr("pkd.detector.precision", on_gpu)
    return found


@pytest.mark.usefixtures("tf32_gpu")
@pytest.mark.parametrize(
    ("name", "inside", "outside"), [("tf32", "high", "highest"), ("float32", "highest", "high")]
)
def test_a_run_trains_and_scores_as_named_and_names_it(name, inside, outside, seen, tmp_path):
    torch.set_float32_matmul_precision(outside)
    folder = tmp_path / "run"
    argv = ["train", *TINY, "--device", "cpu", "--precision", name, "--out", str(folder)]
    assert main(argv) == 0
    assert seen == {(what, inside) for what in ("step", "novelty_scores", "scores_per_member")}
    assert torch.get_float32_matmul_precision() == outside
    assert yaml.safe_load((folder / "config.yaml").read_text())["precision"] == name
    results = json.loads((folder / "results.json").read_text())
    assert results["config"]["precision"] == name
    assert results["hardware"].endswith(", TF32") == (name == "tf32")
    seen.clear()
    assert main(["evaluate", str(folder), "--device", "cpu"]) == 0
    assert seen == {("novelty_scores", inside)}
    assert main(["report", str(folder), "--device", "cpu"]) == 0
    page = (folder / "report.html").read_text()
    assert (f">{name}<" in page, ", TF32" in page) == (True, name == "tf32")


@pytest.mark.usefixtures("tf32_gpu")
def test_a_detector_trains_as_named(seen):
    images = np.random.default_rng(0).integers(0, 256, (8, 12, 12), np.uint8)
    sizes = {"latent": 8, "teacher_widths": (2, 4, 8), "student_widths": (1, 2, 4)}
    epochs = {"teacher_epochs": 1, "step1_epochs": 1, "step2_epochs": 1}
    for name, inside in (("float32", "highest"), ("tf32", "high")):
        seen.clear()
        Detector(**sizes, **epochs, device="cpu", precision=name, random_state=0).fit(images)
        assert seen == {("step", inside)}
        assert torch.get_float32_matmul_precision() == "highest"


def test_tf32_is_refused_where_there_is_none_and_nothing_is_written(tmp_path, refused):
    words = ("--precision tf32", "NVIDIA GPU", "in float32")
    argv = ("train", *TINY, "--device", "cpu", "--precision", "tf32", "--out", tmp_path / "run")
    refused(argv, *words)
    assert not (tmp_path / "run").exists()
    detector = Detector(device="cpu", precision="tf32")
    with pytest.raises(DataError, match=r"^precision tf32 takes .* in float32"):
        detector.fit(np.zeros((20, 8, 8), np.uint8))
    with pytest.raises(PkdError, match=r"--precision is 'fp8'; choose one of float32, tf32"):
        TrainConfig(precision="fp8").resolved()


def test_a_run_in_tf32_is_not_continued_without_but_is_scored(tmp_path, monkeypatch, refused):
    folder = tmp_path / "run"
    with monkeypatch.context() as pretended:
        pretended.setattr("pkd.training.config.in_tf32", lambda name, device: name == "tf32")
        argv = ["train", *TINY, "--device", "cpu", "--precision", "tf32", "--out", str(folder)]
        assert main(argv) == 0
    assert main(["evaluate", str(folder), "--device", "cpu"]) == 0
    assert main(["train", "--resume", str(folder)]) == 0  # nothing is left to train
    for name in ("progress.json", "results.json"):  # as before its first checkpoint
        (folder / name).unlink()
    refused(("train", "--resume", folder), "--precision tf32 (or config.yaml's)")


@pytest.mark.gpu
def test_on_a_gpu_steps_run_as_named(tmp_path, monkeypatch):
    step, found = Trainer.step, set()

    def watched(trainer):
        found.add((torch.get_float32_matmul_precision(), *computes()))
        step(trainer)

    monkeypatch.setattr(Trainer, "step", watched)
    argv = ["train", *TINY, "--device", "cuda"]
    assert main([*argv, "--out", str(tmp_path / "full")]) == 0
    assert found == {("highest", "ieee", "ieee")}
    if not torch.cuda.is_tf32_supported():
        assert main([*argv, "--precision", "tf32", "--out", str(tmp_path / "tf32")]) == 2
        return
    found.clear()
    assert main([*argv, "--precision", "tf32", "--out", str(tmp_path / "tf32")]) == 0
    assert found == {("high", "tf32", "tf32")}
    assert json.loads((tmp_path / "tf32" / "results.json").read_text())["hardware"].endswith("TF32")
