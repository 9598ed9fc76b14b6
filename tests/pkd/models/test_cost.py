"""Parameters and multiply-adds, compared with the modules and with the paper."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from pkd.models.architecture import Architecture
from pkd.models.cost import cost
from pkd.models.ganomaly import Generator
from pkd.models.paper import PAPER_STUDENTS, TEACHER_WIDTHS

ARCHITECTURES = [
    Architecture(1, TEACHER_WIDTHS),
    Architecture(3, TEACHER_WIDTHS),
    *(Architecture(row.channels, row.widths) for row in PAPER_STUDENTS.values()),
    Architecture(1, (8, 16, 64), latent=32, norm="batch"),
    Architecture(3, (3, 5, 7), latent=1, norm_first=False),
    *(Architecture(1, (3, 5, 7), latent=9, image_size=size) for size in (16, 64, 128)),
]


def test_the_teacher_has_512_million_parameters_and_56_million_multiply_adds():
    teacher = cost(Architecture(3, TEACHER_WIDTHS))
    assert round(teacher.parameters / 1e6, 2) == 5.12
    assert round(teacher.flops / 1e6, 1) == 56.0


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_parameters_equal_those_of_the_module(architecture):
    numel = sum(p.numel() for p in Generator(architecture).parameters())
    assert cost(architecture).parameters == numel
    assert sum(p.numel() for p in Generator(architecture, stack=3).parameters()) == 3 * numel


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_multiply_adds_equal_those_that_torch_counts_in_the_module(architecture):
    """FlopCounterMode counts two operations per multiply-add, and no normalisation."""
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
