from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from pkd.cli.main import main


@pytest.fixture
def double_precision() -> Iterator[None]:
    """New tensors are float64, so that Adam does not blow rounding up into steps."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def every_step_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Trainer.epoch` yields after each step."""
    monkeypatch.setattr("pkd.training.trainer.REPORT_SECONDS", 0.0)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run on the digits 3 and 5 with two seeds; to be read only."""
    out = tmp_path_factory.mktemp("small") / "run"
    sizes = ("--latent", "8", "--teacher-widths", "2-4-8", "--student-widths", "1-2-4")
    length = ("--teacher-epochs", "1", "--step1-epochs", "1", "--step2-epochs", "1")
    few = ("--normal-class", "3,5", "--seeds", "2", "--max-train-images", "20")
    assert main(["train", *few, *sizes, *length, "--device", "cpu", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def small_onnx(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student of digit 5 and seed 1 of `small_run`; to be read only."""
    file = tmp_path_factory.mktemp("small") / "student.onnx"
    choice = ("--normal-class", "5", "--seed", "1")
    assert main(["export", str(small_run), "--output", str(file), *choice]) == 0
    return file


@pytest.fixture
def refused(capsys: pytest.CaptureFixture) -> Callable[..., None]:
    """refused(argv, *words): exit code 2 and a message, in one line, with all the words."""

    def check(argv: Sequence[object], *words: object) -> None:
        assert main([str(a) for a in argv]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("pkd: ")
        assert [word for word in words if str(word) not in said] == []

    return check
