"""PTX executed on a CPU: the instructions, and the kernels that Triton compiles."""

import re

import numpy as np
import pytest
import subprocesses
import torch
from ptx.machine import run
from ptx.program import Program

HEAD = """
.version 8.7
.target sm_90a
.visible .entry kernel(
	.param .u64 .ptr .global .align 1 kernel_param_0,
	.param .u64 .ptr .global .align 1 kernel_param_1,
	.param .u32 kernel_param_2
)
.reqntid 32
{
	.reg .pred 	%p<9>;
	.reg .b16 	%rs<9>;
	.reg .b32 	%r<9>;
	.reg .b64 	%rd<9>;
	ld.param.b64 	%rd1, [kernel_param_0];
	ld.param.b64 	%rd2, [kernel_param_1];
	ld.param.b32 	%r1, [kernel_param_2];
	mov.u32 	%r2, %tid.x;
	mad.wide.u32 	%rd3, %r2, 4, %rd1;
	mad.wide.u32 	%rd4, %r2, 4, %rd2;
"""


def executed(body: str, x: torch.Tensor, n: int = 32, blocks: int = 1) -> torch.Tensor:
    """Output at %rd4 of 32 threads with x at %rd3 and n in %r1."""
    out = torch.full((32,), -1, dtype=x.dtype)
    run(Program(f"{HEAD}{body}\tret;\n}}\n"), (blocks, 1, 1), 32, 64, [x, out, n])
    return out


LOAD, STORE = "ld.global.b32 { %r3 }, [ %rd3 + 0 ];\n", "st.global.b32 [ %rd4 + 0 ], { %r3 };\n"
NUMBERS = torch.arange(32, dtype=torch.int32) - 7
FLOATS = torch.linspace(-3, 3, 32)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("add.s32 %r3, %r3, -5;", lambda x: x - 5),
        ("mul.hi.s32 %r3, %r3, 1073741824;", lambda x: (x.long() * 2**30 >> 32).int()),
        ("div.s32 %r3, %r3, 3;", lambda x: torch.div(x, 3, rounding_mode="trunc").int()),
        ("rem.s32 %r3, %r3, 3;", lambda x: torch.fmod(x, 3)),
        ("shr.s32 %r3, %r3, 40;", lambda x: x >> 31),
        ("shl.b32 %r3, %r3, 32;", torch.zeros_like),
        ("bfe.u32 %r3, %r3, 1, 2;", lambda x: x >> 1 & 3),
        ("bfe.s32 %r3, %r3, 0, 2;", lambda x: (x & 3) - 4 * (x >> 1 & 1)),
        ("bfi.b32 %r3, %r2, %r3, 8, 4;", lambda x: x & ~0xF00 | (torch.arange(32) & 15).int() << 8),
        ("prmt.b32 %r3, %r3, 0, 0x3012;", lambda x: _bytes(x, (2, 1, 0, 3))),
        ("cvt.s8.s32 %rs1, %r3; cvt.s32.s16 %r3, %rs1;", lambda x: x),
        (
            "mov.b32 {%rs1, %rs2}, %r3; mov.b32 %r3, {%rs2, %rs1};",
            lambda x: _bytes(x, (2, 3, 0, 1)),
        ),
        ("shfl.sync.bfly.b32 %r3, %r3, 4, 31, -1;", lambda x: x[torch.arange(32) ^ 4]),
        ("shfl.sync.idx.b32 %r3, %r3, 9, 31, -1;", lambda x: x[9].expand(32)),
        ("setp.lt.s32 %p1, %r3, 0; selp.b32 %r3, 1, %r3, %p1;", lambda x: x.where(x >= 0, 1)),
        ("setp.lt.s32 %p1, %r3, 0; @!%p1 mov.b32 %r3, 2;", lambda x: x.where(x < 0, 2)),
    ],
)
def test_instructions_of_integers(code, expected):
    assert torch.equal(executed(LOAD + code + STORE, NUMBERS), expected(NUMBERS))


