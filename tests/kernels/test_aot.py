"""Ahead-of-time compilation: every kernel compiles and does not spill."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import subprocesses
from filelock import FileLock
from pkd_kernels.aot import layers
from pkd_kernels.aot.compiler import sums_over_linear_layout
from pkd_kernels.aot.launches import kernels

# Unaligned pointers are compiled for sm_90.
ARCHITECTURES_OF = {"*fp32": (75, 80, 90, 100), "*fp64": (75, 90), "*bf16": (90,), "*fp16": (90,)}
# Compiles one launch of every kernel for sm_90, then all others until it is killed.
SAMPLE = """
from pkd_kernels.aot.compiler import all_usages
from pkd_kernels.aot.launches import recorded_launches

if __name__ == "__main__":
    launches = recorded_launches()
    first = list({launch.kernel: launch for launch in reversed(launches)}.values())
    results = all_usages(first + launches, [[90]] * (len(first) + len(launches)))
    for launch, (usage,) in zip(first, results):
        print(launch.kernel, usage.registers, usage.stack, usage.linear_sums, flush=True)
    print("end", flush=True)
    list(results)
"""


def whole_table(test):
    """Mark a test of the table of all launches, which takes minutes to compile."""
    return pytest.mark.slow(pytest.mark.timeout(1200)(test))


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Iterator[tuple[subprocess.Popen, list[list[str]]]]:
    """A running process, and the rows that it has printed."""
    script = tmp_path_factory.mktemp("aot") / "sample.py"
    script.write_text(SAMPLE)
    process = subprocesses.start([str(script)], {})
    yield process, [line.split() for line in iter(process.stdout.readline, "end\n") if line]
    process.kill()
    process.communicate()


def test_one_launch_of_every_kernel_compiles(sample):
    _, rows = sample
    assert sorted(row[0] for row in rows) == sorted(kernels())
    for _, registers, stack, linear_sums in rows:
        assert 0 < int(registers) <= 255
        assert (stack, linear_sums) == ("0", "False")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_with_their_killed_parent(sample):
    process, _ = sample
    workers = descendants(process.pid)
    assert len(workers) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while remaining := [pid for pid in workers if is_running(pid)]:
        assert time.monotonic() < deadline, remaining
        time.sleep(0.05)


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those that they have started."""
    children = [
        int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ]
    return [*children, *itertools.chain.from_iterable(map(descendants, children))]


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[list[str]]:
    """The table of all launches, compiled once for all workers of a test run."""
    run, folder = os.environ.get("PYTEST_XDIST_TESTRUNUID"), tmp_path_factory.getbasetemp()
    table = folder.parent / f"aot-{run}.txt" if run else folder / "aot.txt"
    with FileLock(f"{table}.lock"):
        if not table.exists():
            process = subprocesses.run(["-m", "pkd_kernels.aot"])
            assert process.returncode == 0, process.stdout
            table.write_text(process.stdout)
    _, compiled = table.read_text().split("\n\n")  # the layers of a step come first
    return [line.split() for line in compiled.splitlines()[1:]]


@whole_table
def test_no_kernel_spills(rows):
    assert all(row[-1] == "0" for row in rows)


@whole_table
def test_every_kernel_type_and_architecture_is_compiled(rows):
    compiled = {(row[0], row[1]): set() for row in rows}
    for row in rows:
        compiled[row[0], row[1]].add((row[-6], int(row[-4])))
    ops = ("generator_loss", "discriminator_loss", "novelty_score", "adam_step", "gather")
    ops += ("novelty_parts",)
    unaligned = {("1", 90), ("mixed", 90)}
    for kernel, dtype in itertools.product(ops, ARCHITECTURES_OF):
        aligned = {("16", architecture) for architecture in ARCHITECTURES_OF[dtype]}
        assert compiled[kernel, dtype] == aligned | unaligned
    layers = ("conv_forward", "conv_backward")
    for kernel, dtype in itertools.product(layers, ARCHITECTURES_OF):
        aligned = {("16", architecture) for architecture in ARCHITECTURES_OF[dtype]}
        assert compiled[kernel, dtype] == (aligned | unaligned if dtype == "*fp32" else aligned)
    for kernel in ("scale_gradients", "record_step"):  # in the types of losses
        assert {t for name, t in compiled if name == kernel} == {"*fp32", "*fp64"}
    assert ("gather", "*u8") in compiled


@whole_table
@pytest.mark.parametrize(
    ("kernels", "constant", "values"),
    [
        (("conv_forward", "conv_backward"), "UP", ("False", "True")),
        (("conv_forward", "conv_backward"), "SIDE", ("1", "4", "8", "16")),
        (("record_step",), "NETWORKS", ("1", "2")),
        (("generator_loss",), "NORM", ("False", "True")),
        (("generator_loss",), "BLOCK", ("256", "1024", "2048")),
    ],
)
def test_every_constant_is_compiled(rows, kernels, constant, values):
    words = {word for row in rows if row[0] in kernels for word in row}
    assert {w for w in words if w.startswith(f"{constant}=")} == {f"{constant}={v}" for v in values}


