"""Distillation structures: networks that each of them trains."""

import pytest

from pkd.training.structures import KDGAN, SCHEDULES, TEACHER


@pytest.mark.parametrize(
    ("structure", "trained", "cached_teacher"),
    [
        (TEACHER, ("teacher",), False),
        (KDGAN[1], ("student",), True),
        (KDGAN[2], ("student",), True),
        (KDGAN[3], ("teacher", "student"), False),
        (KDGAN[4], ("teacher", "student"), False),
    ],
)
def test_trained_networks_and_cached_teacher(structure, trained, cached_teacher):
    assert structure.trained == trained
    assert structure.cached_teacher == cached_teacher


def test_every_schedule_ends_with_a_trained_student():
    for structures in SCHEDULES.values():
        assert all(structure.trained[-1] == "student" for structure in structures)
    assert SCHEDULES["progressive-23"] == (KDGAN[2], KDGAN[3])
    assert SCHEDULES["progressive-24"] == (KDGAN[2], KDGAN[4])
