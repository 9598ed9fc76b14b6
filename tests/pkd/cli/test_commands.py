"""The command line: whole runs, what they leave and print, and every mistake a user can make."""

import gzip
import json
import os
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from image_helpers import picture, product_photos, save
from PIL import Image
from safetensors.torch import load_file, save_file

from pkd.cli import main as cli
from pkd.cli.main import main
from pkd.data import standard as datasets
from pkd.runs.folder import RunFolder
from pkd.runs.run import Run
from pkd.scoring.metrics import threshold
from pkd.training import cuda_graph as graph
from pkd.training.trainer import Trainer

TINY = (
    *("--normal-class", "0,1", "--device", "cpu", "--latent", "8", "--batch-size", "2"),
    *("--teacher-widths", "2-4-8", "--student-widths", "1-2-4", "--max-train-images", "20"),
    *("--teacher-epochs", "1", "--step1-epochs", "1", "--step2-epochs", "1"),
)
PHASES = ["teacher", "step1", "step2"]


def files(folder):
    """Path -> content of everything below a folder."""
    return {path: path.is_file() and path.read_bytes() for path in Path(folder).rglob("*")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a finished run with two seeds of two classes, in a path full of odd characters."""
    out = tmp_path_factory.mktemp("runs") / "a run [bold] of :smile: ü"
    assert main(["train", *TINY, "--seeds", "2", "--out", str(out)]) == 0
    return out


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run, to be damaged."""
    for path, content in files(finished).items():
        target = tmp_path / "run" / path.relative_to(finished)
        if content is False:
            target.mkdir(parents=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    return tmp_path / "run"


@pytest.fixture
def refused(capsys):
    """refused(argv, *words, unchanged=folder): exit code 2, a message with all the words."""

    def check(argv, *words, unchanged=None):
        before = files(unchanged) if unchanged else None
        assert main([str(a) for a in argv]) == 2
        said = capsys.readouterr()
        assert said.err.startswith("pkd: ")
        assert "Traceback" not in said.err
        assert [word for word in words if str(word) not in said.err] == []
        if unchanged:
            assert files(unchanged) == before

    return check


def test_results_name_every_member_and_its_auc(finished):
    results = json.loads((finished / "results.json").read_text())
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert results["dataset"] == "digits"
    assert results["config"] == config
    assert config["teacher_epochs"] == 1
    members = results["members"]
    pairs = [(member["normal_class"], member["seed"]) for member in members]
    assert sorted(pairs) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for phase in PHASES:
        values = [member["auc"][phase] for member in members]
        assert all(0 <= value <= 1 for value in values)
        assert results["mean_auc"][phase] == pytest.approx(sum(values) / 4)
    assert list(results["std_auc"]) == list(results["mean_auc"]) == PHASES


def test_results_hold_what_scoring_new_images_needs(finished):
    """A threshold for each member and network, from scores of held-out images that are kept."""
    results = json.loads((finished / "results.json").read_text())
    assert (results["image_size"], results["channels"], results["left_out"]) == (32, 1, 0)
    assert results["classes"] == [str(k) for k in range(10)]
    run = Run(RunFolder.open(finished), device="cpu")
    labels = run.dataset.train_labels
    for phase in PHASES:
        scores = run.held_out_scores(phase)
        for member, own in zip(results["members"], scores, strict=True):
            assert len(own) == np.ceil(0.1 * (labels == member["normal_class"]).sum())
            assert member["threshold"][phase] == threshold(own, 0.05)


def test_metrics_hold_a_line_an_epoch_for_all_members(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == PHASES
    assert all(len(line["auc"]) == 4 and line["test_images"] == 360 for line in lines)
    assert all(len(values) == 4 for values in lines[0]["losses"]["teacher"].values())


def test_curves_are_a_png(finished):
    content = (finished / "curves.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert width > 400
    assert height > 200


def test_nothing_but_the_files_of_a_run_is_left(finished):
    names = {str(path.relative_to(finished)) for path in files(finished)} - {".lock"}
    checkpoints = {f"checkpoints/{phase}.safetensors" for phase in PHASES}
    rest = {"config.yaml", "progress.json", "metrics.jsonl", "results.json", "curves.png"}
    assert names == {"checkpoints"} | checkpoints | rest


def test_a_run_is_repeated_from_its_configuration(finished, tmp_path):
    argv = ["train", "--config", str(finished / "config.yaml"), "--out", str(tmp_path / "again")]
    assert main(argv) == 0
    before, again = files(finished), files(tmp_path / "again")
    timed = ("results.json", "progress.json")
    for path, content in before.items():
        if path.name not in timed:
            assert again[tmp_path / "again" / path.relative_to(finished)] == content
    results = [json.loads((f / "results.json").read_text()) for f in (finished, tmp_path / "again")]
    assert results[0]["members"] == results[1]["members"]


def table_rows(text):
    cells = [line.replace("┃", "│").split("│")[1:-1] for line in text.splitlines()]
    return [[cell.strip() for cell in row] for row in cells if row]


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_evaluate_prints_the_same_auc_and_writes_nothing(finished, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    before = files(finished)
    assert main(["evaluate", str(finished)]) == 0
    assert files(finished) == before
    rows = table_rows(capsys.readouterr().out)
    results = json.loads((finished / "results.json").read_text())
    assert rows[0] == ["normal class", "seed", *PHASES]
    for row, member in zip(rows[1:5], results["members"], strict=True):
        name = f"{member['normal_class']} {member['class_name']}"
        auc = [f"{member['auc'][phase]:.4f}" for phase in PHASES]
        assert row == [name, str(member["seed"]), *auc]
    assert rows[5] == ["mean", "", *(f"{results['mean_auc'][phase]:.4f}" for phase in PHASES)]
    assert rows[6][0] == "std over seeds"
    assert rows[6][2:] == [f"{results['std_auc'][phase]:.4f}" for phase in PHASES]


def test_a_path_is_printed_as_it_is_and_quoted_in_commands(finished, capsys):
    assert main(["train", "--resume", str(finished)]) == 0
    assert f"run folder: {finished}\n" in capsys.readouterr().out
    assert main(["train", *TINY, "--out", str(finished)]) == 2
    assert f"--resume '{finished}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings",
    [
        *(("--structure", name) for name in ("1", "2", "3", "4", "progressive-24")),
        ("--structure", "3", "--norm", "batch"),
        ("--structure", "4", "--reduction", "norm", "--norm-first", "false"),
        ("--structure", "1", "--weights", "0,0,0,0,0,0", "--betas", "0,0"),
        ("--structure", "2", "--batch-size", "20", "--checkpoint-every", "0"),
    ],
)
def test_every_structure_and_option_trains_to_the_end(settings, tmp_path):
    assert main(["train", *TINY, *settings, "--out", str(tmp_path / "run")]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    phases = PHASES if "progressive" in settings[1] else PHASES[:2]
    assert list(results["mean_auc"]) == phases
    assert {path.stem for path in (tmp_path / "run" / "checkpoints").iterdir()} == set(phases)


@pytest.mark.parametrize("asked", [True, False])
def test_where_no_graph_can_be_had_a_run_says_so_once_and_trains(
    asked, tmp_path, monkeypatch, capsys
):
    def refuse(*_):
        raise graph.GraphCaptureError("driver too old")

    monkeypatch.setattr(graph, "available", lambda device: True)
    monkeypatch.setattr(graph, "capture", refuse)
    asking = () if asked else ("--no-graph",)
    assert main(["train", *TINY, *asking, "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.count("no CUDA graph (driver too old)") == asked
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["graph"] == asked


def started_config(monkeypatch, *argv):
    """The resolved configuration that `pkd train argv` would train with."""
    found = []

    def create(path, config):
        found.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "create", create)
    assert main(["train", *argv]) == 130
    return found[0]


def test_flags_and_yaml_override_a_preset_and_later_flags_the_yaml(monkeypatch, tmp_path):
    config = started_config(monkeypatch, "--preset", "paper", "--batch-size", "3")
    assert (config["batch_size"], config["teacher_epochs"]) == (3, 500)
    file = tmp_path / "settings.yaml"
    file.write_text("preset: paper\nteacher_epochs: 2\nnormal_class: 3\nstructure: 2\n")
    config = started_config(monkeypatch, "--config", str(file), "--teacher-epochs", "4")
    assert (config["batch_size"], config["teacher_epochs"]) == (1, 4)
    assert (config["normal_class"], config["structure"]) == ("3", "2")


def test_a_switch_is_set_by_its_name_its_negation_or_a_value(monkeypatch, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("graph: false\n")
    cases = {(): True, ("--graph",): True, ("--no-graph",): False, ("--graph", "false"): False}
    cases |= {("--config", str(file)): False, ("--config", str(file), "--graph"): True}
    for argv, value in cases.items():
        assert started_config(monkeypatch, *argv)["graph"] == value
    assert started_config(monkeypatch, "--no-norm-first")["norm_first"] is False


def test_default_folder_of_a_run_is_below_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *TINY, "--structure", "1", "--normal-class", "1"]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("digits-")


def test_progress_fits_80_columns_with_nothing_cut(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    path = tmp_path / "screen"
    with path.open("w", encoding="utf-8") as screen:
        terminal = cli.Console(file=screen, force_terminal=True, **cli.PLAIN)
        monkeypatch.setattr(cli, "console", terminal)
        settings = ("--structure", "4", "--step1-epochs", "5", "--batch-size", "1")
        assert main(["train", *TINY, *settings, "--out", str(tmp_path / "run")]) == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", path.read_text(encoding="utf-8"))
    assert "…" not in shown
    assert "100/100 steps, ETA" in shown
    assert "losses: teacher G " in shown
    assert "  student D " in shown


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_need_not_know_every_letter(encoding, finished, tmp_path, monkeypatch):
    path = tmp_path / "screen"
    with path.open("w", encoding=encoding) as screen:
        monkeypatch.setattr(sys, "stdout", screen)
        monkeypatch.setattr(sys, "stderr", screen)
        assert main(["evaluate", str(finished)]) == 0
        assert main(["cost"]) == 0
        assert main(["evaluate", str(tmp_path / "→")]) == 2
    assert "is not a run folder" in path.read_text(encoding=encoding).replace("\n", " ")


@pytest.mark.parametrize("columns", ["40", "80"])
def test_cost_prints_every_figure_uncut(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["cost"]) == 0
    said = capsys.readouterr().out
    assert "…" not in said
    rows = table_rows(said)
    assert rows[0][1:] == ["cifar10", "mnist", "fashion_mnist"]
    assert ["parameters ratio, as printed", "6.22", "52.22", "105.45"] in rows
    assert ["FLOPs ratio, as printed", "24.45", "311.11", "700.00"] in rows
    assert max(map(len, said.splitlines())) <= 80


def test_help_documents_every_flag_with_hyphens(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for flag in ("--normal-class", "--teacher-widths", "--step1-epochs", "--max-train-images"):
        assert flag in said
    assert "--betas X,X" in said
    assert "_" not in "".join(word for word in said.split() if word.startswith("--"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("--normal-class", "10"), ("--normal-class", "'10'", "9 9")),
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
        (("--betas", "0.5"), ("betas", "2 numbers")),
        (("--weights", "1,2,3,x,5,6"), ("weights", "6 numbers")),
        (("--structure", "5"), ("--structure", "'5'", "progressive-23")),
        (("--dataset", "imagenet"), ("--dataset", "imagenet", "fashion_mnist")),
        (("--depth", "3"), ("--depth",)),
        (("--config", "/no/such.yaml"), ("--config", "/no/such.yaml")),
        (("--out", "/dev/null/run"), ("/dev/null/run", "another folder")),
    ],
)
def test_a_bad_setting_is_named_and_nothing_is_written(settings, words, refused, tmp_path):
    out = () if "--out" in settings else ("--out", tmp_path / "run")
    refused(["train", *TINY, *out, *settings], *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ("train,evaluate,report,export,score",)),
        (["fly"], ("fly", "train")),
        (["evaluate"], ("run",)),
        (["report"], ("run",)),
        (["data", "imagenet"], ("imagenet", "mnist")),
    ],
)
def test_a_bad_command_is_refused(argv, words, refused):
    refused(argv, *words)


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


def test_cuda_is_refused_where_there_is_none(refused, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    argv = ["train", *TINY, "--device", "cuda", "--out", tmp_path / "run"]
    refused(argv, "--device cuda", "use cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [None, gzip.compress(b"\0\0\x08\3" + bytes(20))[:-9]])
def test_missing_and_truncated_data_files_are_named(content, refused, tmp_path):
    name = "train-images-idx3-ubyte.gz"
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    if content:
        (raw / name).write_bytes(content)
    argv = ["train", "--dataset", "mnist", "--data-dir", tmp_path / "data"]
    remedy = f"pkd data mnist --data-dir {tmp_path / 'data'} --download"
    refused([*argv, "--out", tmp_path / "run"], name, remedy, unchanged=tmp_path)


def test_a_class_without_images_is_named(refused, monkeypatch, tmp_path):
    digits = datasets.load("digits")
    digits.train_labels[digits.train_labels == 1] = 2
    monkeypatch.setattr(datasets, "load", lambda *_: digits)
    argv = ["train", *TINY, "--out", tmp_path / "run"]
    refused(argv, "no images of class 1", "another class", unchanged=tmp_path)


@pytest.mark.parametrize("name", ["config.yaml", "notes.txt", "checkpoints/x", ".hidden"])
def test_a_folder_that_holds_anything_is_left_alone(name, refused, tmp_path):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    words = ("another run", "--resume") if name == "config.yaml" else ("not empty",)
    argv = ["train", *TINY, "--out", tmp_path / "run"]
    refused(argv, *words, "choose another folder", unchanged=tmp_path)


def test_an_out_that_is_a_file_is_left_alone(refused, tmp_path):
    (tmp_path / "file").write_text("mine")
    refused(["train", *TINY, "--out", tmp_path / "file"], "file", unchanged=tmp_path)
    refused(["train", *TINY, "--out", tmp_path / "file" / "run"], "file", unchanged=tmp_path)


@pytest.mark.parametrize("command", [["train", "--resume"], ["evaluate"], ["report"]])
def test_a_folder_that_is_no_run_is_named(command, refused, tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("photos", "nowhere"):
        argv = [*command, tmp_path / name]
        refused(argv, tmp_path / name, "not a run folder", "--out", unchanged=tmp_path)


@pytest.mark.parametrize("flags", [("--lr", "0.1"), ("--seeds", "2"), ("--out", "elsewhere")])
def test_resume_takes_no_other_flags(flags, refused, copy):
    argv = ["train", "--resume", copy, *flags]
    refused(argv, "--resume", "config.yaml", "no other flag", unchanged=copy)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_architecture(path):
    path.write_bytes((path.parent / "teacher.safetensors").read_bytes())


def not_finite(path):
    content = path.read_bytes()
    path.write_bytes(content[:-4] + struct.pack("<f", float("nan")))


def replace_text(old, new):
    def change(path):
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("checkpoints/step1.safetensors", truncate, ("truncated", "restore")),
        ("checkpoints/step1.safetensors", os.remove, ("missing", "restore")),
        ("checkpoints/step1.safetensors", not_finite, ("not finite", "restore")),
        ("checkpoints/step1.safetensors", other_architecture, ("fit config.yaml", "restore")),
        ("config.yaml", replace_text("2-4-8", "2-4-6"), ("checkpoint", "another architecture")),
        ("config.yaml", replace_text("seeds: 2", "seeds: 3"), ("does not fit config.yaml",)),
        ("config.yaml", truncate, ("config.yaml", "damaged", "new folder")),
        ("config.yaml", replace_text("latent: 8", "latent: [8"), ("damaged", "restore")),
        ("config.yaml", replace_text("latent:", "colour:"), ("another version", "latent")),
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
@pytest.mark.parametrize("command", [["train", "--resume"], ["evaluate"]])
def test_a_damaged_run_folder_is_left_alone(command, name, damage, words, refused, copy):
    damage(copy / name)
    refused([*command, copy], *words, str(copy), unchanged=copy)


def test_a_checkpoint_without_scores_of_held_out_images_is_refused(refused, copy):
    """As another version of pkd has left it."""
    path = copy / "checkpoints" / "step1.safetensors"
    tensors = {k: v for k, v in load_file(path).items() if not k.startswith("held_out")}
    save_file(tensors, path)
    words = ("step1.safetensors", "held-out images for 0 of 4", "restore")
    refused(["evaluate", copy], *words, unchanged=copy)


def test_evaluate_needs_a_finished_phase(refused, tmp_path, finished):
    config = (finished / "config.yaml").read_bytes()
    (tmp_path / "config.yaml").write_bytes(config)
    refused(["evaluate", tmp_path], "no finished phase", "--resume", unchanged=tmp_path)


def test_ctrl_c_while_evaluating_ends_without_a_traceback(finished, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "evaluate", interrupt)
    assert main(["evaluate", str(finished)]) == 130
    assert capsys.readouterr().err == "pkd: interrupted\n"


def test_a_diverging_run_names_member_and_step_and_keeps_its_checkpoint(refused, tmp_path):
    run = tmp_path / "run"
    argv = ["train", *TINY, "--lr", "1e30", "--checkpoint-every", "0", "--out", run]
    refused(argv, "normal class 0, seed 0", "finite at step 2 of epoch 1", "lower --lr")
    assert not (run / "results.json").exists()
    RunFolder.open(run)  # what it holds is whole


@pytest.mark.parametrize("epochs", [1, 3])
def test_weights_that_turn_bad_never_replace_a_good_checkpoint(
    epochs, refused, tmp_path, monkeypatch, every_step_reported
):
    """The second member's weights overflow in the last step of an epoch, after finite losses."""
    step, steps = Trainer.step, []

    def poisoned(trainer):
        step(trainer)
        steps.append(1)
        if len(steps) == 5 * epochs:
            weight = trainer.generator_params[0]
            weight.data.view(2, -1)[1, 0] = float("inf")

    monkeypatch.setattr(Trainer, "step", poisoned)
    run = tmp_path / "run"
    settings = ("--teacher-epochs", str(epochs), "--max-train-images", "10")
    argv = ["train", *TINY, *settings, "--checkpoint-every", "0", "--out", run]
    refused(argv, "normal class 1, seed 0", f"at step 5 of epoch {epochs}", "lower --lr")
    monkeypatch.setattr(Trainer, "step", step)
    assert json.loads((run / "progress.json").read_text())["step"] == 4
    assert main(["train", "--resume", str(run)]) == 0


def test_scores_that_are_not_finite_end_a_run_clearly(refused, tmp_path, monkeypatch):
    monkeypatch.setattr("pkd.runs.run.novelty_scores", lambda *_: np.full((360, 2), np.nan))
    argv = ["train", *TINY, "--out", tmp_path / "run"]
    refused(argv, "scores of the teacher of normal class 0, seed 0", "lower --lr")


def test_a_full_disk_is_named_and_the_run_resumes(refused, tmp_path, monkeypatch):
    run, write = tmp_path / "run", Path.write_bytes

    def full(path, content):
        if "step1" in path.name:
            write(path, content[:100])
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    words = ("step1.safetensors", "No space left", "make room", "--resume")
    refused(["train", *TINY, "--out", run], *words)
    monkeypatch.setattr(Path, "write_bytes", write)
    assert main(["train", "--resume", str(run)]) == 0
    assert not list(run.rglob(".*.tmp"))


OWN = (
    *("--device", "cpu", "--latent", "8", "--teacher-widths", "2-4-8", "--student-widths", "1-2-4"),
    *("--teacher-epochs", "1", "--step1-epochs", "1", "--step2-epochs", "1", "--image-size", "16"),
)


@pytest.fixture
def photos(tmp_path):
    return product_photos(tmp_path / "photos")


def train_on(dataset, place, out, *settings):
    argv = ["train", "--dataset", dataset, "--data-dir", place, *OWN, *settings, "--out", out]
    return [str(a) for a in argv]


def test_own_photos_are_trained_on_and_evaluated(photos, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(train_on("folder", photos, out)) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["classes"] == ["good", "scratch"]
    assert (results["image_size"], results["channels"]) == (16, 1)
    (member,) = results["members"]
    assert (member["normal_class"], member["class_name"]) == (0, "good")
    assert list(member["auc"]) == list(member["threshold"]) == PHASES
    assert results["config"]["batch_size"] == 8
    capsys.readouterr()
    assert main(["evaluate", str(out)]) == 0
    rows = table_rows(capsys.readouterr().out)
    auc = [f"{member['auc'][phase]:.4f}" for phase in PHASES]
    assert rows[1] == ["0 good", "0", *auc]
    moved = photos.rename(tmp_path / "moved")
    assert main(["evaluate", str(out), "--data-dir", str(moved)]) == 0


def test_photos_in_colour_train_a_network_of_three_channels(photos, tmp_path):
    save(picture(0, 40, colour=True), photos / "train" / "good" / "colour.jpg")
    assert main(train_on("folder", photos, tmp_path / "run", "--seeds", "2")) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["channels"] == 3
    assert len(results["members"]) == 2


def test_a_run_keeps_its_channels_whatever_images_come_later(photos, tmp_path):
    out = tmp_path / "run"
    assert main(train_on("folder", photos, out)) == 0
    assert yaml.safe_load((out / "config.yaml").read_text())["channels"] == 1
    save(picture(0, 40, colour=True), photos / "train" / "good" / "colour.jpg")
    assert main(["evaluate", str(out)]) == 0
    assert main(train_on("folder", photos, tmp_path / "grey", "--channels", "1")) == 0


def test_arrays_of_other_channels_than_the_run_are_refused(tmp_path, refused):
    for name, shape in (("grey", (8, 20, 20)), ("rgb", (8, 20, 20, 3))):
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        arrays = {"train_images": images, "test_images": images, "test_labels": np.arange(8) % 2}
        np.savez(tmp_path / f"{name}.npz", **arrays)
    out = tmp_path / "run"
    assert main(train_on("npz", tmp_path / "grey.npz", out)) == 0
    words = ("npz has images of 3 channels", "config.yaml's) is 1: convert")
    refused(["evaluate", out, "--data-dir", tmp_path / "rgb.npz"], *words, unchanged=tmp_path)
    argv = train_on("npz", tmp_path / "grey.npz", tmp_path / "other", "--channels", "3")
    refused(argv, "npz has images of 1 channel,", "is 3", unchanged=tmp_path)


@pytest.mark.parametrize("size", ["32", "64"])
def test_own_arrays_are_trained_on_every_class_that_has_training_images(size, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "data.npz",
        train_images=rng.random((30, 20, 24, 3)),
        train_labels=np.repeat([0, 2], 15),
        test_images=rng.random((12, 20, 24, 3)),
        test_labels=np.arange(12) % 3,
        classes=np.array(["nut", "dust", "bolt"]),
    )
    argv = train_on("npz", tmp_path / "data.npz", tmp_path / "run", "--image-size", size)
    assert main(argv) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [member["class_name"] for member in results["members"]] == ["nut", "bolt"]
    assert (results["image_size"], results["channels"]) == (int(size), 3)


def test_few_own_images_are_trained_on_for_more_epochs(photos, monkeypatch):
    config = started_config(
        monkeypatch, "--dataset", "folder", "--data-dir", str(photos), "--step2-epochs", "5"
    )
    assert (config["teacher_epochs"], config["step2_epochs"]) == (400, 5)  # of 10 images
    assert config["batch_size"] == 8
    argv = ("--dataset", "folder", "--data-dir", str(photos), "--max-train-images", "5")
    config = started_config(monkeypatch, *argv)
    assert (config["teacher_epochs"], config["batch_size"]) == (800, 5)


def test_unreadable_photos_are_left_out_with_a_count(photos, tmp_path, capsys, refused):
    bad = photos / "train" / "good" / "003.png"
    bad.write_text("no image")
    argv = train_on("folder", photos, tmp_path / "run")
    refused(argv, bad, "1 image cannot be used", "--skip-bad", unchanged=tmp_path)
    assert main([*argv, "--skip-bad"]) == 0
    said = capsys.readouterr().out
    assert "unreadable files left out: 1\n" in said
    assert str(bad) in said
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["left_out"] == 1
    assert main(["evaluate", str(tmp_path / "run")]) == 0


def test_of_identical_images_everything_stays_finite(tmp_path):
    images = np.full((12, 20, 20), 90, np.uint8)
    labels = np.arange(12) % 2
    np.savez(tmp_path / "data.npz", train_images=images, test_images=images, test_labels=labels)
    assert main(train_on("npz", tmp_path / "data.npz", tmp_path / "run")) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    (member,) = results["members"]
    assert list(member["auc"].values()) == [0.5] * 3
    assert np.isfinite(list(member["threshold"].values())).all()


def test_curves_never_miss_a_class_however_rare(tmp_path, monkeypatch):
    monkeypatch.setattr("pkd.runs.stack_loop.CURVE_IMAGES", 4)
    images = np.random.default_rng(0).integers(0, 256, (40, 20, 20), np.uint8)
    labels = np.ones(40, np.int64)
    labels[3] = 0
    np.savez(tmp_path / "data.npz", train_images=images, test_images=images, test_labels=labels)
    argv = train_on("npz", tmp_path / "data.npz", tmp_path / "run", "--teacher-epochs", "2")
    assert main(argv) == 0
    lines = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").open()]
    assert all(np.isfinite(line["auc"]).all() for line in lines)
    assert lines[0]["test_images"] == 40


def test_own_data_must_be_named(refused, tmp_path):
    words = ("--dataset folder needs --data-dir", "train/good")
    refused(["train", "--dataset", "folder", "--out", tmp_path / "run"], *words)
    refused(["train", "--dataset", "npz", "--out", tmp_path / "run"], "--data-dir: an .npz file")
    assert not (tmp_path / "run").exists()


def test_one_training_photo_is_not_enough(refused, tmp_path):
    photos = product_photos(tmp_path / "photos", train=1)
    words = ("class 0 good has 1 training images", "at least two")
    refused(train_on("folder", photos, tmp_path / "run"), *words, unchanged=tmp_path)


def test_an_image_bomb_is_refused(photos, refused, tmp_path, monkeypatch):
    save(picture(0, 60), photos / "test" / "scratch" / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    words = ("bomb.png", "decompression bomb", "--skip-bad")
    refused(train_on("folder", photos, tmp_path / "run"), *words, unchanged=tmp_path)


def test_a_run_folder_of_another_version_is_named(refused, copy):
    config = yaml.safe_load((copy / "config.yaml").read_text())
    del config["image_size"]
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    for command in (["evaluate"], ["train", "--resume"]):
        refused([*command, copy], "another version", "no image_size", unchanged=copy)


def test_an_output_that_cannot_be_written_is_named(photos, refused, tmp_path):
    (tmp_path / "file").write_text("mine")
    words = ("cannot be written", "another folder")
    refused(train_on("folder", photos, tmp_path / "file" / "run"), *words, unchanged=tmp_path)
