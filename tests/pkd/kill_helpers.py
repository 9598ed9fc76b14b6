"""Processes of `pkd` that are killed at a moment or at a file operation, and what they leave.

Each process is forked from a server that has already imported pkd.
"""

import itertools
import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

from pkd.cli import main as cli
from pkd.sweep import measure
from pkd.training import trainer

SETTINGS = (
    *("--structure", "progressive-23"),
    *("--normal-class", "0,1", "--seeds", "1", "--device", "cpu"),
    *("--teacher-widths", "2-4-8", "--student-widths", "1-2-4", "--latent", "8"),
    *("--teacher-epochs", "2", "--step1-epochs", "1", "--step2-epochs", "1"),
    *("--max-train-images", "10", "--batch-size", "2"),
)
TIMEOUT = 120

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["pkd.cli.main", "torch._dynamo"])  # torch.optim imports it late


def write_in_halves(path, content):
    """Write like Path.write_bytes, with an audit event in the middle, at which a kill may occur."""
    with path.open("wb") as file:
        file.write(content[: len(content) // 2])
        file.flush()
        sys.audit("partial write", str(path))
        file.write(content[len(content) // 2 :])


def run_pkd(argv, log, folder, signal_number, signal_at):
    """Run `pkd` in this process, which sends itself a signal at file operation `signal_at`."""
    sys.stdout = sys.stderr = Path(log).open("a")  # noqa: SIM115 (the process ends with it)
    torch.set_num_threads(1)
    trainer.REPORT_SECONDS = measure.SECONDS = 0.0  # a checkpoint may follow every step
    Path.write_bytes = write_in_halves
    operations = itertools.count()

    def count(event, arguments):
        on_files = event in ("open", "partial write", "os.mkdir", "os.rename", "os.remove")
        if on_files and str(folder) in str(arguments[0]) and next(operations) == signal_at:
            print(f"signal at: {event}", flush=True)
            os.kill(os.getpid(), signal_number)

    sys.addaudithook(count)
    code = cli.main(argv)
    print(f"file operations: {next(operations)}", flush=True)
    os._exit(code)  # skips the clean-up of the interpreter


# Command -> the file of its folder with which it can be resumed.
RESUMABLE = {"train": "config.yaml", "sweep": "plan.json"}


class Pkd:
    """Runs a command in processes, one after the other, all on the folder `run`."""

    def __init__(self, folder, *settings, command="train"):
        self.run, self.log, self.command = folder / "run", folder / "log", command
        self.settings = (command, *SETTINGS, *settings, "--out", str(self.run))

    def start(self, signal_number=signal.SIGKILL, signal_at=-1):
        resumable = (self.run / RESUMABLE[self.command]).exists()
        argv = [self.command, "--resume", str(self.run)] if resumable else list(self.settings)
        process = context.Process(
            target=run_pkd,
            args=(argv, self.log, self.run, signal_number, signal_at),
            daemon=True,
        )
        process.start()
        return process

    def finish(self, process):
        """Wait for a process and return its exit code."""
        try:
            process.join(TIMEOUT)
            assert process.exitcode is not None, f"still runs after {TIMEOUT} s"
            return process.exitcode
        finally:
            process.kill()
            process.join()

    def kill_after(self, seconds):
        """Start a process, kill it after `seconds`, and return its exit code."""
        process = self.start()
        try:
            process.join(seconds)
        finally:
            process.kill()
        return self.finish(process)

    def output(self):
        return self.log.read_text(encoding="utf-8")


def without_times(content):
    """Values of a JSON file without times, and without the checksum, which includes them."""
    values = json.loads(content)
    return {key: value for key, value in values.items() if key not in ("seconds", "sha256")}


def final_files(folder):
    """Name -> content of every file of a run, without times."""
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


def assert_files_are_complete(folder):
    """Files with their final names are complete; temporary files begin with a dot."""
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
