"""Teachers from finished runs."""

import json
import shutil

import pytest
from run_helpers import remove_checksums
from safetensors.torch import load_file, save_file

from pkd.models.ganomaly import network_tensors
from pkd.models.stack import Member
from pkd.runs.pipeline import train
from pkd.runs.run import Run
from pkd.runs.run_parts import load_parts
from pkd.runs.teachers import teacher_settings, weights_sha256
from pkd.training.callbacks import Callback
from pkd.training.config import TrainConfig
from pkd.utils.errors import CheckpointError, ConfigError

SETTINGS = {
    "structure": "progressive-23",
    **{"teacher_widths": (2, 2, 4), "student_widths": (1, 1, 2), "latent": 4, "image_size": 16},
    **{"teacher_epochs": 2, "step1_epochs": 1, "step2_epochs": 1, "batch_size": 4},
    **{"max_train_images": 12, "device": "cpu"},
}
PAIR = ((0, 0), (1, 0))


def train_run(out, **settings):
    run = Run.create(TrainConfig(**SETTINGS | settings), out)
    try:
        results = train(run, Callback())
    finally:
        run.folder.release()
    return run, results


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Two finished runs of teachers, of the members (0, 0), (1, 0) and (2, 0), (1, 1)."""
    folder = tmp_path_factory.mktemp("sources")
    first, second = folder / "first", folder / "second"
    train_run(first, structure="teacher-only", members=PAIR)
    train_run(second, structure="teacher-only", members=((2, 0), (1, 1)))
    return first, second


def test_a_run_with_taken_teachers_equals_the_run_that_trains_them(sources, tmp_path):
    run, results = train_run(tmp_path / "run", members=PAIR)
    taken, taken_results = train_run(tmp_path / "taken", members=PAIR, teacher=(str(sources[0]),))
    assert taken_results["members"] == results["members"]
    assert taken_results["mean_auc"] == results["mean_auc"]
    assert "teacher" not in taken_results["seconds"]
    assert taken.folder.metrics == run.folder.metrics
    for phase in run.phases:
        run.load_phase(phase)
        taken.load_phase(phase)
        expected = network_tensors(run.trained(phase))
        for name, value in network_tensors(taken.trained(phase)).items():
            assert value.equal(expected[name])
        assert (load_parts(taken, phase).test == load_parts(run, phase).test).all()


def test_several_runs_cover_the_members_in_any_order(sources, tmp_path):
    members = ((2, 0), (0, 0), (1, 1))
    run, results = train_run(
        tmp_path / "run", structure="1", members=members, teacher=tuple(map(str, sources))
    )
    run.load_phase(run.phases[0])
    digests = weights_sha256(network_tensors({"teacher": run.networks["teacher"]}), 3)
    assert digests == [member["teacher_sha256"] for member in results["members"]]
    originals = {}
    for source in sources:
        for member in json.loads((source / "results.json").read_text())["members"]:
            key = Member(member["normal_class"], member["seed"])
            originals[key] = member["teacher_sha256"], member["auc"]["teacher"]
    for member, entry in zip(run.members, results["members"], strict=True):
        assert (entry["teacher_sha256"], entry["auc"]["teacher"]) == originals[member]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"members": ((5, 0),)}, "no teacher of normal class 5, seed 0: add a run"),
        ({"members": PAIR, "teacher_lr": 0.1}, "trained with `teacher_lr` 0.0005, .* has 0.1"),
        ({"members": PAIR, "teacher_widths": (2, 4, 4)}, "`teacher_widths` 2-2-4, .* has 2-4-4"),
        ({"members": PAIR, "held_out": 0.2}, "`held_out` 0.1, this run has 0.2"),
        ({"members": PAIR, "max_train_images": 11}, "`teacher_max_train_images` 12, .* has 11"),
        ({"members": PAIR, "structure": "student-only"}, "no use with the structure student-only"),
        ({"members": PAIR, "normal_class": (0,)}, "leave out `normal_class` and `seeds`"),
    ],
)
def test_settings_that_do_not_fit_are_refused(sources, tmp_path, settings, problem):
    with pytest.raises(ConfigError, match=problem):
        Run.create(TrainConfig(**SETTINGS | {"teacher": (str(sources[0]),)} | settings), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_settings_of_the_distillation_may_differ(sources, tmp_path):
    settings = {"student_widths": (2, 2, 2), "lr": 0.001, "teacher_lr": 0.0005, "step1_epochs": 2}
    weights = (10.0, 1.0, 1.0, 7.0, 8.0, 9.0)
    Run.create(
        TrainConfig(
            **SETTINGS | settings, members=PAIR, weights=weights, teacher=(str(sources[0]),)
        ),
        tmp_path,
    ).folder.release()


def test_runs_that_have_no_trained_teachers_are_refused(sources, tmp_path):
    with pytest.raises(CheckpointError, match="is not a run folder"):
        train_run(tmp_path / "a", members=PAIR, teacher=(str(tmp_path / "missing"),))
    train_run(tmp_path / "student", structure="student-only", members=PAIR)
    with pytest.raises(ConfigError, match="student has no teacher"):
        train_run(tmp_path / "b", members=PAIR, teacher=(str(tmp_path / "student"),))
    taken = tmp_path / "taken"
    train_run(taken, structure="1", members=PAIR, teacher=(str(sources[0]),))
    with pytest.raises(ConfigError, match=r"taken took its teachers from other runs: give .*first"):
        train_run(tmp_path / "c", members=PAIR, teacher=(str(taken),))
    unfinished = tmp_path / "unfinished"
    Run.create(TrainConfig(**SETTINGS, members=PAIR), unfinished).folder.release()
    with pytest.raises(CheckpointError, match="unfinished is not finished: continue"):
        train_run(tmp_path / "d", members=PAIR, teacher=(str(unfinished),))


def test_a_run_is_continued_beside_moved_teachers(sources, tmp_path):
    """A sweep that is moved as a whole keeps its runs usable."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    shutil.copytree(sources[0], old / "first")
    train_run(old / "run", structure="1", members=PAIR, teacher=(str(old / "first"),))
    old.rename(new)
    run = Run.open(new / "run")
    run.load_phase(run.phases[0])
    expected = [m["teacher_sha256"] for m in run.folder.results()["members"]]
    assert weights_sha256(run.teachers.tensors(), 2) == expected


