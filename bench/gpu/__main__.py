"""`python -m bench.gpu --out DIR`: measure all that needs a GPU, in less than ten minutes.

The stages of `bench.gpu.plan` run in order, each in its own process with its own time limit. Every
fact is appended to DIR/facts.jsonl at once. A second call with the same folder continues: it leaves
out what is done. Copy the file to bench/results/gpu-NAME.jsonl and run `python -m bench.tables`.

The exit code is 1 if a stage is not done, a test failed, or a rung of the ladder failed. A peer
that fails is shown as failed and does not change the exit code.
"""

import argparse
import sys
from pathlib import Path

from bench.commit import commit
from bench.gpu import wheels
from bench.gpu.facts import FILE_NAME
from bench.gpu.machine import nvidia_smi
from bench.gpu.plan import STAGES, TOTAL_S
from bench.gpu.runner import begin_call, run_stages
from bench.gpu.summary import failures, text

REHEARSAL_FACTOR = 3  # of the time limits: an interpreted step takes long on a busy machine


def main() -> int:
    """Run the stages, or collect wheels; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--out", type=Path, metavar="DIR", help="folder of the results")
    action.add_argument(
        "--wheels", type=Path, metavar="DIR", help="download the packages for another machine"
    )
    parser.add_argument(
        "--python", default="3.12", metavar="VERSION", help="of that machine; default 3.12"
    )
    parser.add_argument(
        "--rehearse", action="store_true", help="run every stage on a CPU, with tiny sizes"
    )
    args = parser.parse_args()
    if args.wheels:
        files = wheels.collect(args.wheels, args.python)
        size = sum(file.stat().st_size for file in files) / 2**20
        print(f"{len(files)} wheels, {size:.0f} MiB, in {args.wheels}")
        return 0
    return measure(args.out.absolute(), args.rehearse)


def measure(folder: Path, rehearse: bool) -> int:
    """Run the stages; return the exit code."""
    gpu = nvidia_smi("name").get("name")
    if gpu is None and not rehearse:
        sys.exit("bench.gpu: this machine has no NVIDIA GPU; --rehearse needs none")
    folder.mkdir(parents=True, exist_ok=True)
    identity = {"commit": commit(), "gpu": gpu, "rehearsal": rehearse}
    try:
        facts = begin_call(folder / FILE_NAME, identity)
    except ValueError as error:
        sys.exit(f"bench.gpu: {error}")
    factor = REHEARSAL_FACTOR if rehearse else 1
    stages = [stage._replace(seconds=factor * stage.seconds) for stage in STAGES]
    ends = run_stages(stages, facts, factor * TOTAL_S, rehearse)
    print(text(facts.read()))
    print("\n".join(f"{name}: {end}" for name, end in ends.items()))
    print(f"All facts are in {facts.path}")
    return int(any(end != "done" for end in ends.values()) or bool(failures(facts.read())))


if __name__ == "__main__":
    sys.exit(main())
