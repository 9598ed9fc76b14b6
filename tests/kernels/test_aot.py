"""Every kernel compiles for every architecture, without a GPU and without a spill."""

import itertools
import os
import subprocess
import sys

import pytest
from pkd_kernels.aot import sums_over_linear_layout

ARCHITECTURES = (75, 80, 90, 100)


@pytest.fixture(scope="module")
def rows() -> list[list[str]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    process = subprocess.run(
        [sys.executable, "-m", "pkd_kernels.aot"],
        env=environment | {"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return [line.split() for line in process.stdout.splitlines()[1:]]


def test_no_kernel_spills(rows):
    assert all(row[-1] == "0" for row in rows)


def test_every_kernel_type_and_architecture_is_there(rows):
    kernels = ("generator_loss", "discriminator_loss", "novelty_score", "adam_step", "gather")
    for kernel in kernels:
        for dtype in ("*fp32", "*fp64", "*bf16", "*fp16"):
            mine = [row for row in rows if row[:2] == [kernel, dtype]]
            compiled = {(int(row[-6]), int(row[-4])) for row in mine}
            assert compiled == set(itertools.product((1, 16), ARCHITECTURES))
    for kernel in ("conv_layer_forward", "conv_layer_backward", "conv_layer_output"):
        for dtype in ("*fp32", "*fp64", "*bf16", "*fp16"):
            mine = [row for row in rows if row[:2] == [kernel, dtype]]
            compiled = {(int(row[-6]), int(row[-4])) for row in mine}
            alignments = (1, 16) if dtype == "*fp32" else (16,)
            assert compiled == set(itertools.product(alignments, ARCHITECTURES))
    directions = {word for row in rows for word in row if word.startswith("UP=")}
    assert directions == {"UP=False", "UP=True"}
    sides = {word for row in rows for word in row if word.startswith("SIDE=")}
    assert sides == {"SIDE=1", "SIDE=4", "SIDE=8", "SIDE=16"}
    for kernel in ("upstream", "record_step"):  # in the type that losses have
        assert {row[1] for row in rows if row[0] == kernel} == {"*fp32", "*fp64"}
    recorded = {word for row in rows if row[0] == "record_step" for word in row if "NETW" in word}
    assert recorded == {"NETWORKS=1", "NETWORKS=2"}
    assert "*u8" in {row[1] for row in rows if row[0] == "gather"}
    norms = {word for row in rows if row[0] == "generator_loss" for word in row if "NORM" in word}
    assert norms == {"NORM=False", "NORM=True"}
    blocks = {word for row in rows if row[0] == "generator_loss" for word in row if "BLOCK" in word}
    assert blocks == {"BLOCK=256", "BLOCK=1024", "BLOCK=2048"}


def test_refuses_to_run_under_the_interpreter():
    process = subprocess.run(
        [sys.executable, "-m", "pkd_kernels.aot"],
        env=os.environ | {"PYTHONPATH": ":".join(sys.path), "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert "unset TRITON_INTERPRET" in process.stderr


@pytest.mark.parametrize(("layout", "found"), [("#linear1", True), ("#blocked", False)])
def test_finds_sums_that_triton_3_6_gets_wrong(layout, found):
    ttgir = f"""
    %x = tt.reshape %y : tensor<2x4x4xf32, #blocked> -> tensor<2x16xf32, #linear1>
    %sum = "tt.reduce"(%x) <{{axis = 1 : i32}}> ({{
    ^bb0(%a: f32, %b: f32):
      %c = arith.addf %a, %b : f32 loc(#loc1)
      tt.reduce.return %c : f32 loc(#loc2)
    }}) : (tensor<2x16xf32, {layout}>) -> tensor<2xf32, #ttg.slice<{{dim = 1, parent = {layout}}}>>
    """
    assert sums_over_linear_layout(ttgir) == found
