"""Flags and YAML files with settings: how they combine, and which are refused."""

import os

import pytest
import torch
from run_helpers import TINY

from pkd.cli.main import main
from pkd.runs.folder import RunFolder


@pytest.fixture
def resolved(monkeypatch):
    """Function of argv: the settings with which `pkd train argv` would make its run folder."""

    def settings(*argv: str) -> dict:
        configs = []

        def create(path, config):
            configs.append(config)
            raise KeyboardInterrupt

        monkeypatch.setattr(RunFolder, "create", create)
        assert main(["train", *argv]) == 130
        return configs[0]

    return settings


def test_flags_and_yaml_override_a_preset_and_later_flags_the_yaml(resolved, tmp_path):
    config = resolved("--preset", "paper", "--batch-size", "3")
    assert (config["batch_size"], config["teacher_epochs"]) == (3, 500)
    file = tmp_path / "settings.yaml"
    file.write_text("preset: paper\nteacher_epochs: 2\nnormal_class: 3\nstructure: 2\n")
    config = resolved("--config", str(file), "--teacher-epochs", "4")
    assert (config["batch_size"], config["teacher_epochs"]) == (1, 4)
    assert (config["normal_class"], config["structure"]) == ("3", "2")


def test_a_switch_is_set_by_its_flag_its_negation_or_a_value(resolved, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("graph: false\n")
    cases = {(): True, ("--graph",): True, ("--no-graph",): False, ("--graph", "false"): False}
    cases |= {("--config", str(file)): False, ("--config", str(file), "--graph"): True}
    for argv, value in cases.items():
        assert resolved(*argv)["graph"] == value
    assert resolved("--no-norm-first")["norm_first"] is False


def test_few_own_images_get_more_epochs(photos, resolved):
    argv = ("--dataset", "folder", "--data-dir", str(photos))
    config = resolved(*argv, "--step2-epochs", "5")
    assert (config["teacher_epochs"], config["step2_epochs"]) == (1000, 5)  # of 10 images
    assert config["batch_size"] == 8
    config = resolved(*argv, "--max-train-images", "5")
    assert (config["teacher_epochs"], config["batch_size"]) == (2000, 5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("--normal-class", "10"), ("--normal-class", "10 is not a class", "9 9")),
        (("--teacher-widths", "1-2"), ("--teacher-widths", "8-16-64")),
        (("--student-widths=-1-2-3",), ("--student-widths", "8-16-64")),
        (("--teacher-widths", "999999999-9999999999-2"), ("GiB", "choose smaller")),
        (("--latent", "9" * 30), ("GiB", "choose smaller")),
        (("--seeds", "999999999"), ("GiB", "--seeds")),
        (("--seeds", "0"), ("--seeds", "at least 1")),
        (("--seeds", "1.5"), ("--seeds", "int", "1.5")),
        (("--batch-size", "0"), ("--batch-size", "at least 1")),
        (("--batch-size", "21"), ("--batch-size 21", "class 0", "at most 20")),
        *((("--lr", lr), ("--lr",)) for lr in ("0", "-1", "nan", "inf", ".nan", ".inf", "1e999")),
        (("--lr", "fast"), ("--lr", "float", "fast")),
        (("--betas", "0.5"), ("--betas", "two numbers")),
        (("--weights", "1,2,3,x,5,6"), ("--weights", "numbers", "1,2,3,x,5,6")),
        (("--weights", "1,2,3"), ("--weights", "six finite numbers")),
        (("--structure", "5"), ("--structure", "'5'", "progressive-23")),
        (("--dataset", "imagenet"), ("--dataset", "imagenet", "fashion_mnist")),
        (("--members", "0:0,1"), ("--members", "CLASS:SEED", "0:0,1")),
        (("--members", "0:0"), ("--members", "--normal-class", "--seeds")),
        (("--teacher", "/no/such"), ("/no/such is not a run folder",)),
        (("--teacher", "/a", "--structure", "student-only"), ("--teacher", "student-only")),
        (("--teacher-batch-size", "21"), ("--teacher-batch-size 21", "class 0", "at most 20")),
        (("--depth", "3"), ("--depth",)),
        (("--config", "/no/such.yaml"), ("--config", "/no/such.yaml")),
        (("--out", "/dev/null/run"), ("/dev/null/run", "cannot be written", "another path")),
    ],
)
def test_a_bad_setting_is_named_and_nothing_is_written(settings, words, refused, tmp_path):
    out = () if "--out" in settings else ("--out", tmp_path / "run")
    refused(["train", *TINY, *out, *settings], *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("colour: red", ("no setting colour", "pkd train --help")),
        ("lr: [", ("config",)),
        ("- 1", ()),
        ("lr: x", ("lr",)),
    ],
)
def test_a_bad_settings_file_is_refused(text, words, refused, tmp_path):
    (tmp_path / "settings.yaml").write_text(text + "\n")
    refused(["train", "--config", tmp_path / "settings.yaml", "--out", tmp_path / "run"], *words)
    assert not (tmp_path / "run").exists()


def test_cuda_without_a_gpu_is_refused(refused, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    argv = ["train", *TINY, "--device", "cuda", "--out", tmp_path / "run"]
    refused(argv, "--device is 'cuda'", "use 'cpu' or 'auto'")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "line",
    [
        *(
            f"{name}: null"
            for name in ("seeds", "normal_class", "image_size", "betas", "fused_weights")
        ),
        *(
            "contamination: null",
            "seeds: !!int x",
            "lr: !!timestamp x",
            "student_widths: [1, 2, .inf]",
        ),
        *(f"{name}: {'9' * 300}" for name in ("contamination", "lr", "batch_size", "step1_epochs")),
        *(f"student_widths: 1-2-{'9' * 300}", f"betas: [0.5, {'9' * 390}]", "members: [[0, 1e9]]"),
        *("data_dir: ~nobody9/x", "teacher: [~nobody9/x]", 'data_dir: "a\\0b"', "teacher: {a: 1}"),
        *("a: &a [*a]", "[" * 5000, "lr: 2020-01-01", "- 1", "x", "1: 2", "lr: \udcff"),
    ],
)
def test_a_bad_value_in_a_file_is_one_message(line, refused, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(line, encoding="utf-8", errors="surrogateescape")
    refused(["train", "--config", file, "--out", tmp_path / "run"], "--", unchanged=tmp_path)


def test_a_file_that_is_no_regular_file_is_refused_at_once(refused, tmp_path):
    os.mkfifo(tmp_path / "settings.yaml")
    for command in ("train", "sweep"):
        argv = [command, "--config", tmp_path / "settings.yaml", "--out", tmp_path / "out"]
        refused(argv, "--config", "settings.yaml", "it is a FIFO")
