"""Runs that are killed or stopped, and resumed, end with the bits of an uninterrupted run.

Each run is a process, forked from a server that has already imported pkd. Each kill is a real
SIGKILL, at a random moment or at a given operation on the files of the run.
"""

import json
import os
import random
import signal
import time

import pytest
from kill_helpers import Pkd, assert_files_are_complete, assert_same_files, context


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Function of settings: an uninterrupted run, its seconds and its number of file operations."""
    runs = {}
    first = context.Process(target=os.getpid)  # starts the server before the time is measured
    first.start()
    first.join()

    def get(*settings):
        if settings not in runs:
            pkd = Pkd(tmp_path_factory.mktemp("uninterrupted"), *settings)
            begin = time.monotonic()
            assert pkd.finish(pkd.start()) == 0, pkd.output()
            seconds = time.monotonic() - begin
            runs[settings] = pkd, seconds, int(pkd.output().rsplit(": ", 1)[1])
        return runs[settings]

    return get


@pytest.mark.parametrize(
    ("settings", "kills"),
    [
        (("--checkpoint-every", "0"), 2),
        slow(("--checkpoint-every", "0"), 5),
        slow(("--checkpoint-every", "0", "--norm", "batch", "--structure", "4"), 3),
        slow(("--checkpoint-every", "0.1"), 3),
        slow(("--checkpoint-every", "0", "--stack", "1"), 5),
    ],
)
def test_a_run_killed_at_random_moments_and_resumed_ends_with_the_same_bits(
    settings, kills, tmp_path, uninterrupted
):
    uninterrupted_run, seconds, _ = uninterrupted(*settings)
    pkd, moments = Pkd(tmp_path, *settings), random.Random(f"{settings}")
    codes = []
    for _ in range(kills):
        codes.append(pkd.kill_after(moments.uniform(0.05, 0.4) * seconds))
        assert_files_are_complete(pkd.run)
    assert set(codes) <= {-signal.SIGKILL, 0}, pkd.output()
    assert -signal.SIGKILL in codes
    assert pkd.finish(pkd.start()) == 0, pkd.output()
    assert_same_files(pkd.run, uninterrupted_run.run)


@pytest.mark.parametrize("seed", [0, slow(1)])
def test_a_run_killed_at_file_operations_and_resumed_ends_with_the_same_bits(
    seed, tmp_path, uninterrupted
):
    settings = ("--checkpoint-every", "0")
    uninterrupted_run, _, operations = uninterrupted(*settings)
    pkd, moments = Pkd(tmp_path, *settings), random.Random(seed)
    codes = []
    for operation in (8 * seed, *(moments.randrange(operations // 2) for _ in range(4))):
        codes.append(pkd.finish(pkd.start(signal.SIGKILL, operation)))
        assert_files_are_complete(pkd.run)
    assert set(codes) <= {-signal.SIGKILL, 0}, pkd.output()
    assert codes.count(-signal.SIGKILL) >= 2
    assert pkd.finish(pkd.start()) == 0, pkd.output()
    assert_same_files(pkd.run, uninterrupted_run.run)


@pytest.mark.parametrize(
    ("signal_number", "settings"),
    [
        (signal.SIGINT, ("--checkpoint-every", "1000")),
        (signal.SIGTERM, ("--checkpoint-every", "0")),
        slow(signal.SIGINT, ("--checkpoint-every", "1000", "--stack", "1")),
    ],
)
def test_a_run_stopped_by_a_signal_keeps_a_checkpoint_and_resumes_to_the_same_bits(
    signal_number, settings, tmp_path, uninterrupted
):
    uninterrupted_run, _, operations = uninterrupted(*settings)
    pkd = Pkd(tmp_path, *settings)
    # In the first half: later the run may already have ended.
    assert pkd.finish(pkd.start(signal_number, operations // 2)) == 128 + signal_number, (
        pkd.output()
    )
    assert f"pkd train --resume {pkd.run}" in pkd.output()
    progress = json.loads((pkd.run / "progress.json").read_text())
    assert (pkd.run / "checkpoints" / progress["tensors"]).exists()
    assert_files_are_complete(pkd.run)
    assert pkd.finish(pkd.start()) == 0, pkd.output()
    assert_same_files(pkd.run, uninterrupted_run.run)


def test_a_signal_in_the_first_phase_saves_the_current_step(tmp_path):
    """Only the signal causes a checkpoint: the next one is due after 1000 s."""
    pkd = Pkd(tmp_path, "--checkpoint-every", "1000", "--teacher-epochs", "100000")
    process = pkd.start()
    try:
        while process.is_alive() and not (pkd.log.exists() and "epoch 2/" in pkd.output()):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGINT)
        os.kill(process.pid, signal.SIGINT)  # a second signal changes nothing
    finally:
        code = pkd.finish(process)
    assert code == 130, pkd.output()
    progress = json.loads((pkd.run / "progress.json").read_text())
    assert progress["phase"] == 0
    assert progress["epoch"] >= 1
    assert len((pkd.run / "metrics.jsonl").read_text().splitlines()) == progress["metrics"]


def test_resuming_a_finished_run_changes_nothing(tmp_path, uninterrupted):
    uninterrupted_run, _, _ = uninterrupted("--checkpoint-every", "0")
    before = {p: p.read_bytes() for p in uninterrupted_run.run.rglob("*") if p.is_file()}
    assert uninterrupted_run.finish(uninterrupted_run.start()) == 0, uninterrupted_run.output()
    assert {p: p.read_bytes() for p in uninterrupted_run.run.rglob("*") if p.is_file()} == before


def test_one_process_trains_in_a_folder_at_a_time(tmp_path):
    pkd = Pkd(tmp_path, "--teacher-epochs", "100000")
    first = pkd.start()
    try:
        while first.is_alive() and not (pkd.log.exists() and "epoch 1/" in pkd.output()):
            time.sleep(0.01)
        assert pkd.finish(pkd.start()) == 2, pkd.output()
        assert f"another process is training in {pkd.run}" in pkd.output()
        assert first.is_alive()
    finally:
        first.kill()
        pkd.finish(first)
