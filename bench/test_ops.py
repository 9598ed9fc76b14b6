"""Every op against eager PyTorch, torch.compile and its max-autotune, a call at a time.

`pytest bench` runs anywhere; contenders that need a GPU are skipped without one, and then nothing
is measured that belongs in a table. A contender is compared with the definition before it is timed.
A round is `CALLS` calls and one synchronisation; "graph" replays a CUDA graph of one call. What the
targets need comes first, what compiles for long last; each row is written as soon as it is
measured, launches after all of them.
"""

import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pkd_kernels
import pytest
import torch
from pkd_kernels import FlatAdam, dispatch, reference
from torch import Tensor, nn

from bench.op_inputs import PLAIN, PROBLEMS, SHAPES, captured, network_shapes
from bench.profiling import gpu_events, measured

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
CALLS, ROUNDS = (100, 20) if CUDA else (2, 2)
DEADLINE = float(os.environ.get("PKD_BENCH_DEADLINE", "inf"))  # both are set by bench.gpu
ROWS = os.environ.get("PKD_BENCH_ROWS")  # file that gets a line of JSON for each row
COUNTING_S = 10  # of that time, for launches
TIMED: list[tuple[dict, dict, Callable]] = []  # labels and extra_info of a call, and the call
# Images, stacked models: where max-autotune takes minutes, it is left out.
TUNED = ((1, 1), (1, 30))
# In this order, all sizes of one before the next: what compiles for long comes last.
CONTENDERS = ("pkd", "pkd graph", "eager", "eager graph", "max-autotune", "compile")
ADAM_CONTENDERS = ("pkd", "pkd graph", "eager", "torch fused", "torch fused graph")
ADAM_STACKS = pytest.mark.parametrize("stack", [1, 30, 128])
needs_gpu = pytest.mark.skipif(not CUDA, reason="needs an NVIDIA GPU")


def contenders(names: tuple[str, ...]):
    gpu_only = ("graph", "max-autotune")
    return pytest.mark.parametrize(
        "contender",
        [pytest.param(name, marks=needs_gpu if name.endswith(gpu_only) else ()) for name in names],
    )


def launches(call: Callable) -> int | None:
    """Kernels that one call runs: on a GPU what the profiler saw, else what was dispatched."""
    call()
    if CUDA:
        return len(gpu_events(call)) or None
    with measured() as traffic:
        call()
    return len(traffic.launches)


def write(row: dict) -> None:
    with Path(ROWS).open("a") as file:
        file.write(json.dumps(row) + "\n")


def skip_if_late() -> None:
    if time.time() > DEADLINE - COUNTING_S:
        pytest.skip("the time for benchmarks is used up")


def measure(benchmark, call: Callable, group: str, **labels) -> None:
    skip_if_late()

    def a_round():
        for _ in range(CALLS):
            call()
        if CUDA:
            torch.cuda.synchronize()

    benchmark.group = group
    benchmark.extra_info.update(labels, calls=CALLS, device=DEVICE)
    benchmark.pedantic(a_round, rounds=ROUNDS, warmup_rounds=3)
    if ROWS:
        stats = benchmark.stats.stats
        times = {"median_us": stats.median * 1e6 / CALLS, "iqr_us": stats.iqr * 1e6 / CALLS}
        write(benchmark.extra_info | times)
    if CUDA or labels["contender"] != "compile":  # elsewhere its kernels are not dispatched
        TIMED.append((labels, benchmark.extra_info, call))


@functools.cache
def compiled(op: str, mode: str | None) -> Callable:
    return torch.compile(PLAIN[op], mode=mode, dynamic=False, fullgraph=True)


def assert_equal_definition(results: list[Tensor], expected: list[Tensor]) -> None:
    for result, expectation in zip(results, expected, strict=True):
        error = (result - expectation).abs().max()
        assert error <= 1e-5 * expectation.abs().max(), error


@needs_gpu
@pytest.mark.parametrize("contender", ["two empty kernels", "two empty kernels graph"])
def test_floor(benchmark, contender):
    """What launching costs: no two kernels can take less."""
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
    call = captured(call) if contender.endswith("graph") else call
    labels = {"op": "floor", "direction": "two launches", "batch": 1, "stack": 1}
    measure(benchmark, call, "floor", contender=contender, **labels)


def adam_call(contender: str, stack: int) -> tuple[Callable, list[nn.Parameter]]:
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


def measure_adam(benchmark, contender: str, stack: int) -> None:
    """One step over the 8-16-64 student and its discriminator."""
    skip_if_late()
    step, params = adam_call(contender, stack)
    judge, expected = adam_call("eager", stack)
    step()
    judge()
    assert_equal_definition([p.detach() for p in params], [p.detach() for p in expected])
    call = captured(step) if contender.endswith("graph") else step
    labels = {"op": "adam_step", "direction": "step", "batch": 1, "stack": stack}
    measure(benchmark, call, f"adam_step M={stack}", contender=contender, **labels)


@contenders(ADAM_CONTENDERS)
@ADAM_STACKS
def test_adam(benchmark, stack, contender):
    measure_adam(benchmark, contender, stack)


@pytest.mark.parametrize("direction", ["forward", "forward_backward"])
@pytest.mark.parametrize("op", PROBLEMS)
@pytest.mark.parametrize(("batch", "stack"), SHAPES)
@contenders(CONTENDERS)
def test_op(benchmark, batch, stack, op, direction, contender):
    skip_if_late()
    if contender == "max-autotune" and (batch, stack) not in TUNED:
        pytest.skip("max-autotune is measured at a few sizes")
    torch.manual_seed(0)
    problem = PROBLEMS[op](batch, stack, DEVICE)
    if contender.startswith("pkd"):
        assert dispatch.uses_triton(problem.upstream) == CUDA
        function = getattr(pkd_kernels, op)
    elif contender.startswith("eager"):
        function = PLAIN[op]
    else:
        torch._dynamo.config.recompile_limit = 100
        function = compiled(op, None if contender == "compile" else contender)
    call = getattr(problem, direction)(function)
    call = captured(call) if contender.endswith("graph") else call
    expected = getattr(problem, direction)(getattr(reference, op))()
    assert_equal_definition([t.clone() for t in call()], expected)
    labels = {"op": op, "direction": direction, "batch": batch, "stack": stack}
    group = f"{op} {direction} N={batch} M={stack}"
    measure(benchmark, call, group, contender=contender, **labels)


@ADAM_STACKS
def test_compiled_adam(benchmark, stack):
    measure_adam(benchmark, "compile", stack)


def test_launches():
    """Of all that was timed, when nothing is to be timed any more: the profiler slows a process."""
    for labels, extra_info, call in TIMED:
        if time.time() > DEADLINE:
            pytest.skip("the time for benchmarks is used up")
        extra_info["launches"] = launches(call)
        if ROWS:
            write(labels | {"launches": extra_info["launches"]})