SPECIALISED = """
import torch
from pkd_kernels.aot.launches import kernels, launch_of
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

module, name = kernels()["conv_forward"]
kernel = getattr(module, name)
backend = make_backend(GPUTarget("cuda", 90, 32))
binder = create_function_from_signature(kernel.signature, kernel.params, backend)
buffer = torch.empty(64)
one, other = buffer[4:8], buffer[5:9].double()  # of addresses that 16 divides, or not
odd = buffer[5:9]
args = (((one, odd, None), (odd, other, one)), 1, 16)
keywords = dict(LAYERS=((1, True), (2, False)), PRECISION="ieee", EPS=1e-5, SLOPE=0.2)
bound, specialization, options = binder(*args, **keywords, num_warps=4)
_, signature, constants, attributes = kernel._pack_args(
    backend, options, bound, specialization, None
)
launch = launch_of("conv_forward", kernel, args, keywords, lambda t: t.data_ptr() % 16 == 0)
assert dict(launch.signature) == signature, (launch.signature, signature)
assert dict(launch.constants) == constants, (launch.constants, constants)
aligned = {path for path, values in attributes.items() if values}
assert set(launch.aligned) == aligned, (launch.aligned, aligned)
assert 0 < len(aligned) < len(launch.pointers)
"""


def test_launches_are_specialised_as_the_just_in_time_compiler_does():
    """On each pointer's own alignment, None within tuples, and no size."""
    process = subprocesses.run(["-c", SPECIALISED])
    assert process.returncode == 0, process.stdout


VECTORS = """
from pkd_kernels.aot.compiler import compiled
from pkd_kernels.aot.launches import kernels, recorded_launches

launch = next(one for one in recorded_launches() if one.kernel == "adam_step")
module, name = kernels()["adam_step"]
ptx = compiled(getattr(module, name), launch, 90).asm["ptx"]
assert ptx.count("ld.global.v4.b32") == 8, ptx  # of four buffers, eight elements a thread
assert ptx.count("st.global.v4.b32") == 6, ptx
"""


def test_adam_reads_and_writes_by_128_bits():
    process = subprocesses.run(["-c", VECTORS])
    assert process.returncode == 0, process.stdout


def test_the_table_of_layers_has_every_launch_of_a_step():
    """Of a GAN at batch size 1: 12 launches forward and 12 backward, for any number of models."""
    text = layers.table()
    _, *lines = text.splitlines()
    assert len(lines) == len(layers.MODELS) * (24 + 1)
    one, thirty = (layers.launches((8, 16, 64), stack) for stack in (1, 30))
    assert [row.direction for row in one] == ["forward"] * 12 + ["backward"] * 12
    assert [row.problems for row in one] == [row.problems for row in thirty]
    assert sum(row.programs for row in thirty) > 10 * sum(row.programs for row in one)
    total = next(line for line in lines if line.split()[:3] == ["8-16-64", "1", "all"])
    assert total.split()[-1] == f"{sum(row.cycles for row in one):,}"


def test_a_small_models_layers_have_no_loop_forward():
    """Where few programs run, a program's loop trips would be the time of the launch."""
    assert {row.trips for row in layers.launches((1, 2, 4), 1)[:12]} == {1}
    wide = [row.trips for row in layers.launches((8, 16, 64), 1)[:12]]
    assert sum(trips > 1 for trips in wide) == 1  # 256 terms at once would spill in float64


def test_interpreter_raises():
    process = subprocesses.run(["-m", "pkd_kernels.aot"], TRITON_INTERPRET="1")
    assert process.returncode == 1
    assert "unset TRITON_INTERPRET" in process.stdout


@pytest.mark.parametrize(("layout", "wrong"), [("#linear1", True), ("#blocked", False)])
def test_sums_over_a_linear_layout_are_recognised(layout, wrong):
    ttgir = f"""
    %x = tt.reshape %y : tensor<2x4x4xf32, #blocked> -> tensor<2x16xf32, #linear1>
    %sum = "tt.reduce"(%x) <{{axis = 1 : i32}}> ({{
    ^bb0(%a: f32, %b: f32):
      %c = arith.addf %a, %b : f32 loc(#loc1)
      tt.reduce.return %c : f32 loc(#loc2)
    }}) : (tensor<2x16xf32, {layout}>) -> tensor<2xf32, #ttg.slice<{{dim = 1, parent = {layout}}}>>
    """
    assert sums_over_linear_layout(ttgir) == wrong