def test_teachers_that_have_changed_since_are_refused(sources, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(sources[0], source)
    train_run(tmp_path / "run", structure="1", members=PAIR, teacher=(str(source),))
    shutil.rmtree(source)
    train_run(source, structure="teacher-only", members=PAIR[::-1])
    run = Run.open(tmp_path / "run")
    run.load_phase(run.phases[0])  # the same teachers in another order
    shutil.rmtree(source)
    train_run(source, structure="teacher-only", members=PAIR, norm_first=True, betas=(0.5, 0.99))
    run = Run.open(tmp_path / "run")
    with pytest.raises(ConfigError, match="`betas`"):
        run.load_phase(run.phases[0])


def test_damaged_weights_of_a_source_are_refused(sources, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(sources[0], source)
    train_run(tmp_path / "run", structure="1", members=PAIR, teacher=(str(source),))
    checkpoint = remove_checksums(source) / "checkpoints" / "teacher.safetensors"
    tensors = load_file(checkpoint)
    next(v for k, v in tensors.items() if k.startswith("teacher."))[-1] += 1e-3
    save_file(tensors, checkpoint)
    run = Run.open(tmp_path / "run")
    with pytest.raises(CheckpointError, match="not those that this run took"):
        run.load_phase(run.phases[0])


def test_the_settings_of_a_teacher_are_the_effective_ones():
    def effective(**settings):
        return teacher_settings(TrainConfig(structure="2", **settings).resolved())

    default = effective()
    assert effective(lr=0.001, teacher_lr=0.0005, batch_size=2, teacher_batch_size=8) == default
    assert effective(weights=(10.0, 1.0, 1.0, 5.0, 6.0, 7.0), student_widths=(1, 2, 4)) == default
    assert effective(weights=(9.0, 1, 1, 1, 1, 1)) != default


def test_sources_of_different_formats_share_the_latent_score(sources, tmp_path):
    """An earlier version kept the latent part of the scores alone."""
    old = tmp_path / "old"
    shutil.copytree(sources[0], old)
    checkpoint = remove_checksums(old) / "checkpoints" / "teacher.safetensors"
    tensors = load_file(checkpoint)
    for name in tensors:
        if name == "test_scores" or name.startswith("held_out."):
            tensors[name] = tensors[name][..., 0].contiguous()
    save_file(tensors, checkpoint)
    settings = {"structure": "1", "members": ((0, 0), (2, 0))}
    teacher = (str(old), str(sources[1]))
    _, results = train_run(tmp_path / "run", **settings, teacher=teacher, score="latent")
    _, expected = train_run(
        tmp_path / "new", **settings, teacher=tuple(map(str, sources)), score="latent"
    )
    assert [m["auc"] for m in results["members"]] == [m["auc"] for m in expected["members"]]


def test_a_source_with_damaged_results_is_refused(sources, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(sources[0], source)
    (source / "results.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"results\.json is damaged \(it lacks dataset, "):
        train_run(tmp_path / "run", structure="1", members=PAIR, teacher=(str(source),))


def test_teachers_are_shared_by_runs_with_other_scores(sources, tmp_path):
    settings = {"structure": "1", "members": PAIR, "teacher": (str(sources[0]),)}
    _, results = train_run(tmp_path / "run", **settings, score="reconstruction")
    _, trained = train_run(tmp_path / "new", structure="1", members=PAIR, score="reconstruction")
    assert [m["auc"] for m in results["members"]] == [m["auc"] for m in trained["members"]]
