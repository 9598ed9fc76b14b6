"""Number of models trained together, from the measured memory of a GPU."""

import pytest
import torch
import yaml

from pkd.runs import memory
from pkd.runs import run as runs
from pkd.runs.data import prepare
from pkd.runs.memory import largest_stack
from pkd.runs.run import Run
from pkd.training.config import TrainConfig


@pytest.mark.parametrize(
    ("free", "size"), [(0, 1), (1000, 1), (1299, 1), (1300, 2), (3999, 10), (4000, 11)]
)
def test_the_largest_stack_follows_from_what_a_further_model_needs(free, size):
    """A model needs 300 bytes, and whatever is there only once another 700."""
    assert largest_stack(lambda count: 700 + 300 * count, free) == size


def test_models_that_need_no_memory_all_fit():
    assert largest_stack(lambda count: 700, 10**6) > 10**5


@pytest.fixture
def gpu_of(monkeypatch):
    """gpu_of(free): a GPU with `free` bytes, where a stack of M models needs 5 + 10 M MiB."""

    def install(free):
        monkeypatch.setattr(TrainConfig, "torch_device", lambda config: torch.device("cuda"))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, free))
        monkeypatch.setattr(
            memory, "training_memory", lambda config, data, count: (5 + 10 * count) * 2**20
        )
        # The folder is written before anything is computed on the GPU, which does not exist here.
        monkeypatch.setattr(runs.Run, "__init__", lambda run, folder, *_: folder.release())

    return install


@pytest.mark.parametrize(("mebibytes", "stack"), [(19, 1), (50, 3), (131, 9), (10**6, None)])
def test_stacks_are_as_large_as_the_gpus_memory_allows(mebibytes, stack, gpu_of, tmp_path):
    """Ten models; a fifth of the memory is left free."""
    gpu_of(mebibytes * 2**20)
    narrow = {"teacher_widths": (2, 4, 8), "student_widths": (1, 2, 4), "latent": 8}
    Run.create(TrainConfig(**narrow), tmp_path / "run")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["stack"] == stack


def test_a_stack_that_the_user_chose_is_not_measured(gpu_of, tmp_path, monkeypatch):
    gpu_of(10**9)
    monkeypatch.setattr(memory, "training_memory", pytest.fail)
    Run.create(TrainConfig(student_widths=(1, 2, 4), stack=7), tmp_path / "run")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["stack"] == 7


@pytest.mark.gpu
def test_memory_measured_for_two_models_predicts_that_of_eight():
    config, data = prepare(TrainConfig(device="cuda"))
    one, two, eight = (memory.training_memory(config, data, count) for count in (1, 2, 8))
    assert eight == pytest.approx(one + 7 * (two - one), rel=0.1)
