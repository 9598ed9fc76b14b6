"""Compile every kernel, as it is launched, for GPUs that are not there.

`python -m pkd_kernels.aot` runs the launchers on tensors without storage, records what they pass
to each kernel, compiles every distinct signature for sm_75 to sm_100 and prints a table of
registers, shared memory and stack. Each is compiled twice: with every pointer at a multiple of 16
bytes, and with none, as views may be; layers only so in the type that networks are trained in. A
stack means spills, more shared memory than there is that a launch would fail, and a sum over a
linear layout that Triton 3.6 would add up other numbers: the exit code is then 1. It needs no GPU,
but must not run under TRITON_INTERPRET.
"""

import argparse
import importlib
import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pkd_kernels.reference import ConvLayer

OPS = ("generator_loss", "discriminator_loss", "novelty_score", "adam_step", "gather")
MODULES = (*OPS, "record_step", "conv_layer", "upstream")
# Bytes of shared memory that a block may have (CUDA C++ Programming Guide, compute capabilities).
ARCHITECTURES = {75: 65536, 80: 166912, 90: 232448, 100: 232448}
PROCESSES = 2
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Pixels, latents and features of an image: those of the networks, and sizes no vector fits.
SIZES = ((1024, 256, 64), (3072, 256, 4096), (35, 9, 17), (300, 9, 17))
SIZES += ((3075, 257, 4099), (256, 256, 256), (1, 1, 1))
# Widths of all networks in the type they train in; one network in the others.
NETWORKS = [(torch.float32, w, 1) for w in ((1, 2, 4), (2, 4, 8), (8, 16, 64), (64, 128, 256))]
NETWORKS += [(dtype, (8, 16, 64), 1) for dtype in DTYPES if dtype != torch.float32]
# Stacks, whose layers are matrix products; in float32 and in TF32.
NETWORKS += [(torch.float32, w, 30) for w in ((8, 16, 64), (64, 128, 256))]
NETWORKS += [(torch.float64, (8, 16, 64), 30)]
_POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}


class Launch(NamedTuple):
    """A kernel with what the compiler knows of its arguments; equal launches compile alike."""

    op: str
    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, object], ...]
    aligned: tuple[int, ...]
    options: tuple[tuple[str, int], ...]


class Usage(NamedTuple):
    """What one compiled launch takes on one architecture; bytes, of stack a thread's."""

    architecture: int
    registers: int
    shared: int
    stack: int
    linear_sums: bool


def kernels_of(module: ModuleType) -> dict[str, Any]:
    """The kernels that a module launches, by name."""
    return {name: value for name, value in vars(module).items() if name.endswith("_kernel")}


def recorded_launches() -> list[Launch]:
    """Every distinct launch of every op, over types, reductions and sizes."""
    found: dict[Launch, None] = {}

    def recorder(op: str, name: str, kernel):
        def record(*args, **keywords):
            for aligned in (True, False) if _may_be_views(op, args, keywords) else (True,):
                found[launch_of(op, name, kernel, args, keywords, aligned)] = None

        fake = mock.MagicMock()
        fake.__getitem__.return_value = record
        return fake

    modules = [importlib.import_module(f"pkd_kernels.{op}") for op in MODULES]
    patches = [
        mock.patch.object(module, name, recorder(op, name, kernel))
        for op, module in zip(MODULES, modules, strict=True)
        for name, kernel in kernels_of(module).items()
    ]
    for patch in patches:
        patch.start()
    try:
        for _ in _call_everything(dict(zip(MODULES, modules, strict=True))):
            pass
    finally:
        for patch in patches:
            patch.stop()
    return list(found)


def _may_be_views(op: str, args: tuple, keywords: dict) -> bool:
    """Whether the launch is compiled for unaligned pointers too: not all that layers can be."""
    if op != "conv_layer":
        return True
    return args[0].dtype == torch.float32 and not keywords.get("MATRIX")


