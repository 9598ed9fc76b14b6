"""Sweeps that are killed or stopped, and resumed, end with the results of an undisturbed one.

Each sweep is a process, forked from a server that has already imported pkd. Each kill is a real
SIGKILL.
"""

import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from sweep_helpers import STRUCTURES, TINY_SWEEP, read_json, rows_without_times, weights

from pkd.cli import main as cli
from pkd.runs import pipeline
from pkd.sweep import measure, progress
from pkd.training import trainer

TIMEOUT = 120
TEACHER, STUDENT = "teacher_digits_part1", "digits_2_1-2-4_part1"
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["pkd.cli.main", "torch._dynamo"])  # torch.optim imports it late


def run_pkd(argv, log):
    """Run `pkd` in this process, with a checkpoint after every step."""
    sys.stdout = sys.stderr = Path(log).open("a")  # noqa: SIM115 (the process ends with it)
    torch.set_num_threads(1)
    trainer.REPORT_SECONDS = measure.SECONDS = progress.SECONDS = 0.0
    pipeline.training_curves_png = lambda *_: b""
    code = cli.main(argv)
    sys.stdout.flush()
    os._exit(code)  # skips the clean-up of the interpreter


class Sweep:
    """Runs `pkd sweep` in processes, one after the other, all on the folder `sweep`."""

    def __init__(self, folder, *settings):
        self.folder, self.log = folder / "sweep", folder / "log"
        flags = (*TINY_SWEEP, *settings, "--checkpoint-every", "0", "--out", str(self.folder))
        self.new = ["sweep", *flags]

    def run(self, stop=lambda: False, number=signal.SIGKILL):
        """Run until the end, or until a signal once `stop()` holds; return the exit code."""
        resumable = (self.folder / "plan.json").exists()
        argv = ["sweep", "--resume", str(self.folder)] if resumable else self.new
        process = context.Process(target=run_pkd, args=(argv, self.log), daemon=True)
        process.start()
        deadline = time.monotonic() + TIMEOUT
        try:
            while process.exitcode is None and not stop():
                assert time.monotonic() < deadline, f"still runs after {TIMEOUT} s"
                process.join(0.01)
            if process.exitcode is None:
                os.kill(process.pid, number)
                process.join(TIMEOUT)
            return process.exitcode
        finally:
            process.kill()
            process.join()


@pytest.mark.parametrize(
    "killed", [[STUDENT], pytest.param([TEACHER, STUDENT], marks=pytest.mark.slow)]
)
def test_a_sweep_killed_within_its_shards_ends_with_the_same_results(killed, tmp_path, small_sweep):
    sweep = Sweep(tmp_path, "--structure", "2")
    for name in killed:
        checkpoints = sweep.folder / "shards" / name / "checkpoints"
        code = sweep.run(lambda: any(checkpoints.glob("progress-*.safetensors")))  # noqa: B023
        assert code == -signal.SIGKILL, sweep.log.read_text()
    assert sweep.run() == 0, sweep.log.read_text()
    for name in (TEACHER, STUDENT):
        assert weights(sweep.folder / "shards" / name) == weights(small_sweep / "shards" / name)
    rows = [row for row in rows_without_times(small_sweep) if row["structure"] == "2"]
    assert rows_without_times(sweep.folder) == rows


@pytest.mark.slow
@pytest.mark.parametrize(("number", "stops"), [(signal.SIGKILL, 12), (signal.SIGTERM, 6)])
def test_a_sweep_stopped_at_random_moments_ends_with_the_same_results(
    number, stops, tmp_path, small_sweep
):
    """The moments are spread over the time of an undisturbed sweep."""
    undisturbed, start = Sweep(tmp_path / "undisturbed", *STRUCTURES), time.monotonic()
    undisturbed.log.parent.mkdir()
    assert undisturbed.run() == 0, undisturbed.log.read_text()
    seconds = time.monotonic() - start
    sweep, moments = Sweep(tmp_path, *STRUCTURES), random.Random(stops)

    def stopped_after(duration):
        end = time.monotonic() + duration
        return sweep.run(lambda: time.monotonic() >= end, number)

    codes = {stopped_after(moments.uniform(0.1, 0.6) * seconds) for _ in range(stops)}
    # SIGTERM writes a checkpoint.
    assert codes <= {-signal.SIGKILL, 143, 0}, sweep.log.read_text()
    assert codes != {0}
    assert sweep.run() == 0, sweep.log.read_text()
    assert weights(sweep.folder / "shards") == weights(small_sweep / "shards")
    assert rows_without_times(sweep.folder) == rows_without_times(small_sweep)
    curves = [read_json(f / "sweep.json")["curves"] for f in (sweep.folder, small_sweep)]
    assert curves[0] == curves[1]
