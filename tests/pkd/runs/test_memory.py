"""Stack size from the measured memory of a GPU, and networks that are too large."""

import pytest
import torch
import yaml

from pkd.runs import memory
from pkd.runs import run as runs
from pkd.runs.data import prepare
from pkd.runs.memory import largest_stack
from pkd.runs.run import Run
from pkd.training.config import TrainConfig
from pkd.utils.errors import ConfigError


@pytest.mark.parametrize(
    ("free", "size"), [(0, 1), (1000, 1), (1299, 1), (1300, 2), (3999, 10), (4000, 11)]
)
def test_the_largest_stack_follows_from_the_memory_of_a_further_model(free, size):
    """A model needs 300 bytes; memory that does not depend on their number is 700 bytes."""
    assert largest_stack(lambda count: 700 + 300 * count, free) == size


def test_models_without_memory_all_fit():
    assert largest_stack(lambda count: 700, 10**6) > 10**5


@pytest.fixture
def fake_gpu(monkeypatch):
    """Fake a GPU with a number of free bytes, on which a stack of M models needs 5 + 10 M MiB."""

    def install(free):
        monkeypatch.setattr(TrainConfig, "torch_device", lambda config: torch.device("cuda"))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, free))
        monkeypatch.setattr(
            memory, "training_memory", lambda config, data, count: (5 + 10 * count) * 2**20
        )
        # The folder is written before the first computation on the GPU, which does not exist here.
        monkeypatch.setattr(runs.Run, "__init__", lambda run, folder, *_: folder.release())

    return install


@pytest.mark.parametrize(("mebibytes", "stack"), [(19, 1), (50, 3), (131, 9), (10**6, None)])
def test_stacks_are_as_large_as_the_memory_of_the_gpu_allows(mebibytes, stack, fake_gpu, tmp_path):
    """Ten models; a fifth of the memory stays free."""
    fake_gpu(mebibytes * 2**20)
    narrow = {"teacher_widths": (2, 4, 8), "student_widths": (1, 2, 4), "latent": 8}
    Run.create(TrainConfig(**narrow), tmp_path / "run")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["stack"] == stack


def test_the_memory_is_not_measured_for_a_stack_of_given_size(fake_gpu, tmp_path, monkeypatch):
    fake_gpu(10**9)
    monkeypatch.setattr(memory, "training_memory", pytest.fail)
    Run.create(TrainConfig(student_widths=(1, 2, 4), stack=7), tmp_path / "run")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["stack"] == 7


@pytest.mark.parametrize(
    "settings", [{"teacher_widths": (10**9, 10**9, 2)}, {"latent": 10**30}, {"seeds": 10**9}]
)
def test_networks_that_exceed_the_memory_are_refused(settings, tmp_path):
    with pytest.raises(ConfigError, match=r"GiB.* choose smaller"):
        Run.create(TrainConfig(structure="2", device="cpu", **settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
def test_memory_measured_for_two_models_predicts_that_of_eight():
    config, data = prepare(TrainConfig(device="cuda"))
    one, two, eight = (memory.training_memory(config, data, count) for count in (1, 2, 8))
    assert eight == pytest.approx(one + 7 * (two - one), rel=0.1)
