"""Compile every launch ahead of time and print registers, shared memory and stack.

First comes a table of the launches of layers in a training step, see `layers`.

Launches in float32, the type of training, are compiled for sm_75, 80, 90 and 100, those in float64
for sm_75 and 90, those in 16 bits and those with unaligned pointers for sm_90.

The exit code is 1 if a launch uses stack (registers spill), needs more shared memory than the
architecture has, or sums over a linear layout, which Triton 3.6 does wrongly. No GPU is needed;
TRITON_INTERPRET must be unset.
"""

import argparse
import sys
from typing import Any

import triton

from pkd_kernels.aot import layers
from pkd_kernels.aot.compiler import Usage, all_usages
from pkd_kernels.aot.launches import Launch, recorded_launches

# Architecture -> bytes of shared memory of a block (CUDA C++ Programming Guide, compute
# capabilities).
ARCHITECTURES = {75: 65536, 80: 166912, 90: 232448, 100: 232448}


def architectures_of(launch: Launch) -> tuple[int, ...]:
    """Architectures to compile a launch for: the table of all combinations would take too long."""
    dtype = launch.pointers[0]
    if alignment(launch) != "16" or dtype in ("*fp16", "*bf16"):
        return (90,)  # alignment sets the width of loads alike on all; pkd uses no 16-bit types
    return (75, 90) if dtype == "*fp64" else tuple(ARCHITECTURES)  # float64: Detector's scores


def alignment(launch: Launch) -> str:
    """Return "16" where it divides all addresses of tensors, "1" where none, else "mixed"."""
    kinds = dict(launch.signature)
    names = list(kinds)

    def kind_at(path: tuple[int, ...]) -> str:
        kind: Any = kinds[names[path[0]]]
        for i in path[1:]:
            kind = kind[i]
        return kind

    aligned = sum(kind_at(path).startswith("*") for path in launch.aligned)
    return {0: "1", len(launch.pointers): "16"}.get(aligned, "mixed")


def main() -> int:
    """Print the table; return 1 if any launch has a problem."""
    parser = argparse.ArgumentParser(prog="python -m pkd_kernels.aot", description=__doc__)
    parser.parse_args()
    if triton.knobs.runtime.interpret:
        sys.exit("pkd_kernels.aot compiles kernels: unset TRITON_INTERPRET")
    print(layers.table(), end="\n\n", flush=True)
    failed = False
    print(f"{'kernel':20} {'type':5} {'constants':42} align warps   sm  registers  shared  stack")
    launches = recorded_launches()
    architectures = [architectures_of(launch) for launch in launches]
    for launch, uses in zip(launches, all_usages(launches, architectures), strict=True):
        for usage in uses:
            text = problems(usage)
            failed |= bool(text)
            print(_row(launch, usage) + text, flush=True)
    return int(failed)


def problems(usage: Usage) -> str:
    """Problems that keep the launch from running, running fast or being correct; "" for none."""
    limit = ARCHITECTURES[usage.architecture]
    checks = {
        "SPILLS": usage.stack > 0,
        f"MORE SHARED MEMORY THAN {limit}": usage.shared > limit,
        "SUMS OVER A LINEAR LAYOUT": usage.linear_sums,
    }
    return "".join(f"  {problem}" for problem, present in checks.items() if present)


# Constants of launches of several problems -> position of UP, before SIDE, in those of a problem.
GEOMETRY = {"LAYERS": 1, "MAPS": 2, "WEIGHTS": 2}


def _constant(name: str, value: Any) -> str:
    if isinstance(value, tuple):  # the number of problems, and the geometry of the first one
        at = GEOMETRY.get(name)
        return f"{name}={len(value)}" + (
            f" UP={value[0][at]} SIDE={value[0][at + 1]}" if at is not None else ""
        )
    return f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}"


def _row(launch: Launch, usage: Usage) -> str:
    names = [name for name, _ in launch.signature]
    constants = " ".join(
        _constant(names[path[0]], v) for path, v in launch.constants if v is not None and v != ()
    )
    return (
        f"{launch.kernel:20} {launch.pointers[0]:5} {constants:42.42} "
        f"{alignment(launch):>5} {dict(launch.options)['num_warps']:5} {usage.architecture:5} "
        f"{usage.registers:10} {usage.shared:7} {usage.stack:6}"
    )


if __name__ == "__main__":
    sys.exit(main())
