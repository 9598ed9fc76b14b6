"""Opening runs, and scores of their networks."""

import json
import shutil

import numpy as np
import pytest
from run_helpers import PHASES, remove_checksums
from safetensors.torch import load_file, save_file

from pkd.runs.folder import RunFolder
from pkd.runs.run import Run
from pkd.runs.run_parts import compute_parts, compute_stack_parts, evaluate, load_parts
from pkd.training.config import TrainConfig
from pkd.utils.errors import CheckpointError, ConfigError, OutputError, PkdError


@pytest.fixture
def run_copy(small_run, tmp_path):
    return shutil.copytree(small_run, tmp_path / "run")


@pytest.fixture(scope="module")
def run(small_run):
    return Run.open(small_run, device="cpu")


def test_an_opened_run_has_the_settings_of_its_folder(run, small_run):
    assert [phase.name for phase in run.phases] == PHASES
    pairs = [(member.normal_class, member.seed) for member in run.members]
    assert pairs == [(3, 0), (5, 0), (3, 1), (5, 1)]
    assert run.test_images.shape == (360, 1, 32, 32)
    assert {name: gan.stack for name, gan in run.networks.items()} == {"teacher": 4, "student": 4}
    assert run.stacks == [slice(0, 4)]


def test_evaluate_gives_the_auc_of_results_json(run, small_run):
    members = json.loads((small_run / "results.json").read_text())["members"]
    for phase in run.phases:
        run.load_phase(phase)
        expected = [member["auc"][phase.name] for member in members]
        assert evaluate(run, phase.network) == pytest.approx(expected, abs=1e-6)


def test_stored_scores_equal_computed_scores(run):
    for phase in run.phases:
        run.load_phase(phase)
        stored, computed = load_parts(run, phase), compute_parts(run, phase.network)
        assert stored.test.shape == (360, 4, 3)
        np.testing.assert_allclose(computed.test, stored.test, rtol=1e-4)
        for actual, expected in zip(computed.held_out, stored.held_out, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_a_stride_selects_every_nth_test_image(run):
    run.load_phase(run.phases[-1])
    stack = run.stacks[0]
    parts = compute_stack_parts(run, run.networks, stack, "student", stride=7)
    np.testing.assert_allclose(parts.test, compute_parts(run, "student").test[::7], rtol=1e-4)


def test_a_callback_can_stop_the_scoring(run):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute_stack_parts(run, run.networks, run.stacks[0], "student", on_batch_end=stop)


def test_missing_test_scores_of_an_earlier_version_are_computed(run_copy):
    path = remove_checksums(run_copy) / "checkpoints" / "step2.safetensors"
    tensors = load_file(path)
    expected = tensors.pop("test_scores").numpy()
    save_file(tensors, path)
    run = Run.open(run_copy, device="cpu")
    np.testing.assert_allclose(load_parts(run, run.phases[-1]).test, expected, rtol=1e-4)


def test_test_scores_of_another_shape_are_refused(run_copy):
    path = remove_checksums(run_copy) / "checkpoints" / "step2.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"test_scores": tensors["test_scores"][:7].contiguous()}, path)
    run = Run.open(run_copy, device="cpu")
    with pytest.raises(CheckpointError, match=r"step2\.safetensors has test scores of shape"):
        load_parts(run, run.phases[-1])


def test_a_new_run_needs_usable_settings_and_a_new_folder(tmp_path, small_run):
    with pytest.raises(ConfigError, match="`seeds` is 0"):
        Run.create(TrainConfig(seeds=0), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(OutputError, match="holds another run: continue it with pkd train --resume"):
        Run.create(TrainConfig(device="cpu"), small_run)


def test_a_run_that_cannot_be_resumed_is_unlocked(run_copy):
    text = (run_copy / "config.yaml").read_text()
    (run_copy / "config.yaml").write_text(text.replace("latent: 8", "latent: x"))
    with pytest.raises(CheckpointError, match="`latent`"):
        Run.resume(run_copy)
    RunFolder.resume(run_copy).release()


def test_a_resumed_run_is_locked_and_an_opened_one_is_not(run_copy):
    run = Run.resume(run_copy)
    with pytest.raises(PkdError, match="another process is training"):
        Run.resume(run_copy)
    Run.open(run_copy, device="cpu")
    run.folder.release()


def test_data_of_another_folder_can_be_given(run_copy, tmp_path):
    run = Run.open(run_copy, device="cpu", data_dir=str(tmp_path / "elsewhere"))
    assert run.config.data_dir == str(tmp_path / "elsewhere")
