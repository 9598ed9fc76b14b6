"""Time every op against eager PyTorch and torch.compile, one call at a time.

`pytest bench -n 0` runs on any machine. Without a GPU, contenders that need one are skipped, and
the times belong in no table. Each contender is compared with the reference before it is timed.

A round is `CALLS` calls and one synchronisation; "graph" replays a CUDA graph of one call. The
contenders of the targets come first, slow compilations last. Each row is written as soon as it is
measured; launches are counted at the end, because the profiler slows its process.
"""

import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pkd_kernels
import pytest
import torch
from pkd_kernels import FlatAdam, dispatch, reference
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from bench.op_inputs import CASES, PLAIN, SHAPES, network_shapes
from bench.profiling import gpu_events, measured
from pkd.training.cuda_graph import capture_call

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
CALLS, ROUNDS = (100, 20) if CUDA else (2, 2)
# bench.gpu sets both: the end as a time.time(), and a file for rows as JSON lines.
DEADLINE = float(os.environ.get("PKD_BENCH_DEADLINE", "inf"))
ROWS = os.environ.get("PKD_BENCH_ROWS")
COUNTING_S = 10  # reserved before the deadline to count launches
TIMED: list[tuple[dict, dict, Callable]] = []  # labels, extra_info and call of each timing
# (batch size, stacked models) for max-autotune, which takes minutes at other sizes.
TUNED = ((1, 1), (1, 30))
# All sizes of a contender precede the next contender; slow compilations come last.
CONTENDERS = ("pkd", "pkd graph", "eager", "eager graph", "max-autotune", "compile")
ADAM_CONTENDERS = ("pkd", "pkd graph", "eager", "torch fused", "torch fused graph")
ADAM_STACKS = pytest.mark.parametrize("stack", [1, 30, 128])
needs_gpu = pytest.mark.skipif(not CUDA, reason="needs an NVIDIA GPU")


def contenders(names: tuple[str, ...]) -> pytest.MarkDecorator:
    """Parametrise a benchmark with contenders; skip those that need a GPU if there is none."""
    gpu_only = ("graph", "max-autotune")
    return pytest.mark.parametrize(
        "contender",
        [pytest.param(name, marks=needs_gpu if name.endswith(gpu_only) else ()) for name in names],
    )


def launches(call: Callable[[], object]) -> int | None:
    """Count the kernels of one call: with the profiler on a GPU, else the dispatched operations."""
    call()
    if CUDA:
        return len(gpu_events(call)) or None
    with measured() as traffic:
        call()
    return len(traffic.launches)


def write(row: dict[str, Any]) -> None:
    """Append a row to the file of bench.gpu."""
    with Path(ROWS).open("a") as file:
        file.write(json.dumps(row) + "\n")


def skip_if_late() -> None:
    """Skip a benchmark that starts too late."""
    if time.time() > DEADLINE - COUNTING_S:
        pytest.skip("no time is left for benchmarks")


def measure(
    benchmark: BenchmarkFixture, call: Callable[[], object], group: str, **labels: Any
) -> None:
    """Time a call and write its row."""
    skip_if_late()

    def one_round() -> None:
        for _ in range(CALLS):
            call()
        if CUDA:
            torch.cuda.synchronize()

    benchmark.group = group
    benchmark.extra_info.update(labels, calls=CALLS, device=DEVICE)
    benchmark.pedantic(one_round, rounds=ROUNDS, warmup_rounds=3)
    if ROWS:
        stats = benchmark.stats.stats
        times = {"median_us": stats.median * 1e6 / CALLS, "iqr_us": stats.iqr * 1e6 / CALLS}
        write(benchmark.extra_info | times)
    if CUDA or labels["contender"] != "compile":  # on a CPU its kernels are not dispatched
        TIMED.append((labels, benchmark.extra_info, call))


@functools.cache
def compiled(op: str, mode: str | None) -> Callable:
    """Compile the PyTorch peer of an op."""
    return torch.compile(PLAIN[op], mode=mode, dynamic=False, fullgraph=True)


def assert_equals_reference(results: list[Tensor], expected: list[Tensor]) -> None:
    """Compare tensors within 1e-5 of the largest expected value."""
    for result, expectation in zip(results, expected, strict=True):
        error = (result - expectation).abs().max()
        assert error <= 1e-5 * expectation.abs().max(), error