def _bytes(x: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(
        x.numpy().view(np.uint8).reshape(-1, 4)[:, order].copy().view(np.int32)
    )[:, 0]


@pytest.mark.parametrize(
    ("code", "expected", "units"),
    [
        ("fma.rn.f32 %r3, %r3, %r3, 0f3F800000;", lambda x: x.double() ** 2 + 1, 0.5),
        (
            "mov.b64 %rd5, {%r3, %r3}; fma.rn.f32x2 %rd5, %rd5, %rd5, %rd5; mov.b64 {_,%r3}, %rd5;",
            lambda x: x.double() ** 2 + x,
            2,
        ),
        ("cvt.rn.bf16.f32 %rs1, %r3; cvt.f32.bf16 %r3, %rs1;", lambda x: x.bfloat16(), 0),
        ("cvt.rn.f16.f32 %rs1, %r3; cvt.f32.f16 %r3, %rs1;", lambda x: x.half(), 0),
        ("cvt.rzi.s32.f32 %r3, %r3; cvt.rn.f32.s32 %r3, %r3;", torch.trunc, 0),
        ("max.f32 %r3, %r3, 0f7FC00000;", lambda x: x, 0),  # of a number and NaN the number
        ("ex2.approx.f32 %r3, %r3;", lambda x: torch.exp2(x.double()), 3),
        ("div.full.f32 %r3, %r3, 0f40400000;", lambda x: x.double() / 3, 3),
    ],
)
def test_instructions_of_floats(code, expected, units):
    result, exact = executed(LOAD + code + STORE, FLOATS), expected(FLOATS)
    tolerance = units * torch.finfo(torch.float32).eps * exact.double().abs()
    assert ((result.double() - exact.double()).abs() <= tolerance).all()


def test_approximations_have_the_largest_allowed_error():
    exact = torch.exp2(FLOATS.double())
    result = executed(LOAD + "ex2.approx.f32 %r3, %r3;" + STORE, FLOATS)
    assert ((result - exact).abs() > 1.5 * 2**-24 * exact).any()


def test_diverged_threads_reconverge():
    """Each thread counts to its number, then reads from its neighbour."""
    body = """
	mov.b32 %r3, 0;
$L__loop:
	setp.ge.u32 %p1, %r3, %r2;
	@%p1 bra $L__end;
	add.s32 %r3, %r3, 1;
	bra.uni $L__loop;
$L__end:
	shfl.sync.bfly.b32 %r3, %r3, 1, 31, -1;
"""
    assert torch.equal(executed(body + STORE, NUMBERS), (torch.arange(32) ^ 1).int())


def test_unwritten_shared_memory_is_poisoned():
    body = "shl.b32 %r4, %r2, 1; st.shared.b16 [%r4], %rs1; bar.sync 0;"
    body += "ld.shared.b16 %rs2, [global_smem+2]; cvt.u32.u16 %r3, %rs2;"
    assert (executed(body + STORE, NUMBERS) == 0xDBDB).all()


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        (
            "ld.global.b32 {%r3}, [%rd3+4];",
            IndexError,
            "ld.global.b32 .line 21.*outside of all tensors",
        ),
        ("ld.shared.b32 %r3, [global_smem+128];", IndexError, "beyond the 72 bytes of shared"),
        ("ld.global.b32 {%r3}, [%rd3+2];", IndexError, "not a multiple of 4"),
        ("tanh.approx.f32 %r3, %r3;", NotImplementedError, "tanh.approx.f32 .*does not implement"),
        ("setp.lt.u32 %p1, %r2, 9; @%p1 bra $a;\nbar.sync 0;\n$a:\n", RuntimeError, "barrier"),
        ("setp.lt.u32 %p1, %r2, 9; @%p1 trap;", RuntimeError, "a thread traps"),
    ],
)
def test_errors_of_a_program_name_the_instruction(body, error, words):
    with pytest.raises(error, match=f"kernel, .*{words}"):
        executed(body + STORE, NUMBERS)


@pytest.mark.parametrize(
    "body",
    [
        STORE,
        "mov.u32 %r3, %ctaid.x; setp.eq.u32 %p1, %r3, 1; @%p1 st.global.b32 [ %rd3 + 0 ], { %r3 };",
        "st.global.b32 [ %rd3 + 0 ], { %r3 };",
    ],
)
def test_blocks_must_not_write_data_of_other_blocks(body):
    executed(LOAD + body, NUMBERS.clone(), blocks=1)
    with pytest.raises(
        RuntimeError, match=r"st\.global.*a block writes data that another reads or"
    ):
        executed(LOAD + body, NUMBERS.clone(), blocks=600)


def test_atomic_additions_of_all_blocks():
    body = "setp.eq.u32 %p1, %r2, 3; @%p1 atom.global.gpu.acq_rel.add.u32 %r3, [ %rd2 + 0 ], %r1;"
    out = executed(body, NUMBERS, n=5, blocks=2000)
    assert out[0] == 2000 * 5 - 1


def assert_pass_as_ptx(folder: str, chosen: str, at_least: int, outcome: str = "passed") -> None:
    """Run chosen tests of a folder on PTX for compute capability 9.0."""
    options = ["-q", "-p", "no:cacheprovider", "-n", "0", "-m", "not gpu", "-k", chosen]
    process = subprocesses.run(
        ["-m", "pytest", *options, folder], PKD_PTX="90", CUDA_VISIBLE_DEVICES=""
    )
    assert process.returncode == 0, process.stdout
    assert int(re.search(rf"(\d+) {outcome}", process.stdout)[1]) >= at_least, process.stdout


def test_one_compiled_op_equals_its_definition():
    assert_pass_as_ptx("tests/kernels/test_novelty_score.py", "equals_definition and float32", 5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "chosen", "at_least", "outcome"),
    [
        ("tests/kernels", "equals_definition", 120, "passed"),
        ("tests/kernels/conv", "statistics_of or equal_their_definition", 40, "passed"),
        # Halves of D's logits are not aligned to 16 bytes, its other tensors are.
        ("tests/kernels/conv/test_gan.py", "one_gan and 1-1", 2, "passed"),
        # After their comparison these tests count launches, which PTX skips.
        ("tests/pkd/training/test_trainer_kernels.py", "training_with_kernels", 2, "skipped"),
    ],
    ids=["ops", "layers", "gan", "training"],
)
def test_compiled_ops_equal_their_definitions(folder, chosen, at_least, outcome):
    assert_pass_as_ptx(folder, chosen, at_least, outcome)
