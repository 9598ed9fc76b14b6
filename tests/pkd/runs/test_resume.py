"""Runs that are killed or stopped, and resumed, end with the bits of a run left alone.

Every run here is a process of its own, forked from a server that has imported pkd already, and
every kill is a real SIGKILL: at random moments, or at a chosen operation on the run's files.
"""

import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pkd.cli import main as cli
from pkd.training import trainer

SETTINGS = (
    *("--normal-class", "0,1", "--seeds", "1", "--device", "cpu"),
    *("--teacher-widths", "2-4-8", "--student-widths", "1-2-4", "--latent", "8"),
    *("--teacher-epochs", "2", "--step1-epochs", "1", "--step2-epochs", "1"),
    *("--max-train-images", "10", "--batch-size", "2"),
)
TIMEOUT = 120

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["pkd.cli.main", "torch._dynamo"])  # torch.optim imports it late


def write_in_halves(path, content):
    """Path.write_bytes with a moment in its middle to be killed at."""
    with path.open("wb") as file:
        file.write(content[: len(content) // 2])
        file.flush()
        sys.audit("half", str(path))
        file.write(content[len(content) // 2 :])


def pkd_process(argv, log, folder, number, at):
    """Body of a process: run `pkd`; send itself signal `number` at file operation `at`."""
    sys.stdout = sys.stderr = Path(log).open("a")  # noqa: SIM115 (the process ends with it)
    torch.set_num_threads(1)
    trainer.REPORT_SECONDS = 0.0  # a look at the clock, thus a checkpoint, after every step
    Path.write_bytes = write_in_halves
    operations = itertools.count()

    def watch(event, arguments):
        on_files = event in ("open", "half", "os.mkdir", "os.rename", "os.remove")
        if on_files and str(folder) in str(arguments[0]) and next(operations) == at:
            os.kill(os.getpid(), number)

    sys.addaudithook(watch)
    code = cli.main(argv)
    print(f"file operations: {next(operations)}", flush=True)
    os._exit(code)  # at once: what comes after main is Python's business


class Pkd:
    """Runs `pkd train` in processes of its own, all on the folder `run`."""

    def __init__(self, folder, *settings):
        self.run, self.log = folder / "run", folder / "log"
        self.settings = ("train", *SETTINGS, *settings, "--out", str(self.run))

    def start(self, number=signal.SIGKILL, at=-1):
        resumable = (self.run / "config.yaml").exists()
        argv = ["train", "--resume", str(self.run)] if resumable else list(self.settings)
        process = context.Process(
            target=pkd_process, args=(argv, self.log, self.run, number, at), daemon=True
        )
        process.start()
        return process

    def finish(self, process):
        """Exit code of `process`."""
        try:
            process.join(TIMEOUT)
            assert process.exitcode is not None, f"still runs after {TIMEOUT} s"
            return process.exitcode
        finally:
            process.kill()
            process.join()

    def kill_after(self, seconds):
        """Exit code of a process that is killed after `seconds` if it lives that long."""
        process = self.start()
        try:
            process.join(seconds)
        finally:
            process.kill()
        return self.finish(process)

    def said(self):
        return self.log.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(settings) -> Pkd of a run that nothing disturbed, its seconds, and its file operations."""
    runs = {}
    server_starts = context.Process(target=os.getpid)  # outside of the time measured below
    server_starts.start()
    server_starts.join()

    def get(*settings):
        if settings not in runs:
            pkd = Pkd(tmp_path_factory.mktemp("undisturbed"), *settings)
            begin = time.monotonic()
            assert pkd.finish(pkd.start()) == 0, pkd.said()
            seconds = time.monotonic() - begin
            runs[settings] = pkd, seconds, int(pkd.said().rsplit(": ", 1)[1])
        return runs[settings]

    return get


def without_times(content):
    values = json.loads(content)
    return json.dumps({key: value for key, value in values.items() if key != "seconds"})


def final_files(folder):
    """Name -> content of every file of a run, times left out."""
    return {
        str(path.relative_to(folder)): without_times(path.read_bytes())
        if path.name in ("results.json", "progress.json")
        else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_same_files(one, other):
    one, other = final_files(one), final_files(other)
    assert list(one) == list(other)
    assert [name for name in one if one[name] != other[name]] == []


def assert_no_half_file(folder):
    """Whatever has its final name is whole."""
    for path in folder.rglob("[!.]*"):
        if path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            assert all(json.loads(line) for line in path.read_text().splitlines())
        elif path.suffix == ".yaml":
            assert "checkpoint_every" in yaml.safe_load(path.read_text())
        elif path.suffix == ".png":
            assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
        else:
            assert path.name == "checkpoints"


@pytest.mark.parametrize(
    ("settings", "kills"),
    [
        (("--checkpoint-every", "0"), 5),
        (("--checkpoint-every", "0", "--norm", "batch", "--structure", "4"), 3),
        (("--checkpoint-every", "0.1"), 3),
        (("--checkpoint-every", "0", "--stack", "1"), 5),
    ],
)
def test_killed_at_random_moments_and_resumed_ends_with_the_same_bits(
    settings, kills, tmp_path, undisturbed
):
    whole, seconds, _ = undisturbed(*settings)
    pkd, moments = Pkd(tmp_path, *settings), random.Random(f"{settings}")
    codes = []
    for _ in range(kills):
        codes.append(pkd.kill_after(moments.uniform(0.05, 0.4) * seconds))
        assert_no_half_file(pkd.run)
    assert set(codes) <= {-signal.SIGKILL, 0}, pkd.said()
    assert -signal.SIGKILL in codes
    assert pkd.finish(pkd.start()) == 0, pkd.said()
    assert_same_files(pkd.run, whole.run)


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_operations_on_its_files_and_resumed_ends_with_the_same_bits(
    seed, tmp_path, undisturbed
):
    settings = ("--checkpoint-every", "0")
    whole, _, operations = undisturbed(*settings)
    pkd, moments = Pkd(tmp_path, *settings), random.Random(seed)
    codes = []
    for at in (8 * seed, *(moments.randrange(operations // 2) for _ in range(4))):
        codes.append(pkd.finish(pkd.start(signal.SIGKILL, at)))
        assert_no_half_file(pkd.run)
    assert set(codes) <= {-signal.SIGKILL, 0}, pkd.said()
    assert codes.count(-signal.SIGKILL) >= 2
    assert pkd.finish(pkd.start()) == 0, pkd.said()
    assert_same_files(pkd.run, whole.run)


@pytest.mark.parametrize(
    ("number", "settings"),
    [
        (signal.SIGINT, ("--checkpoint-every", "1000")),
        (signal.SIGTERM, ("--checkpoint-every", "0")),
        (signal.SIGINT, ("--checkpoint-every", "1000", "--stack", "1")),
    ],
)
def test_stopped_by_a_signal_keeps_a_checkpoint_and_resumes_to_the_same_bits(
    number, settings, tmp_path, undisturbed
):
    whole, _, operations = undisturbed(*settings)
    pkd = Pkd(tmp_path, *settings)
    # the first half: later there may be nothing left to stop
    assert pkd.finish(pkd.start(number, operations // 2)) == 130, pkd.said()
    assert f"pkd train --resume {pkd.run}" in pkd.said()
    progress = json.loads((pkd.run / "progress.json").read_text())
    assert (pkd.run / "checkpoints" / progress["tensors"]).exists()
    assert_no_half_file(pkd.run)
    assert pkd.finish(pkd.start()) == 0, pkd.said()
    assert_same_files(pkd.run, whole.run)


def test_a_signal_in_the_first_phase_saves_the_step_reached(tmp_path):
    """No checkpoint is due within the phase: the one there is was made for the signal."""
    pkd = Pkd(tmp_path, "--checkpoint-every", "1000", "--teacher-epochs", "100000")
    process = pkd.start()
    try:
        while process.is_alive() and not (pkd.log.exists() and "epoch 2/" in pkd.said()):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGINT)
        os.kill(process.pid, signal.SIGINT)  # an impatient user changes nothing
    finally:
        code = pkd.finish(process)
    assert code == 130, pkd.said()
    progress = json.loads((pkd.run / "progress.json").read_text())
    assert progress["phase"] == 0
    assert progress["epoch"] >= 1
    assert len((pkd.run / "metrics.jsonl").read_text().splitlines()) == progress["metrics"]


def test_resuming_a_finished_run_changes_nothing(tmp_path, undisturbed):
    whole, _, _ = undisturbed("--checkpoint-every", "0")
    before = {p: p.read_bytes() for p in whole.run.rglob("*") if p.is_file()}
    assert whole.finish(whole.start()) == 0, whole.said()
    assert {p: p.read_bytes() for p in whole.run.rglob("*") if p.is_file()} == before


def test_one_process_trains_in_a_folder_at_a_time(tmp_path):
    pkd = Pkd(tmp_path, "--teacher-epochs", "100000")
    first = pkd.start()
    try:
        while first.is_alive() and not (pkd.log.exists() and "epoch 1/" in pkd.said()):
            time.sleep(0.01)
        assert pkd.finish(pkd.start()) == 2, pkd.said()
        assert f"another process is training in {pkd.run}" in pkd.said()
        assert first.is_alive()
    finally:
        first.kill()
        pkd.finish(first)
