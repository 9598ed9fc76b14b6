"""Splitting models into stacks, and copying them out of a stack and back."""

import pytest
import torch

from pkd.models.architecture import Architecture
from pkd.models.ganomaly import GAN
from pkd.models.stack import extract_stack, split_into_stacks, write_back


@pytest.mark.parametrize(
    ("members", "size", "sizes"),
    [(5, None, [5]), (5, 9, [5]), (5, 5, [5]), (5, 2, [2, 2, 1]), (4, 2, [2, 2]), (2, 1, [1, 1])],
)
def test_models_are_split_into_stacks_of_the_maximum_size(members, size, sizes):
    stacks = [list(range(members))[stack] for stack in split_into_stacks(members, size)]
    assert [len(stack) for stack in stacks] == sizes
    assert [member for stack in stacks for member in stack] == list(range(members))


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_models_are_extracted_and_written_back(norm):
    architecture, seeds = Architecture(3, (2, 4, 8), 8, norm), [3, 1, 4, 1, 5]
    whole, expected = GAN(architecture, seeds), GAN(architecture, seeds[1:3]).state_dict()
    part = extract_stack(whole, slice(1, 3))
    assert [k for k, v in part.state_dict().items() if not torch.equal(v, expected[k])] == []
    before = {k: v.clone() for k, v in whole.state_dict().items()}
    for tensor in part.state_dict().values():
        tensor.fill_(7)
    write_back({"student": part}, {"student": whole, "teacher": None}, slice(1, 3))
    for key, value in whole.state_dict().items():
        after, expected = value.view(5, -1), before[key].view(5, -1)
        assert (after[1:3] == 7).all()
        assert torch.equal(after[[0, 3, 4]], expected[[0, 3, 4]])


def test_a_network_that_is_no_copy_is_left_unchanged():
    gan = GAN(Architecture(1, (2, 4, 8), 8), [0, 1])
    before = {k: v.clone() for k, v in gan.state_dict().items()}
    write_back({"student": gan}, {"student": gan}, slice(0, 2))
    assert all(torch.equal(v, before[k]) for k, v in gan.state_dict().items())
