"""Launches and bytes of the ops, counted in Triton's interpreter on any machine.

`python -m bench.traffic` writes bench/results/traffic.json. It raises if a kernel moves more than
its minimum: each input read once, each output written once. A few numbers a model (weights,
upstream gradients, rates, steps) are not counted: they come from a cache.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ |= {"TRITON_INTERPRET": "1", "PKD_BACKEND": "triton"}  # read at import

import pkd_kernels
import torch
from pkd_kernels import FlatAdam
from torch import Tensor, nn

from bench.counting import measured
from bench.problems import PLAIN, PROBLEMS, generator_problem, network_shapes

RESULTS = Path(__file__).parent / "results"
COUNTED = ((1, 1), (16, 1), (1, 30))  # images, stacked models
PER_MODEL = ("weights_ptr", "upstream_ptr", "pieces_ptr", "lr_ptr", "step_ptr", "active_ptr")
PER_MODEL += ("arrivals_ptr", "loss_ptr", "values_ptr")


def counted(call: Callable) -> tuple[int, int, int]:
    """Launches, bytes that kernels moved and bytes that operations of PyTorch moved."""
    call()
    with measured() as traffic:
        call()
    elements = sum(
        count
        for counter in (traffic.loaded, traffic.stored)
        for argument, count in counter.items()
        if not argument.endswith(PER_MODEL)
    )
    return len(traffic.launches), 4 * elements, traffic.aten_bytes


def row(op: str, what: str, batch: int, stack: int, call, eager, minimum: int) -> dict:
    """One row of the table; fails if the kernels exceed the minimum of "mean"."""
    launches, moved, _ = counted(call)
    eager_launches, _, eager_moved = counted(eager)
    if "norm" not in what and moved != minimum:
        raise AssertionError(f"{op} {what} N={batch} M={stack}: {moved} bytes, not {minimum}")
    return {
        "op": op,
        "what": what,
        "batch": batch,
        "stack": stack,
        "launches": launches,
        "bytes": moved,
        "minimum": minimum,
        "eager_launches": eager_launches,
        "eager_bytes": eager_moved,
    }


def loss_rows(op: str, batch: int, stack: int) -> Iterator[dict]:
    """Forward, and forward and backward: the saved gradients are written, read and scaled."""
    problem = PROBLEMS[op](batch, stack, "cpu")
    ours, eager = getattr(pkd_kernels, op), PLAIN[op]
    leaves = sum(t.numel() for t in problem.leaves)
    constants = {"generator_loss": batch * stack * (2 * 3072 + 2 * 256 + 1024)}.get(op, 0)
    score = batch * stack if op == "novelty_score" else 0
    saved = 0 if op == "novelty_score" else leaves
    forward = 4 * (leaves + constants + score + saved)
    runs = problem.forward(ours), problem.forward(eager)
    yield row(op, "forward", batch, stack, *runs, forward)
    if op == "novelty_score":  # scoring needs no gradient: backward is left to PyTorch
        return
    runs = problem.forward_backward(ours), problem.forward_backward(eager)
    yield row(op, "forward+backward", batch, stack, *runs, forward + 4 * 2 * saved)


def norm_row(batch: int, stack: int) -> dict:
    """The paper's norms read latents and features a second time."""
    problem = generator_problem(batch, stack, "cpu", "norm")
    peer = PLAIN["generator_loss"]
    runs = (problem.forward_backward(op) for op in (pkd_kernels.generator_loss, peer))
    leaves = sum(t.numel() for t in problem.leaves)
    minimum = 4 * (leaves * 4 + batch * stack * (2 * 3072 + 2 * 256 + 1024))
    return row("generator_loss", "forward+backward, norm", batch, stack, *runs, minimum)


def adam_row(stack: int) -> dict:
    """One step over the 8-16-64 student and its discriminator."""

    def params() -> list[Tensor]:
        return [nn.Parameter(torch.randn(shape)) for shape in network_shapes(stack)]

    ours = FlatAdam(params(), stack=stack)
    theirs = torch.optim.Adam(params(), foreach=True)
    for p in theirs.param_groups[0]["params"]:
        p.grad = torch.randn_like(p)
    minimum = 4 * 7 * ours.flat.numel()
    return row("adam_step", "step", 1, stack, ours.step, theirs.step, minimum)


def main() -> None:
    """Count, check, write."""
    rows = [r for op in PROBLEMS for shape in COUNTED for r in loss_rows(op, *shape)]
    rows += [norm_row(1, 1), norm_row(16, 1), adam_row(1)]
    path = RESULTS / "traffic.json"
    path.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    print(f"{len(rows)} rows in {path}")


if __name__ == "__main__":
    main()