def _call_everything(modules: dict) -> Iterator[None]:
    for dtype, (image, latent, feature) in itertools.product(DTYPES, SIZES):

        def empty(size, dtype=dtype):
            return torch.empty(2, size, dtype=dtype, device="meta", requires_grad=True)

        x, tx, xh = empty(image).detach(), empty(image).detach(), empty(image)
        z1, z2, f = empty(latent), empty(latent), empty(feature)
        for reduction in ("mean", "norm"):
            total, terms = modules["generator_loss"].generator_loss(
                x,
                xh,
                z1,
                z2,
                f.detach(),
                f,
                teacher=(z1.detach(), tx, z2.detach()),
                weights=torch.empty(6, device="meta"),
                reduction=reduction,
            )
            total.sum().backward()
            yield
        judged = modules["discriminator_loss"].discriminator_loss(f, f)
        judged.sum().backward()
        modules["novelty_score"].novelty_score(z1, z2)
        flat, model = empty(4096).detach(), torch.empty(2, device="meta")
        modules["adam_step"].adam_step(
            *(flat[0],) * 4,
            model,
            model,
            model.bool(),
            sizes=(2048,),
            betas=(0.5, 0.999),
            eps=1e-8,
        )
        order = torch.empty(3, 1, 2, dtype=torch.int64, device="meta")
        pixels = x.to(torch.uint8)
        for rows in ([z1.detach(), tx, z2.detach(), pixels], [pixels]):
            modules["gather"].launch(rows, [order[0, 0]] * len(rows), order, order[0, 0, :1], dtype)
        first = order[0, 0, :1]  # these losses are of one model
        for networks in (1, 2):
            modules["record_step"].record_step(
                [(total, judged, terms)] * networks,
                total.new_empty(3, 1),
                first,
                history=total.new_empty(3, 1, networks, 2 + terms.shape[1]),
                counter=first,
                rate=total,
                active=model[:1].bool(),
            )
        yield
    yield from _call_networks(importlib.import_module("pkd_kernels.conv_chain"))


def _call_networks(module: ModuleType) -> Iterator[None]:
    """A generator's twelve layers and a discriminator's four, forward and backward."""
    for dtype, widths, stack in NETWORKS:
        for precision in ("ieee", "tf32") if stack > 1 else ("ieee",):
            switch = mock.Mock(fp32_precision=precision)
            with mock.patch.object(torch.backends.cuda, "matmul", switch):
                yield from _call_network(module, dtype, widths, stack)


def _call_network(
    module: ModuleType, dtype: torch.dtype, widths: tuple[int, int, int], stack: int
) -> Iterator[None]:
    def parameter(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)

    def layer(inputs, outputs, norm, *form):
        first, second = (inputs, outputs) if form[2] else (outputs, inputs)
        affine = [parameter(stack * outputs) for _ in range(2)] if norm else [None, None]
        return ConvLayer(parameter(stack * first, second, 4, 4), *affine, *form)

    def encoder(image, a, b, c, outputs):
        down = (2, 1, False, "leaky_relu")
        pairs = ((image, a), (a, b), (b, c))
        return [layer(i, o, True, *down) for i, o in pairs] + [
            layer(c, outputs, False, 1, 0, False, "none")
        ]

    def decoder(latent, a, b, c, image):
        up = (2, 1, True, "relu")
        hidden = [layer(i, o, True, *up) for i, o in ((c, b), (b, a))]
        root = layer(latent, c, True, 1, 0, True, "relu")
        return [root, *hidden, layer(a, image, False, 2, 1, True, "tanh")]

    image = 3 if widths[0] in (8, 64) else 1
    first, second = (encoder(image, *widths, 256) for _ in range(2))
    layers = first + decoder(256, *widths, image) + second
    for batch in (1, 2) if stack == 1 else (1,):
        x = torch.empty(batch, stack * image, 32, 32, dtype=dtype, device="meta")
        outputs = module.conv_chain(x, layers, taps=(3, 7, 11), stack=stack)
        torch.autograd.backward(outputs, [torch.empty_like(y) for y in outputs])
        fake = x.clone().requires_grad_()
        pair = module.conv_chain_pair(x, fake, encoder(image, *widths, 1), tap=2, stack=stack)
        judged = [y for y in pair if y.requires_grad]
        torch.autograd.backward(judged, [torch.empty_like(y) for y in judged])
        yield


