"""Count launches and bytes of the ops in Triton's interpreter, on any machine.

`python -m bench.traffic` writes bench/results/traffic.json. It raises an AssertionError in two
cases. First, each launch must read each of its inputs once and write each of its outputs once;
copies by PyTorch count as well. Second, a loss of a training step, at one image and "mean", must
move the minimum of the op: inputs read once, losses and gradients written once, no intermediate
results.

Small arguments of each model (weights, output gradients, rates, steps) are not counted: they come
from a cache.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ |= {"TRITON_INTERPRET": "1", "PKD_BACKEND": "triton"}  # read at import

import pkd_kernels
import torch
from pkd_kernels import FlatAdam
from torch import Tensor, nn

from bench.interpreter import repair_interpreter
from bench.op_inputs import (
    CASES,
    FEATURE,
    IMAGE,
    LATENT,
    PLAIN,
    generator_case,
    network_shapes,
)
from bench.profiling import measured

RESULTS = Path(__file__).parent / "results"
COUNTED = ((1, 1), (16, 1), (1, 30))  # (batch size, stacked models)
# Arguments with a few numbers for each model.
PER_MODEL = ("weights_ptr", "upstream_ptr", "pieces_ptr", "lr_ptr", "step_ptr", "active_ptr")
PER_MODEL += ("factors_ptr", "corrections_ptr", "loss_ptr", "values_ptr")


def count(call: Callable[[], object]) -> tuple[int, int, int]:
    """Return launches, bytes moved by kernels, and bytes moved by PyTorch operations."""
    call()
    with measured() as traffic:
        call()
    elements = sum(
        number
        for counter in (traffic.loaded, traffic.stored)
        for argument, number in counter.items()
        if not argument.endswith(PER_MODEL)
    )
    return len(traffic.launches), 4 * elements, traffic.aten_bytes


def row(
    op: str,
    what: str,
    batch: int,
    stack: int,
    calls: tuple[Callable[[], object], Callable[[], object]],
    planned: int,
    minimum: int,
) -> dict[str, Any]:
    """Count the calls of an op and of its PyTorch peer; return a row of the table.

    Args:
        op: name of the op.
        what: what the calls compute.
        batch: images.
        stack: models.
        calls: call of the op, and call of its peer.
        planned: elements that the launches of the op should move.
        minimum: elements that the op has to move.

    Raises:
        AssertionError: the op does not move `planned` elements.
    """
    launches, kernel_bytes, copied_bytes = count(calls[0])
    eager_launches, _, eager_bytes = count(calls[1])
    moved = kernel_bytes + copied_bytes
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
        "eager_bytes": eager_bytes,
    }


def loss_rows(op: str, batch: int, stack: int) -> Iterator[dict[str, Any]]:
    """Yield rows of an op: forward alone; forward and backward.

    Forward also computes the gradients, which validation does not need.
    """
    case = CASES[op](batch, stack, "cpu")
    ours, peer = getattr(pkd_kernels, op), PLAIN[op]
    leaves = sum(t.numel() for t in case.leaves)
    inputs = leaves + (generator_constants(batch, stack) if op == "generator_loss" else 0)
    calls = case.forward(ours), case.forward(peer)
    if op == "novelty_score":  # scoring needs no gradient, so its backward pass is PyTorch's
        needed = inputs + batch * stack
        yield row(op, "forward", batch, stack, calls, needed, needed)
        return
    needed = inputs + leaves
    planned = needed + (averaged(batch, stack) if op == "generator_loss" else 0)
    yield row(op, "forward", batch, stack, calls, planned, inputs)
    calls = case.forward_backward(ours), case.forward_backward(peer)
    yield row(op, "forward+backward", batch, stack, calls, planned, needed)
    if (batch, stack) == (1, 1):  # backward reads, scales and writes each gradient
        scaled = replace(case, grad_output=torch.rand(stack))
        calls = scaled.forward_backward(ours), scaled.forward_backward(peer)
        what = "forward+backward, scaled"
        yield row(op, what, batch, stack, calls, planned + 2 * leaves, needed)


def generator_constants(batch: int, stack: int) -> int:
    """Return the elements of x, tx, t1, t2 and f_real."""
    return batch * stack * (2 * IMAGE + 2 * LATENT + FEATURE)


def averaged(batch: int, stack: int) -> int:
    """Return the elements of the launch that averages six terms and their total over images."""
    return 7 * stack * (batch + 1) if batch > 1 else 0


def norm_row(batch: int, stack: int) -> dict[str, Any]:
    """Return the row of the "norm" reduction, which reads latents and features a second time."""
    case = generator_case(batch, stack, "cpu", "norm")
    peer = PLAIN["generator_loss"]
    calls = tuple(case.forward_backward(op) for op in (pkd_kernels.generator_loss, peer))
    leaves = sum(t.numel() for t in case.leaves)
    inputs = leaves + generator_constants(batch, stack)
    again = batch * stack * (4 * LATENT + 2 * FEATURE)
    planned = inputs + again + leaves + averaged(batch, stack)
    what = "forward+backward, norm"
    return row("generator_loss", what, batch, stack, calls, planned, inputs + leaves)


def adam_row(stack: int) -> dict[str, Any]:
    """Return the row of an Adam step of the 8-16-64 student with its discriminator."""

    def params() -> list[Tensor]:
        return [nn.Parameter(torch.randn(shape)) for shape in network_shapes(stack)]

    ours = FlatAdam(params(), stack=stack)
    theirs = torch.optim.Adam(params(), foreach=True)
    for p in theirs.param_groups[0]["params"]:
        p.grad = torch.randn_like(p)
    needed = 7 * sum(ours.lengths)
    return row("adam_step", "step", 1, stack, (ours.update, theirs.step), needed, needed)


def check_minimum(rows: list[dict[str, Any]]) -> None:
    """Check that the losses of a training step, at one image and "mean", move the minimum.

    Raises:
        AssertionError: a loss moves more.
    """
    for r in rows:
        if r["what"] == "forward+backward" and r["batch"] == 1 and r["bytes"] != r["minimum"]:
            raise AssertionError(f"{r['op']} M={r['stack']}: {r['bytes']} bytes, not the minimum")


def main() -> None:
    """Count and check all ops; write the rows."""
    repair_interpreter()
    rows = [r for op in CASES for shape in COUNTED for r in loss_rows(op, *shape)]
    rows += [norm_row(1, 1), norm_row(16, 1), adam_row(1)]
    check_minimum(rows)
    path = RESULTS / "traffic.json"
    path.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    print(f"{len(rows)} rows in {path}")


if __name__ == "__main__":
    main()
