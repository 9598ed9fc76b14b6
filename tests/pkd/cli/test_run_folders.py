"""Damaged run folders and folders without a run: every command names the problem and a remedy."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from run_helpers import remove_checksums

from pkd.cli.main import main

RESUME, EVALUATE, REPORT = ["train", "--resume"], ["evaluate"], ["report"]


@pytest.mark.parametrize("command", [RESUME, EVALUATE, REPORT])
def test_a_folder_without_a_run_is_refused(command, refused, tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("photos", "nowhere"):
        argv = [*command, tmp_path / name]
        refused(argv, tmp_path / name, "not a run folder", "--out", unchanged=tmp_path)


@pytest.mark.parametrize("flags", [("--lr", "0.1"), ("--seeds", "2"), ("--out", "elsewhere")])
def test_resume_takes_no_other_flags(flags, refused, run_copy):
    argv = [*RESUME, run_copy, *flags]
    refused(argv, "--resume", "config.yaml", "no other flag", unchanged=run_copy)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def use_other_architecture(path: Path) -> None:
    path.write_bytes((path.parent / "teacher.safetensors").read_bytes())


def set_to_nan(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-4] + struct.pack("<f", float("nan")))


def replace_text(old: str, new: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("checkpoints/step1.safetensors", truncate, ("truncated", "restore")),
        ("checkpoints/step1.safetensors", os.remove, ("missing", "restore")),
        ("checkpoints/step1.safetensors", set_to_nan, ("not finite", "restore")),
        ("checkpoints/step1.safetensors", use_other_architecture, ("fit config.yaml", "restore")),
        ("config.yaml", replace_text("2-4-8", "2-4-6"), ("checkpoint", "another architecture")),
        ("config.yaml", replace_text("seeds: 2", "seeds: 3"), ("does not fit config.yaml",)),
        ("config.yaml", truncate, ("config.yaml", "damaged", "new folder")),
        ("config.yaml", replace_text("latent: 8", "latent: [8"), ("damaged", "restore")),
        ("config.yaml", replace_text("latent:", "colour:"), ("another version", "colour")),
        ("config.yaml", replace_text("latent: 8", "latent: x"), ("another version", "--latent")),
        ("progress.json", truncate, ("damaged", "restore")),
        ("progress.json", replace_text('"phase": 3', '"phase": 9'), ("does not fit",)),
        ("progress.json", replace_text('"phase": 3', '"phase": "x"'), ("damaged", "restore")),
        ("progress.json", replace_text('"epoch": 0', '"epoch": 7'), ("does not fit",)),
        ("progress.json", replace_text('"phase"', '"stage"'), ("damaged", "restore")),
        ("progress.json", replace_text('"auc": {', '"auc": [], "x": {'), ("damaged",)),
        ("progress.json", replace_text("null", '"../../x"'), ("damaged", "restore")),
        ("metrics.jsonl", truncate, ("metrics.jsonl", "restore")),
        ("metrics.jsonl", os.remove, ("metrics.jsonl", "restore")),
    ],
)
@pytest.mark.parametrize("command", [RESUME, EVALUATE])
def test_a_damaged_run_folder_is_refused_and_unchanged(
    command, name, damage, words, refused, run_copy
):
    remove_checksums(run_copy)  # which would find the damage before the other checks
    damage(run_copy / name)
    refused([*command, run_copy], *words, str(run_copy), unchanged=run_copy)


@pytest.mark.parametrize("command", [RESUME, EVALUATE])
def test_a_run_folder_without_a_setting_is_refused(command, refused, run_copy):
    config = yaml.safe_load((run_copy / "config.yaml").read_text())
    del config["latent"]
    (run_copy / "config.yaml").write_text(yaml.safe_dump(config))
    refused([*command, run_copy], "another version", "no latent", unchanged=run_copy)


def test_resuming_checks_the_memory_as_a_new_run_does(refused, run_copy, monkeypatch):
    monkeypatch.setattr("pkd.runs.memory.weight_memory", lambda config, channels: (2**40, 2**30))
    refused([*RESUME, run_copy], "4,096 GiB", "smaller widths", unchanged=run_copy)
    assert main(["evaluate", str(run_copy)]) == 0


@pytest.mark.parametrize("command", [RESUME, EVALUATE, REPORT])
@pytest.mark.parametrize("name", ["progress.json", "metrics.jsonl"])
def test_files_that_are_no_regular_files_are_refused_at_once(command, name, refused, run_copy):
    (run_copy / name).unlink()
    (run_copy / name).symlink_to("/dev/zero")
    refused([*command, run_copy], name, "it is a device")


def test_a_checkpoint_that_is_a_fifo_is_refused_at_once(refused, run_copy):
    path = remove_checksums(run_copy) / "checkpoints" / "step1.safetensors"
    path.unlink()
    os.mkfifo(path)
    refused([*EVALUATE, run_copy], "step1.safetensors", "it is a FIFO")
