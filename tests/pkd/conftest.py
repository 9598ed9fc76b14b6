from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from run_helpers import SMALL_NETWORKS
from sweep_helpers import STRUCTURES, TINY_SWEEP, make_sweeps_fast

from pkd.cli.main import main


@pytest.fixture
def double_precision() -> Iterator[None]:
    """New tensors are float64: Adam amplifies rounding errors of float32 into steps."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def every_step_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Trainer.epoch` yields after every step."""
    monkeypatch.setattr("pkd.training.trainer.REPORT_SECONDS", 0.0)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run on the digits 3 and 5 with two seeds; read only."""
    out = tmp_path_factory.mktemp("small") / "run"
    models = ("--normal-class", "3,5", "--seeds", "2", "--max-train-images", "20")
    assert main(["train", *SMALL_NETWORKS, *models, "--out", str(out)]) == 0
    return out


def train_small(out: Path, *settings: str) -> Path:
    """Train a run on the digits with small networks and 20 images of each class."""
    limit = ("--max-train-images", "20")
    assert main(["train", *SMALL_NETWORKS, *limit, *settings, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def student_only_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of students without teachers, classes with different seeds; read only."""
    out = tmp_path_factory.mktemp("small") / "students"
    return train_small(out, "--structure", "student-only", "--members", "3:0,5:0,5:1")


@pytest.fixture(scope="session")
def teacher_only_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of teachers without students; read only."""
    out = tmp_path_factory.mktemp("small") / "teachers"
    return train_small(out, "--structure", "teacher-only", "--members", "3:0,5:0,5:1")


@pytest.fixture(scope="session")
def shared_teachers_run(teacher_only_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that took its teachers from `teacher_only_run`; read only."""
    out = tmp_path_factory.mktemp("small") / "distilled"
    teachers = ("--teacher", str(teacher_only_run))
    return train_small(out, "--structure", "2", "--members", "5:1,3:0", *teachers)


@pytest.fixture(scope="session")
def small_onnx(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ONNX file of the student of digit 5 and seed 1 of `small_run`; read only."""
    file = tmp_path_factory.mktemp("small") / "student.onnx"
    selection = ("--normal-class", "5", "--seed", "1")
    assert main(["export", str(small_run), "--output", str(file), *selection]) == 0
    return file


@pytest.fixture(scope="session")
def small_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished sweep over three structures on the digits 0 and 1; read only."""
    out = tmp_path_factory.mktemp("small") / "sweep"
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_sweeps_fast(monkeypatch)
        assert main(["sweep", *TINY_SWEEP, *STRUCTURES, "--out", str(out)]) == 0
    return out


@pytest.fixture
def fast_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps measure few steps, draw no curves, and do not wait for the disk."""
    make_sweeps_fast(monkeypatch)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture) -> Callable[..., None]:
    """Check of (argv, *words): exit code 2 and a message in one line with all words."""

    def check(argv: Sequence[object], *words: object) -> None:
        assert main([str(a) for a in argv]) == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert message.startswith("pkd: ")
        assert [word for word in words if str(word) not in message] == []

    return check