def launch_of(
    op: str, name: str, kernel, args: tuple, keywords: dict, pointers_aligned: bool
) -> Launch:
    """What the just-in-time compiler would make of a call: it specialises on 1 and on 16 | n."""
    signature, aligned = {}, []
    names = {parameter.name for parameter in kernel.params}
    constants = {k: v for k, v in keywords.items() if k in names}
    options = tuple((k, v) for k, v in keywords.items() if k not in names)
    for i, (parameter, value) in enumerate(zip(kernel.params, args, strict=False)):
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = _POINTERS[value.dtype]
            if pointers_aligned:
                aligned.append(i)
        elif value == 1 and not parameter.do_not_specialize:
            constants[parameter.name] = value
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                aligned.append(i)
    signature |= dict.fromkeys(constants, "constexpr")
    return Launch(
        op, name, tuple(signature.items()), tuple(constants.items()), tuple(aligned), options
    )


def compiled(kernel, launch: Launch, architecture: int) -> triton.compiler.CompiledKernel:
    """Compile a launch of `kernel` for one architecture, say 90."""
    source = ASTSource(
        kernel,
        signature=dict(launch.signature),
        constexprs=dict(launch.constants),
        attrs={(i,): [["tt.divisibility", 16]] for i in launch.aligned},
    )
    return triton.compile(
        source,
        target=GPUTarget("cuda", architecture, 32),
        options=dict(launch.options),
    )


def compile_launch(launch: Launch, architecture: int) -> Usage:
    """Compile, and read what the machine code takes."""
    kernel = getattr(importlib.import_module(f"pkd_kernels.{launch.op}"), launch.kernel)
    made = compiled(kernel, launch, architecture)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(made.asm["cubin"])
        report = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    registers, stack = (int(re.search(rf"{key}:(\d+)", report)[1]) for key in ("REG", "STACK"))
    sums = sums_over_linear_layout(made.asm["ttgir"])
    return Usage(architecture, registers, made.metadata.shared, stack, sums)


def sums_over_linear_layout(ttgir: str) -> bool:
    """Whether something is reduced that lies on the threads in no simple order, as after
    `tl.reshape` or `tl.permute`: Triton 3.6 then exchanges numbers with the wrong threads."""
    return re.search(r"tt\.reduce\.return.*\n\s*\}\) : \(.*#linear", ttgir) is not None


def main() -> int:
    """Print the table; 1 if any kernel spills or asks for too much."""
    parser = argparse.ArgumentParser(prog="python -m pkd_kernels.aot", description=__doc__)
    parser.parse_args()
    if triton.knobs.runtime.interpret:
        sys.exit("pkd_kernels.aot compiles: unset TRITON_INTERPRET")
    failed = False
    print(f"{'kernel':20} {'type':5} {'constants':42} align warps   sm  registers  shared  stack")
    launches, architectures = zip(
        *itertools.product(recorded_launches(), ARCHITECTURES), strict=True
    )
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        uses = pool.map(compile_launch, launches, architectures, chunksize=8)
        for launch, use in zip(launches, uses, strict=True):
            trouble = _trouble(use)
            failed |= bool(trouble)
            print(_row(launch, use) + trouble, flush=True)
    return int(failed)


def _trouble(use: Usage) -> str:
    """What keeps the launch from running, or running well, or right."""
    room = ARCHITECTURES[use.architecture]
    troubles = {
        "SPILLS": use.stack > 0,
        f"MORE SHARED MEMORY THAN {room}": use.shared > room,
        "SUMS OVER A LINEAR LAYOUT": use.linear_sums,
    }
    return "".join(f"  {trouble}" for trouble, found in troubles.items() if found)


def _row(launch: Launch, use: Usage) -> str:
    constants = " ".join(
        f"{k}={v:.6g}" if isinstance(v, float) else f"{k}={v}" for k, v in launch.constants
    )
    kernel = launch.op + launch.kernel.removesuffix("_kernel")
    alignment = 16 if 0 in launch.aligned else 1
    return (
        f"{kernel:20} {launch.signature[0][1]:5} {constants:42.42} "
        f"{alignment:5} {dict(launch.options)['num_warps']:5} {use.architecture:5} "
        f"{use.registers:10} {use.shared:7} {use.stack:6}"
    )


if __name__ == "__main__":
    sys.exit(main())
