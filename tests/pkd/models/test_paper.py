"""The paper's means stand beside runs that are like the paper's, and beside no other."""

import pytest

from pkd.models.paper import paper_class, paper_mean


def run(**changes):
    """What matters of results.json of ten classes of Fashion-MNIST as the paper has them."""
    config = {
        "teacher_widths": "64-128-256",
        "student_widths": "1-2-4",
        "structure": "progressive-23",
    }
    return {
        "dataset": changes.pop("dataset", "fashion_mnist"),
        "members": [{"normal_class": k} for k in range(changes.pop("classes", 10))],
        "mean_auc": dict.fromkeys(("teacher", "step1", "step2")),
        "config": config | changes,
    }


@pytest.mark.parametrize(
    ("changes", "means"),
    [
        ({}, [0.9311, 0.9241, 0.9293]),
        ({"structure": "progressive-24"}, [0.9311, 0.9241, 0.9257]),
        ({"structure": "3"}, [0.9311, 0.9290, 0.9290]),
        ({"dataset": "mnist", "student_widths": "2-4-8"}, [0.9780, 0.9675, 0.9725]),
        ({"student_widths": "8-16-64"}, [0.9311, None, None]),
        ({"teacher_widths": "8-16-32"}, [None, 0.9241, 0.9293]),
        ({"classes": 9}, [None] * 3),
        ({"dataset": "digits"}, [None] * 3),
        ({"dataset": "folder"}, [None] * 3),
    ],
)
def test_means_of_the_paper(changes, means):
    assert [paper_mean(run(**changes), phase) for phase in ("teacher", "step1", "step2")] == means


def test_a_phase_that_a_run_has_not():
    single = run(structure="2")
    del single["mean_auc"]["step2"]
    assert paper_mean(single, "step2") is None


def test_classes_of_the_paper():
    mnist = run(dataset="mnist", classes=2)
    assert [paper_class(mnist, k, "teacher") for k in (0, 9)] == [0.996, 0.987]
    assert paper_class(mnist, 0, "step1") is None
    assert paper_class(run(), 0, "teacher") is None  # the paper has no classes of Fashion-MNIST
    assert paper_class(run(dataset="mnist", teacher_widths="8-16-32"), 0, "teacher") is None
    assert paper_class(run(dataset="folder"), 0, "teacher") is None
