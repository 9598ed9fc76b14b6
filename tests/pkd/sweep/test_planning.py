"""Groups of teachers and sizes of shards."""

import json
from dataclasses import replace

import pytest

from pkd.sweep import planning
from pkd.sweep.cells import combine_settings, resolve_cells
from pkd.sweep.measure import Measurement
from pkd.sweep.plan import Plan
from pkd.sweep.planning import make_plan
from pkd.utils.errors import CheckpointError, PkdError

TINY = {
    **{"structure": "2", "teacher_widths": (1, 1, 1), "student_widths": (1, 1, 1)},
    **{"latent": 4, "device": "cpu"},
}


class FakeEngine:
    """Returns the same speed for every cell."""

    def __init__(self, workers=1, fit=1000, knee=1, cost=lambda name: 1.0):
        self.workers, self.threads = workers, 2
        self.fit, self.knee, self.cost = fit, knee, cost

    def submit(self, task, cells, threads):
        self.result = task, cells, threads
        return self

    def wait(self, handles):
        task, cells, threads = self.result
        assert (task, threads) == (planning.measure_cells, 2)
        curves = [
            {phase.name: [(1, self.cost(cell.name))] for phase in cell.config.trained_phases()}
            for cell in cells
        ]
        measurements = [Measurement(self.fit, self.knee, curve) for curve in curves]
        return self, {"status": "finished", "error": None, "measurements": measurements}


def plan_of(engine, axes, **settings):
    return make_plan(resolve_cells(*combine_settings(TINY | settings, axes)), engine)


def sizes(plan):
    by_cell = {}
    for shard in plan.shards:
        by_cell.setdefault(shard.cell, []).append(len(shard.members))
    return by_cell


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        (FakeEngine(), [30]),
        (FakeEngine(workers=3), [10, 10, 10]),
        (FakeEngine(workers=4), [7, 8, 7, 8]),
        (FakeEngine(fit=12), [10, 10, 10]),
        (FakeEngine(workers=2, fit=4), [3, 4, 4, 4, 3, 4, 4, 4]),
        (FakeEngine(workers=100, knee=8), [10, 10, 10]),
        (FakeEngine(workers=2, knee=16), [30]),
        (FakeEngine(workers=2, knee=15), [15, 15]),
        (FakeEngine(workers=100), [1] * 30),
    ],
)
def test_shards_fit_the_device_use_all_workers_and_are_not_below_the_knee(engine, expected):
    plan = plan_of(engine, {}, structure="student-only", seeds=3)
    assert list(sizes(plan).values()) == [expected]
    assert [m for shard in plan.shards for m in shard.members] == list(plan.cells[0].members)
    assert [shard.stack for shard in plan.shards] == expected


def test_costly_cells_are_split_into_more_shards():
    engine = FakeEngine(workers=4, cost=lambda name: 3.0 if "_2_" in name else 1.0)
    plan = plan_of(engine, {"structure": ["2", "1"]})
    assert sizes(plan) == {
        "teacher_digits": [2, 3, 2, 3],
        "digits_2_1-1-1": [3, 3, 4],
        "digits_1_1-1-1": [10],
    }


