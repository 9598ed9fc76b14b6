"""Distillation structures: networks that each of them trains."""

import pytest

from pkd.training.structures import KDGAN, PHASE_NAMES, SCHEDULES, STUDENT, TEACHER


@pytest.mark.parametrize(
    ("structure", "trained", "networks", "cached_teacher"),
    [
        (TEACHER, ("teacher",), ("teacher",), False),
        (STUDENT, ("student",), ("student",), False),
        (KDGAN[1], ("student",), ("teacher", "student"), True),
        (KDGAN[2], ("student",), ("teacher", "student"), True),
        (KDGAN[3], ("teacher", "student"), ("teacher", "student"), False),
        (KDGAN[4], ("teacher", "student"), ("teacher", "student"), False),
    ],
)
def test_networks_of_a_structure(structure, trained, networks, cached_teacher):
    assert structure.trained == trained
    assert structure.networks == networks
    assert structure.cached_teacher == cached_teacher


def test_every_step_trains_the_student_after_the_teacher():
    for phases in SCHEDULES.values():
        assert list(phases) == [name for name in PHASE_NAMES if name in phases]
        for name, structure in phases.items():
            assert structure.trained[-1] == ("teacher" if name == "teacher" else "student")
            assert "teacher" in phases or not structure.distill
    assert list(SCHEDULES["progressive-23"].values()) == [TEACHER, KDGAN[2], KDGAN[3]]
    assert list(SCHEDULES["progressive-24"].values()) == [TEACHER, KDGAN[2], KDGAN[4]]
    assert SCHEDULES["student-only"] == {"step1": STUDENT}
