"""The plan of the ladder."""

import torch

from bench.ladder.cells import plan
from bench.ladder.contenders import BASE, COMPILE

CPU = torch.device("cpu")


def test_the_plan_for_a_gpu_contains_every_cell_once_and_starts_with_the_targets():
    cells = plan(torch.device("cuda"))
    titles = [cell.title for cell in cells]
    assert len(set(titles)) == len(titles) == 32 + 6
    one = "KDGAN-2, 8-16-64, M = 1"
    small = ["KDGAN-2, 1-2-4, M = 128", "KDGAN-2, 1-2-4, M = 1"]
    with_targets = [one, "KDGAN-2, 8-16-64, M = 30", *small, "teacher, M = 1"]
    assert titles[:8] == with_targets + [f"{one}, {name}" for name in COMPILE]
    for cell in cells:
        assert cell.names(torch.device("cuda"))[0] == BASE


def test_the_plan_for_a_cpu_contains_only_contenders_that_run_there():
    cells = plan(torch.device("cuda"))
    for cell in plan(CPU):
        assert cell in cells
        assert cell.names(CPU)[0] == BASE
        assert not set(cell.names(CPU)) & {"pkd, one graph", "plain graph", "vmap(grad), graph"}
