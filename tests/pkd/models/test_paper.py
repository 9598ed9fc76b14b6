"""Table 4, and which runs are compared with the results of the paper."""

import pytest

from pkd.models.paper import paper_class, paper_mean, table4

PAPER = {  # (parameters, FLOPs) ratios: as printed, and exact
    "cifar10": ((6.22, 24.45), (6.08, 24.5)),
    "mnist": ((52.22, 311.11), (51.0, 306.8)),
    "fashion_mnist": ((105.45, 700.0), (102.9, 712.4)),
}


@pytest.mark.parametrize("dataset", PAPER)
def test_compression_ratios_printed_reproduced_and_exact(dataset):
    printed, exact = PAPER[dataset]
    row = table4()[dataset]
    assert row.printed == printed
    assert row.paper_style == pytest.approx(printed, abs=0.01)
    assert row.exact[0] == pytest.approx(exact[0], abs=0.05 if exact[0] > 10 else 0.005)
    assert row.exact[1] == pytest.approx(exact[1], abs=0.05)


def test_table_4_has_the_data_sets_and_widths_of_the_paper():
    widths = {name: row.widths for name, row in table4().items()}
    assert widths == {"cifar10": (8, 16, 64), "mnist": (2, 4, 8), "fashion_mnist": (1, 2, 4)}


def run(**changes):
    """The relevant keys of results.json, by default of a run like the paper's on Fashion-MNIST."""
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
        ({"structure": "student-only"}, [0.9311, 0.9120, 0.9120]),
        ({"dataset": "mnist", "student_widths": "2-4-8"}, [0.9780, 0.9675, 0.9725]),
        ({"student_widths": "8-16-64"}, [0.9311, None, None]),
        ({"teacher_widths": "8-16-32"}, [None, 0.9241, 0.9293]),
        ({"evaluate_on": "development"}, [None] * 3),
        ({"classes": 9}, [None] * 3),
        ({"dataset": "digits"}, [None] * 3),
        ({"dataset": "folder"}, [None] * 3),
    ],
)
def test_means_of_the_paper_for_comparable_runs_only(changes, means):
    assert [paper_mean(run(**changes), phase) for phase in ("teacher", "step1", "step2")] == means


def test_a_phase_that_the_run_does_not_have():
    single = run(structure="2")
    del single["mean_auc"]["step2"]
    assert paper_mean(single, "step2") is None


def test_classes_of_the_paper_for_comparable_teachers_only():
    mnist = run(dataset="mnist", classes=2)
    assert [paper_class(mnist, k, "teacher") for k in (0, 9)] == [0.996, 0.987]
    assert paper_class(mnist, 0, "step1") is None
    assert paper_class(run(), 0, "teacher") is None  # Table 2 has no Fashion-MNIST
    assert paper_class(run(dataset="mnist", teacher_widths="8-16-32"), 0, "teacher") is None
    assert paper_class(run(dataset="folder"), 0, "teacher") is None