def test_a_stack_of_the_user_does_not_limit_the_shards():
    plan = plan_of(FakeEngine(), {}, structure="student-only", stack=4)
    assert [(len(shard.members), shard.stack) for shard in plan.shards] == [(10, 4)]
    assert plan.steps(plan.shards[0])["step1"] == [plan.total_steps(plan.shards[0]) // 3] * 3


def test_cells_with_equal_teacher_settings_share_a_group_with_the_members_of_all():
    axes = {"normal_class": [(0, 1), (1, 2)], "structure": ["1", "student-only"]}
    plan = plan_of(FakeEngine(workers=2), axes)
    (group,) = plan.groups
    assert [member.normal_class for member in group.members] == [0, 1, 2]
    assert sorted(plan.group_of) == [cell.name for cell in plan.cells if "_1_" in cell.name]
    for shard in plan.shards:
        taught = {member for name in shard.teachers for member in plan.shard(name).members}
        needs = shard.cell in plan.group_of
        assert taught.issuperset(shard.members) == needs
        # No shard waits for a teacher that it does not need.
        for name in shard.teachers:
            assert not set(plan.shard(name).members).isdisjoint(shard.members)


@pytest.mark.parametrize(
    ("axis", "values", "groups"),
    [
        ("structure", ["1", "4", "progressive-24"], 1),
        ("student_widths", [(1, 1, 1), (2, 2, 2)], 1),
        ("step1_epochs", [1, 2], 1),
        ("teacher_epochs", [1, 2], 2),
        ("lr", [0.1, 0.2], 1),
        ("teacher_lr", [0.1, 0.2], 2),
        ("weights", [(1.0, 1.0, 1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 2.0, 1.0, 1.0)], 1),
        ("evaluate_on", ["test", "development"], 2),
        ("precision", ["float32", "tf32"], 2),
    ],
)
def test_the_settings_and_images_of_the_teachers_decide_the_groups(axis, values, groups):
    plan = plan_of(FakeEngine(), {axis: values})
    assert len(plan.groups) == groups
    assert len({shard.name for shard in plan.shards}) == len(plan.shards)


def test_rates_of_the_teacher_alone_keep_a_common_group():
    axes = {"lr": [0.1, 0.2]}
    assert len(plan_of(FakeEngine(), axes, teacher_lr=0.1).groups) == 1


def test_an_error_of_the_measurement_is_raised():
    class FailingEngine(FakeEngine):
        def wait(self, handles):
            return self, {"status": "failed", "error": "no GPU"}

    with pytest.raises(PkdError, match="no GPU"):
        plan_of(FailingEngine(), {})


# -- plan.json -------------------------------------------------------------------------------------


def test_a_plan_is_written_and_read(tmp_path):
    settings = {"seeds": 2, "betas": (0.5, 0.9), "teacher_lr": 0.1}
    plan = plan_of(FakeEngine(workers=3), {"structure": ["1", "student-only"]}, **settings)
    plan.write(tmp_path)
    assert Plan.read(tmp_path) == plan


def test_the_settings_of_a_shard(tmp_path):
    plan = plan_of(FakeEngine(workers=2), {"structure": ["1"]}, seeds=2, normal_class=(3, 5))
    teachers, shard = plan.shards[:2], plan.shards[-1]
    config = plan.config(shard, tmp_path)
    folders = tuple(str(tmp_path / "shards" / teacher.name) for teacher in teachers[1:])
    assert config == replace(
        plan.cells[0].config,
        normal_class="all",
        seeds=1,
        members=((3, 1), (5, 1)),
        stack=2,
        teacher=folders,
    )
    config.check_members_and_teacher()


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: values.update(format=3),
        lambda values: values.pop("shards"),
        lambda values: values.update(threads="2"),
        lambda values: values["shards"][0].update(stack=0),
        lambda values: values["shards"][0].update(cell="other"),
        lambda values: values["shards"][0].update(members=[[7, 7]]),
        lambda values: values["shards"][0].update(extra=1),
        lambda values: values["shards"][-1].update(teachers=["other"]),
        lambda values: values["shards"].pop(),
        lambda values: values["shards"].append(values["shards"][0]),
        lambda values: values["cells"][0]["config"].update(lr="x"),
        lambda values: values["cells"][0].pop("images"),
    ],
)
def test_a_damaged_plan_is_refused(damage, tmp_path):
    plan_of(FakeEngine(), {"structure": ["1"]}).write(tmp_path)
    values = json.loads((tmp_path / "plan.json").read_text())
    del values["sha256"]
    values["format"] = 1  # which had no checksum
    damage(values)
    (tmp_path / "plan.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"plan\.json is damaged or of another version"):
        Plan.read(tmp_path)


def test_a_plan_with_another_checksum_is_refused(tmp_path):
    plan_of(FakeEngine(), {"structure": ["1"]}).write(tmp_path)
    values = json.loads((tmp_path / "plan.json").read_text())
    values["threads"] += 1
    (tmp_path / "plan.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"plan\.json is damaged .*SHA-256"):
        Plan.read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"null"])
def test_a_plan_that_is_no_json_is_refused(content, tmp_path):
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"plan\.json is damaged"):
        Plan.read(tmp_path)
