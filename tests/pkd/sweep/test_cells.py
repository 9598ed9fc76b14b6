"""Combination of settings to cells, their names and their images."""

import pytest

from pkd.runs import data
from pkd.sweep import cells as module
from pkd.sweep.cells import cell_name, combine_settings, resolve_cells, unique_name
from pkd.training.config import TrainConfig
from pkd.utils.errors import ConfigError


def test_explicit_cells_are_multiplied_by_the_axes():
    cells = [{"step1_epochs": 3}, {"lr": 0.1}]
    axes = {"structure": ["1", "2"], "seeds": [1, 2]}
    configs, varied = combine_settings({"step1_epochs": 9, "lr": 0.5}, axes, cells)
    assert varied == ("seeds", "structure", "step1_epochs", "lr")
    assert [(c.step1_epochs, c.lr, c.structure, c.seeds) for c in configs] == [
        (epochs, lr, structure, seeds)
        for epochs, lr in ((3, 0.5), (9, 0.1))
        for structure in "12"
        for seeds in (1, 2)
    ]


def test_common_settings_alone_are_one_cell():
    assert combine_settings({"lr": 0.1}, {}) == ([TrainConfig(lr=0.1)], ())


def test_names_have_the_varied_settings_in_characters_for_files():
    values = {"lr": 0.01, "betas": (0.5, 0.9), "data_dir": "/a b/ü", "student_widths": (1, 2, 4)}
    config = TrainConfig(dataset="fashion_mnist", structure="2", **values).resolved()
    named = ("dataset", "structure", "student_widths")
    assert cell_name(config, named) == "fashion_mnist_2_1-2-4"
    assert (
        cell_name(config, (*named, "lr", "betas")) == "fashion_mnist_2_1-2-4_lr-0.01_betas-0.5-0.9"
    )
    assert cell_name(config, ("data_dir",)) == "data_dir--a-b-"
    assert len(cell_name(config, named * 20)) == 100


def test_a_name_that_is_taken_gets_a_number():
    assert [unique_name("a", names) for names in ([], ["a"], ["a", "a_2"], ["b"])] == [
        *("a", "a_2", "a_3", "a")
    ]


def test_equal_cells_are_refused_also_if_one_spells_out_a_default():
    configs, varied = combine_settings({}, {"batch_size": [None, 8]})
    with pytest.raises(ConfigError, match=r"`batch_size` gives the cell .* twice: leave one out"):
        resolve_cells(configs, varied)


def test_each_data_set_is_loaded_once(monkeypatch):
    loaded = []

    def load(config):
        loaded.append(config.evaluate_on)
        return data.load_dataset(config)

    monkeypatch.setattr(module, "load_dataset", load)
    axes = {"structure": ["1", "2", "student-only"], "evaluate_on": ["test", "development"]}
    cells = resolve_cells(*combine_settings({}, axes))
    assert sorted(loaded) == ["development", "test"]
    assert len({cell.data_sha256 for cell in cells}) == 2
    assert len({cell.name for cell in cells}) == 6


def test_the_members_of_a_cell_are_its_classes_and_seeds():
    settings = {"normal_class": (3, 5), "seeds": 2, "max_train_images": 20, "batch_size": 4}
    settings |= {"structure": "2"}
    (cell,) = resolve_cells(*combine_settings(settings, {}))
    members = [(member.normal_class, member.seed) for member in cell.members]
    assert members == [(3, 0), (5, 0), (3, 1), (5, 1)]
    phase = cell.config.phases()[1]
    assert [cell.steps(phase, member) for member in cell.members] == [phase.epochs * 5] * 4
    (cell,) = resolve_cells(*combine_settings(settings | {"max_train_images": None}, {}))
    assert cell.images[3] > cell.images[5] - 5
    assert cell.steps(phase, cell.members[0]) == phase.epochs * (20 // 4)


def test_a_gpu_of_the_workers_is_not_needed_to_resolve_cells(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    settings = {"device": "cuda", "precision": "tf32"}
    (cell,) = resolve_cells(*combine_settings(settings, {}))
    assert (cell.config.device, cell.config.precision) == ("cuda", "tf32")
    with pytest.raises(ConfigError, match="`device`"):
        resolve_cells([TrainConfig(device="gpu")], ())
