"""Table 4: parameters and multiply-adds, against the modules themselves and the paper's figures."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from pkd.models.cost import cost
from pkd.models.ganomaly import Architecture, Generator
from pkd.models.paper import PAPER_STUDENTS, TEACHER_WIDTHS, table4

ARCHITECTURES = [
    Architecture(1, TEACHER_WIDTHS),
    Architecture(3, TEACHER_WIDTHS),
    *(Architecture(row[0], row[1]) for row in PAPER_STUDENTS.values()),
    Architecture(1, (8, 16, 64), latent=32, norm="batch"),
    Architecture(3, (3, 5, 7), latent=1, norm_first=False),
    *(Architecture(1, (3, 5, 7), latent=9, image_size=size) for size in (16, 64, 128)),
]


def test_the_teacher_has_512_million_parameters_and_56_million_multiply_adds():
    teacher = cost(Architecture(3, TEACHER_WIDTHS))
    assert round(teacher.parameters / 1e6, 2) == 5.12
    assert round(teacher.flops / 1e6, 1) == 56.0


PAPER = {  # parameters, FLOPs: as the paper prints, and both by our own count
    "cifar10": ((6.22, 24.45), (6.08, 24.5)),
    "mnist": ((52.22, 311.11), (51.0, 306.8)),
    "fashion_mnist": ((105.45, 700.0), (102.9, 712.4)),
}


@pytest.mark.parametrize("dataset", PAPER)
def test_compression_is_the_papers_and_the_honest_one(dataset):
    printed, honest = PAPER[dataset]
    row = table4()[dataset]
    assert row.printed == printed
    assert row.paper_style == pytest.approx(printed, abs=0.01)
    assert row.honest[0] == pytest.approx(honest[0], abs=0.05 if honest[0] > 10 else 0.005)
    assert row.honest[1] == pytest.approx(honest[1], abs=0.05)


def test_table_4_names_the_three_data_sets_and_the_papers_widths():
    widths = {name: row.widths for name, row in table4().items()}
    assert widths == {"cifar10": (8, 16, 64), "mnist": (2, 4, 8), "fashion_mnist": (1, 2, 4)}


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_parameters_are_those_of_the_real_generator(architecture):
    numel = sum(p.numel() for p in Generator(architecture).parameters())
    assert cost(architecture).parameters == numel
    assert sum(p.numel() for p in Generator(architecture, stack=3).parameters()) == 3 * numel


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_multiply_adds_are_those_that_torch_counts_in_the_real_generator(architecture):
    """FlopCounterMode counts two operations a multiply-add, and no normalisation."""
    generator = Generator(architecture)
    for p in generator.parameters():
        torch.nn.init.ones_(p)
    images = torch.zeros(1, architecture.channels, *[architecture.image_size] * 2)
    norm = "group_norm" if architecture.norm == "instance" else "batch_norm"
    with (
        FlopCounterMode(display=False) as counter,
        mock.patch.object(F, norm, wraps=getattr(F, norm)) as normalise,
        torch.no_grad(),
    ):
        generator(images)
    normalised = sum(call.args[0].numel() for call in normalise.call_args_list)
    assert cost(architecture).flops == counter.get_total_flops() / 2 + 2 * normalised
