"""Launches and bytes of the ops, counted in Triton's interpreter on any machine.

`python -m bench.traffic` writes bench/results/traffic.json. It raises if an op moves a byte more or
less than its launches should: each input of a launch read once, each of its outputs written once.
Copies that PyTorch makes on the way would count. The minimum beside it is that of the op: inputs
read once, losses and gradients written once, nothing in between. It raises, too, unless a loss of a
training step, at one image and "mean", moves just that. A few numbers a model (weights, upstream
gradients, rates, steps) are not counted: they come from a cache.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

os.environ |= {"TRITON_INTERPRET": "1", "PKD_BACKEND": "triton"}  # read at import

import pkd_kernels
import torch
from pkd_kernels import FlatAdam
from torch import Tensor, nn

from bench.op_inputs import (
    FEATURE,
    IMAGE,
    LATENT,
    PLAIN,
    PROBLEMS,
    generator_problem,
    network_shapes,
)
from bench.profiling import measured

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


def row(
    op: str, what: str, batch: int, stack: int, calls: tuple, planned: int, minimum: int
) -> dict:
    """One row of the table, of our call and eager PyTorch's; raises where ours is not as planned.

    Args:
        planned: elements that the launches should move.
        minimum: elements that the op has to move.
    """
    launches, moved, copied = counted(calls[0])
    eager_launches, _, eager_moved = counted(calls[1])
    moved += copied
    if moved != 4 * planned:
        raise AssertionError(f"{op} {what} N={batch} M={stack}: {moved} bytes, not {4 * planned}")
    return {
        "op": op,
        "what": what,
        "batch": batch,
        "stack": stack,
        "launches": launches,
        "bytes": moved,
        "minimum": 4 * minimum,
        "eager_launches": eager_launches,
        "eager_bytes": eager_moved,
    }


def loss_rows(op: str, batch: int, stack: int) -> Iterator[dict]:
    """Forward, which leaves gradients that validation does not need; forward and backward."""
    problem = PROBLEMS[op](batch, stack, "cpu")
    ours, peer = getattr(pkd_kernels, op), PLAIN[op]
    leaves = sum(t.numel() for t in problem.leaves)
    inputs = leaves + (generator_constants(batch, stack) if op == "generator_loss" else 0)
    calls = problem.forward(ours), problem.forward(peer)
    if op == "novelty_score":  # scoring needs no gradient: backward is left to PyTorch
        needed = inputs + batch * stack
        yield row(op, "forward", batch, stack, calls, needed, needed)
        return
    needed = inputs + leaves
    planned = needed + (averaged(batch, stack) if op == "generator_loss" else 0)
    yield row(op, "forward", batch, stack, calls, planned, inputs)
    calls = problem.forward_backward(ours), problem.forward_backward(peer)
    yield row(op, "forward+backward", batch, stack, calls, planned, needed)
    if (batch, stack) == (1, 1):  # the launch of backward reads, scales and writes each gradient
        scaled = replace(problem, upstream=torch.rand(stack))
        calls = scaled.forward_backward(ours), scaled.forward_backward(peer)
        what = "forward+backward, scaled"
        yield row(op, what, batch, stack, calls, planned + 2 * leaves, needed)


def generator_constants(batch: int, stack: int) -> int:
    """Elements of x, tx, t1, t2 and f_real."""
    return batch * stack * (2 * IMAGE + 2 * LATENT + FEATURE)


def averaged(batch: int, stack: int) -> int:
    """Elements of the launch that averages six terms and their total over the images."""
    return 7 * stack * (batch + 1) if batch > 1 else 0


def norm_row(batch: int, stack: int) -> dict:
    """The paper's norms read latents and features a second time."""
    problem = generator_problem(batch, stack, "cpu", "norm")
    peer = PLAIN["generator_loss"]
    calls = tuple(problem.forward_backward(op) for op in (pkd_kernels.generator_loss, peer))
    leaves = sum(t.numel() for t in problem.leaves)
    inputs = leaves + generator_constants(batch, stack)
    again = batch * stack * (4 * LATENT + 2 * FEATURE)
    planned = inputs + again + leaves + averaged(batch, stack)
    what = "forward+backward, norm"
    return row("generator_loss", what, batch, stack, calls, planned, inputs + leaves)


def adam_row(stack: int) -> dict:
    """One step over the 8-16-64 student and its discriminator."""

    def params() -> list[Tensor]:
        return [nn.Parameter(torch.randn(shape)) for shape in network_shapes(stack)]

    ours = FlatAdam(params(), stack=stack)
    theirs = torch.optim.Adam(params(), foreach=True)
    for p in theirs.param_groups[0]["params"]:
        p.grad = torch.randn_like(p)
    needed = 7 * ours.flat.numel()
    return row("adam_step", "step", 1, stack, (ours.step, theirs.step), needed, needed)


def check_minimum(rows: list[dict]) -> None:
    """AssertionError if a loss under "mean", forward and backward at one image, moves a byte more
    than it has to."""
    for r in rows:
        if r["what"] == "forward+backward" and r["batch"] == 1 and r["bytes"] != r["minimum"]:
            raise AssertionError(f"{r['op']} M={r['stack']}: {r['bytes']} bytes, not the minimum")


def main() -> None:
    """Count, check, write."""
    rows = [r for op in PROBLEMS for shape in COUNTED for r in loss_rows(op, *shape)]
    rows += [norm_row(1, 1), norm_row(16, 1), adam_row(1)]
    check_minimum(rows)
    path = RESULTS / "traffic.json"
    path.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    print(f"{len(rows)} rows in {path}")


if __name__ == "__main__":
    main()
