"""Measurement of training steps over the models in a stack."""

from dataclasses import replace

import pytest
import torch

from pkd.sweep import measure
from pkd.sweep.cells import combine_settings, resolve_cells
from pkd.sweep.measure import interpolate, measure_cell, measure_cells
from pkd.training.config import TrainConfig
from pkd.utils.errors import PkdError

TINY = {"teacher_widths": (1, 1, 1), "student_widths": (1, 1, 1), "latent": 4, "device": "cpu"}


def make_cell(**settings):
    (cell,) = resolve_cells(*combine_settings(TINY | settings, {}))
    return cell


@pytest.fixture
def step_seconds(monkeypatch):
    """Replace the measured seconds of a step by a function of (phase name, models)."""
    calls = []

    def replace(function):
        def step_seconds(config, phase, channels, count):
            calls.append((phase.name, count))
            return function(phase.name, count)

        monkeypatch.setattr(measure, "step_seconds", step_seconds)
        return calls

    return replace


@pytest.mark.parametrize("structure", ["student-only", "2", "3"])
def test_a_step_is_measured_in_every_phase(structure, monkeypatch):
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    config = TrainConfig(structure=structure, **TINY).resolved()
    for phase in config.phases():
        assert measure.step_seconds(config, phase, 1, 3) > 0


@pytest.mark.parametrize(("free", "knee"), [(1, 1), (4, 4), (6, 8), (8, 8), (1000, 16)])
def test_the_knee_is_the_last_stack_whose_doubling_was_worthwhile(free, knee, step_seconds):
    """Up to `free` models a step takes the same time, then each further model costs as much."""
    calls = step_seconds(lambda phase, count: max(1.0, count / free))
    cell = make_cell(structure="student-only", seeds=3)
    measured = measure_cell(cell, {})
    assert (measured.fit, measured.knee) == (30, knee)
    assert calls == [("step1", 2**k) for k in range(min(5, knee.bit_length() + 1))]


def test_phases_count_by_their_steps(step_seconds):
    """The second step alone would gain, but most steps belong to the first one."""
    step_seconds(lambda phase, count: 1.0 if phase == "step2" else float(count))
    lengths = {"step1_epochs": 100, "step2_epochs": 1, "teacher": ("other",)}
    cell = make_cell(structure="progressive-23")
    measured = measure_cell(replace(cell, config=replace(cell.config, **lengths)), {})
    assert measured.knee == 1
    assert list(measured.step_seconds) == ["step1", "step2"]


def test_equal_networks_and_losses_are_measured_once(step_seconds):
    calls = step_seconds(lambda phase, count: float(count))
    cells = [make_cell(structure=name) for name in ("2", "progressive-23", "3")]
    result = measure_cells(cells, 1)
    assert result["status"] == "finished"
    assert [measured.knee for measured in result["measurements"]] == [1, 1, 1]
    assert calls == [
        *(("teacher", 1), ("step1", 1), ("teacher", 2), ("step1", 2)),
        *(("step2", 1), ("step2", 2)),
    ]


def test_a_stack_out_of_memory_limits_the_models_that_fit(step_seconds):
    def limited(phase, count):
        if count > 4:
            raise torch.OutOfMemoryError
        return 1.0

    step_seconds(limited)
    measured = measure_cell(make_cell(structure="student-only"), {})
    assert (measured.fit, measured.knee) == (4, 4)


def test_a_single_model_out_of_memory_is_an_error_of_the_task(step_seconds):
    def fail(phase, count):
        raise torch.OutOfMemoryError

    step_seconds(fail)
    result = measure_cells([make_cell(structure="student-only")], 1)
    assert result["status"] == "failed"
    assert "one model of digits_student-only_1-1-1 does not fit" in result["error"]
    assert "`batch_size`" in result["error"]


def test_a_worker_without_the_gpu_of_the_settings_is_an_error(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = measure_cells([make_cell(device="cuda")], 1)
    assert "no usable NVIDIA GPU" in result["error"]


def test_models_that_exceed_the_memory_of_the_machine_are_split(monkeypatch, step_seconds):
    step_seconds(lambda phase, count: 1.0)
    monkeypatch.setattr(measure, "weight_memory", lambda config, channels: (10, 70))
    assert measure_cell(make_cell(), {}).fit == 3
    assert measure_cell(make_cell(stack=2), {}).fit == 10  # stacks of the user, one after the other


def test_the_seconds_of_other_stacks_are_interpolated():
    curve = [(1, 1.0), (2, 1.5), (4, 2.5)]
    assert [interpolate(curve, count) for count in (1, 2, 3, 4, 8)] == [1.0, 1.5, 2.0, 2.5, 5.0]


def test_estimated_seconds_of_a_cell(step_seconds):
    step_seconds(lambda phase, count: 0.5 if phase == "teacher" else 0.25)
    cell = make_cell(structure="2", seeds=1)
    steps = [max(cell.steps(phase, m) for m in cell.members) for phase in cell.config.phases()]
    measured = measure_cell(cell, {})
    expected = steps[0] * 0.5 + steps[1] * 0.25
    assert measured.seconds(cell, cell.members[:8]) == pytest.approx(expected)


def test_errors_of_other_kinds_are_not_hidden(step_seconds):
    def fail(phase, count):
        raise PkdError("no")

    step_seconds(fail)
    assert measure_cells([make_cell()], 1) == {"status": "failed", "error": "no"}
