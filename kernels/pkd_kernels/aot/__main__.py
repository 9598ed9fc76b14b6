"""Compile every launch for sm_75 to sm_100 and print registers, shared memory and stack.

The exit code is 1 if a launch uses stack (registers spill), needs more shared memory than the
architecture has, or sums over a linear layout, which Triton 3.6 does wrongly. No GPU is needed;
TRITON_INTERPRET must be unset.
"""

import argparse
import sys

import triton

from pkd_kernels.aot.compiler import Usage, all_usages
from pkd_kernels.aot.launches import Launch, recorded_launches

# Architecture -> bytes of shared memory of a block (CUDA C++ Programming Guide, compute
# capabilities).
ARCHITECTURES = {75: 65536, 80: 166912, 90: 232448, 100: 232448}


def main() -> int:
    """Print the table; return 1 if any launch has a problem."""
    parser = argparse.ArgumentParser(prog="python -m pkd_kernels.aot", description=__doc__)
    parser.parse_args()
    if triton.knobs.runtime.interpret:
        sys.exit("pkd_kernels.aot compiles kernels: unset TRITON_INTERPRET")
    failed = False
    print(f"{'kernel':20} {'type':5} {'constants':42} align warps   sm  registers  shared  stack")
    launches = recorded_launches()
    for launch, uses in zip(launches, all_usages(launches, list(ARCHITECTURES)), strict=True):
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


def _row(launch: Launch, usage: Usage) -> str:
    constants = " ".join(
        f"{k}={v:.6g}" if isinstance(v, float) else f"{k}={v}" for k, v in launch.constants
    )
    alignment = 16 if 0 in launch.aligned else 1
    return (
        f"{launch.kernel:20} {launch.signature[0][1]:5} {constants:42.42} "
        f"{alignment:5} {dict(launch.options)['num_warps']:5} {usage.architecture:5} "
        f"{usage.registers:10} {usage.shared:7} {usage.stack:6}"
    )


if __name__ == "__main__":
    sys.exit(main())