@needs_gpu
@pytest.mark.parametrize("contender", ["two empty kernels", "two empty kernels graph"])
def test_floor(benchmark: BenchmarkFixture, contender: str) -> None:
    """Two empty kernels: the lower bound of any two launches."""
    import triton

    @triton.jit
    def empty(pointer):
        pass

    tensor = torch.zeros(1, device=DEVICE)

    def call() -> list[Tensor]:
        empty[(1,)](tensor)
        empty[(1,)](tensor)
        return []

    call()
    call = capture_call(call) if contender.endswith("graph") else call
    labels = {"op": "floor", "direction": "two launches", "batch": 1, "stack": 1}
    measure(benchmark, call, "floor", contender=contender, **labels)


def adam_call(contender: str, stack: int) -> tuple[Callable, list[nn.Parameter]]:
    """Return a call of an Adam step and the parameters that it updates."""
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, device=DEVICE)) for shape in network_shapes(stack)]
    grads = [torch.randn_like(p) for p in params]
    if contender.startswith("pkd"):
        optimizer = FlatAdam(params, stack=stack, lr=0.002, betas=(0.5, 0.999))
        optimizer.set_grads(grads)
    else:
        kind = {"fused": True} if "fused" in contender else {"foreach": True}
        capturable = CUDA and contender.endswith(("graph", "compile"))
        optimizer = torch.optim.Adam(
            params, lr=0.002, betas=(0.5, 0.999), capturable=capturable, **kind
        )
        for p, g in zip(params, grads, strict=True):
            p.grad = g

    def step() -> list[Tensor]:
        optimizer.step()
        return params

    if contender == "compile":
        return torch.compile(step), params
    return step, params


def measure_adam(benchmark: BenchmarkFixture, contender: str, stack: int) -> None:
    """Time one step of the 8-16-64 student with its discriminator."""
    skip_if_late()
    step, params = adam_call(contender, stack)
    eager_step, expected = adam_call("eager", stack)
    step()
    eager_step()
    assert_equals_reference([p.detach() for p in params], [p.detach() for p in expected])
    call = capture_call(step) if contender.endswith("graph") else step
    labels = {"op": "adam_step", "direction": "step", "batch": 1, "stack": stack}
    measure(benchmark, call, f"adam_step M={stack}", contender=contender, **labels)


@contenders(ADAM_CONTENDERS)
@ADAM_STACKS
def test_adam(benchmark: BenchmarkFixture, stack: int, contender: str) -> None:
    """Time Adam, except under torch.compile."""
    measure_adam(benchmark, contender, stack)


@pytest.mark.parametrize("direction", ["forward", "forward_backward"])
@pytest.mark.parametrize("op", CASES)
@pytest.mark.parametrize(("batch", "stack"), SHAPES)
@contenders(CONTENDERS)
def test_op(
    benchmark: BenchmarkFixture, batch: int, stack: int, op: str, direction: str, contender: str
) -> None:
    """Time a loss or the novelty score."""
    skip_if_late()
    if contender == "max-autotune" and (batch, stack) not in TUNED:
        pytest.skip("max-autotune takes minutes at this size")
    torch.manual_seed(0)
    case = CASES[op](batch, stack, DEVICE)
    if contender.startswith("pkd"):
        assert dispatch.uses_triton(case.grad_output) == CUDA
        function = getattr(pkd_kernels, op)
    elif contender.startswith("eager"):
        function = PLAIN[op]
    else:
        torch._dynamo.config.recompile_limit = 100
        function = compiled(op, None if contender == "compile" else contender)
    call = getattr(case, direction)(function)
    call = capture_call(call) if contender.endswith("graph") else call
    expected = getattr(case, direction)(getattr(reference, op))()
    assert_equals_reference([t.clone() for t in call()], expected)
    labels = {"op": op, "direction": direction, "batch": batch, "stack": stack}
    group = f"{op} {direction} N={batch} M={stack}"
    measure(benchmark, call, group, contender=contender, **labels)


@ADAM_STACKS
def test_compiled_adam(benchmark: BenchmarkFixture, stack: int) -> None:
    """Time torch's Adam under torch.compile."""
    measure_adam(benchmark, "compile", stack)


def test_launches() -> None:
    """Count the launches of all timed calls, after all timings."""
    for labels, extra_info, call in TIMED:
        if time.time() > DEADLINE:
            pytest.skip("no time is left for benchmarks")
        extra_info["launches"] = launches(call)
        if ROWS:
            write(labels | {"launches": extra_info["launches"]})
