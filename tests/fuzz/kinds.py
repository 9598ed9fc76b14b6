"""The kinds of input that pkd reads, each with hostile variants and the right result.

`prepare` trains a small run and exports it; every case copies what it changes.
"""

import contextlib
import gzip
import hashlib
import io
import json
import math
import os
import shutil
from dataclasses import fields, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import torch
from data_file_helpers import mnist_files, write_files
from PIL import Image, ImageOps
from run_helpers import TINY, remove_checksums
from safetensors.torch import load_file
from sklearn.base import clone
from sklearn.datasets import load_digits

import pkd.detector
from pkd import Detector
from pkd.cli.main import build_parser, main
from pkd.cli.train import train_parser
from pkd.data import standard
from pkd.data.arrays import resize
from pkd.data.image_files import ImageError, find_images, is_colour, read_image
from pkd.data.npz import load_npz
from pkd.data.sources import SOURCES
from pkd.deploy.inference import CHECKSUM_KEY, CHECKSUM_ZEROS, open_onnx, with_checksum
from pkd.deploy.open_run import open_run
from pkd.models.stack import Member
from pkd.runs.folder import RunFolder
from pkd.runs.pipeline import train
from pkd.runs.run import Run
from pkd.sweep.plan import Plan
from pkd.sweep.read import read_sweeps
from pkd.training.callbacks import Callback, TrainingInterrupted
from pkd.training.config import TrainConfig
from pkd.training.factory import make_networks
from pkd.utils.errors import PkdError
from pkd.utils.yaml_files import parse_yaml
from tests.fuzz.hostile import FOREIGN, bomb, change_npz, other_size
from tests.fuzz.mutators import (
    NASTY,
    YAML,
    change_file,
    change_json,
    change_value,
    change_yaml,
)
from tests.fuzz.runner import Kind, WrongError, in_fork

IMAGES = load_digits().images[:4]  # [4, 8, 8] in [0, 16]
SETTINGS = ("--checkpoint-every", "0", "--structure", "progressive-23")


PARAMETERS = (
    *("teacher_widths", "student_widths", "latent", "image_size", "pixel_range", "held_out"),
    *("contamination", "batch_size", "lr", "image_shape", "preset", "structure", "novelty_score"),
    *("device", "precision", "random_state"),
)
WIDTHS = ((1, 1, 1), (10**6,) * 3, (0, 1), (1, math.inf, 2), [1, 2, 4], 16)


class Stop(Callback):
    """Stop training in step 1."""

    phase = ""

    def on_phase_start(self, phase: Any, steps: int, steps_done: int) -> None:
        self.phase = phase.name

    def on_train_steps_end(self, steps_done: int, losses: Any) -> None:
        if self.phase == "step1":
            raise TrainingInterrupted


class Inputs:
    """The files that the cases change, and the results of the unchanged ones.

    Args:
        folder: where they are made.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.run, self.stopped = folder / "run", folder / "stopped"
        self.onnx, self.sweep = folder / "student.onnx", folder / "sweep"
        self.mnist, self.pictures = folder / "mnist", folder / "pictures"
        self.npz = folder / "data.npz"
        in_fork(self._make)
        self.images = np.rint(IMAGES * (255 / 16)).astype(np.uint8)[:, None].repeat(4, 2)
        self.images = self.images.repeat(4, 3)  # [4, 1, 32, 32]
        self.scores = open_run(self.run, normal_class=1)[1](self.images)
        self.onnx_scores = open_onnx(self.onnx)[1](self.images)
        self.tensors = {p.name: load_file(p) for p in (self.stopped / "checkpoints").iterdir()}
        self.plan, self.merged = Plan.read(self.sweep), read_sweeps([self.sweep]).rows
        self._register_mnist()
        self.digest = standard.load("mnist", self.mnist).digest
        self.detector = Detector(
            teacher_widths=(1, 1, 2), student_widths=(1, 1, 1), latent=4, teacher_epochs=1,
            step1_epochs=1, step2_epochs=1, batch_size=4, image_size=16, random_state=0,
            device="cpu",
        )  # fmt: skip

    def _make(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()) as output:
            codes = [
                main(["train", *TINY, *SETTINGS, "--out", str(self.run)]),
                main(["export", str(self.run), "--normal-class", "1", "--output", str(self.onnx)]),
                main(["sweep", *TINY, "--structure", "1,student-only", "--out", str(self.sweep)]),
            ]
        if codes != [0, 0, 0]:
            raise RuntimeError(f"exit codes {codes}: {output.getvalue()}")
        self._stop_a_run()
        write_files(self.mnist, mnist_files())
        np.savez_compressed(
            self.npz,
            train_images=np.random.default_rng(0).random((9, 8, 8)),
            test_images=np.random.default_rng(1).random((5, 8, 8)),
            test_labels=np.arange(5) % 2,
            classes=np.array(["good", "bad"]),
        )
        self._save_pictures()

    def _stop_a_run(self) -> None:
        """A run with a checkpoint within step 1."""
        args = train_parser().parse_args([*TINY, *SETTINGS])
        run = Run.create(
            TrainConfig(**{f.name: args[f.name] for f in fields(TrainConfig)}), self.stopped
        )
        with contextlib.suppress(TrainingInterrupted):
            train(run, Stop())
        run.folder.release()
        assert RunFolder.open(self.stopped).progress.tensors

    def _save_pictures(self) -> None:
        self.pictures.mkdir()
        rng = np.random.default_rng(2)
        grey, colour = rng.integers(0, 256, (24, 20), np.uint8), rng.integers(
            0, 256, (24, 20, 3), np.uint8
        )  # fmt: skip
        for suffix in ("png", "jpg", "bmp", "tif", "webp"):
            Image.fromarray(grey).save(self.pictures / f"grey.{suffix}")
            Image.fromarray(colour).save(self.pictures / f"colour.{suffix}")
        deep = Image.fromarray(grey.astype(np.uint16) * 257)
        deep.save(self.pictures / "deep.png")
        deep.save(self.pictures / "deep.tif")
        Image.fromarray(grey).convert("P").save(self.pictures / "palette.png")
        Image.fromarray(colour).save(self.pictures / "lzw.tif", compression="tiff_lzw")
        Image.fromarray(colour).save(self.pictures / "progressive.jpg", progressive=True)
        Image.fromarray(colour).convert("RGBA").save(self.pictures / "alpha.png")

    def _register_mnist(self) -> None:
        """Make the small files the official ones."""
        files, source = mnist_files(), SOURCES["mnist"]

        def official(file: Any) -> Any:
            content = files.get(file.path)
            if content is None:
                return file
            digest = hashlib.sha256(content).hexdigest()
            return replace(file, size=len(content), sha256=digest)

        splits = {
            name: tuple(tuple(map(official, group)) for group in getattr(source, name))
            for name in ("train", "test")
        }
        SOURCES["mnist"] = replace(source, **splits)

    # -- Run folders -------------------------------------------------------------------------------

    def checkpoint(self, choose: Random, folder: Path) -> None:
        """A changed checkpoint of a finished run gives no other scores."""
        run = shutil.copytree(self.run, folder / "run")
        change_file(run / "checkpoints" / "step2.safetensors", choose)
        _equal(open_run(run, normal_class=1)[1](self.images), self.scores)

    def progress_checkpoint(self, choose: Random, folder: Path) -> None:
        """A changed checkpoint within a phase does not resume to other weights."""
        run = shutil.copytree(self.stopped, folder / "run")
        path = choose.choice(sorted((run / "checkpoints").iterdir()))
        change_file(path, choose)
        resumed = Run.resume(run)
        for name, expected in self.tensors.items():
            tensors = resumed.folder.load_tensors(name)
            for key in tensors.keys() | expected.keys():
                _equal(tensors[key].numpy(), expected[key].numpy())

    def run_json(self, choose: Random, folder: Path) -> None:
        """A changed progress.json, results.json or metrics.jsonl gives no other results."""
        run = shutil.copytree(self.run, folder / "run")
        name = choose.choice(("progress.json", "results.json", "metrics.jsonl"))
        self._change_run_file(run / name, choose)
        info, score = open_run(run, normal_class=1)
        _equal(score(self.images), self.scores)
        _same(info, open_run(self.run, normal_class=1)[0])

    def run_json_without_checksums(self, choose: Random, folder: Path) -> None:
        """Files of earlier versions, changed: used completely, or refused."""
        run = remove_checksums(shutil.copytree(self.run, folder / "run"))
        name = choose.choice(("progress.json", "results.json", "metrics.jsonl"))
        self._change_run_file(run / name, choose)
        if choose.random() < 0.5:
            run_code(["report", str(run), "--device", "cpu"])
        else:
            info, score = open_run(run, normal_class=1)
            _equal(score(self.images) >= 0, np.ones(len(self.images), bool))
            if not math.isfinite(info.threshold):
                raise WrongError(f"threshold {info.threshold}")

    def _change_run_file(self, path: Path, choose: Random) -> None:
        if path.suffix == ".json" or choose.random() < 0.3:
            (change_json if path.suffix == ".json" else change_file)(path, choose)
            return
        lines = path.read_text().splitlines()
        index = choose.randrange(len(lines))
        lines[index] = json.dumps(change_value(json.loads(lines[index]), choose))
        path.write_text("\n".join(lines) + "\n")

    def run_config(self, choose: Random, folder: Path) -> None:
        """A changed config.yaml gives no other scores, and is no reason to crash."""
        run = shutil.copytree(self.run, folder / "run")
        path = run / "config.yaml"
        if choose.random() < 0.2:
            change_file(path, choose)
        else:
            text = change_yaml(path.read_text(), choose)
            path.write_bytes(text.encode("utf-8", "surrogateescape"))
        command = choose.randrange(3)
        if command == 0:
            Run.resume(run)
        elif command == 1:
            Run.open(run, device="cpu")
        else:
            _equal(open_run(run, normal_class=1)[1](self.images), self.scores)

    def plan_json(self, choose: Random, folder: Path) -> None:
        """A changed plan.json is no other plan."""
        shutil.copy(self.sweep / "plan.json", folder)
        change_json(folder / "plan.json", choose)
        _same(Plan.read(folder), self.plan)

    def sweep_json(self, choose: Random, folder: Path) -> None:
        """A changed sweep.json can be merged, or is refused."""
        shutil.copy(self.sweep / "sweep.json", folder)
        change_json(folder / "sweep.json", choose)
        read_sweeps([folder])

    # -- Settings ----------------------------------------------------------------------------------

    def config_file(self, choose: Random, folder: Path) -> None:
        """Integers of --config are those of the file; every other value is valid or refused."""
        names = [f.name for f in fields(TrainConfig)]
        lines = [
            f"{choose.choice(names)}: {choose.choice(YAML)}" for _ in range(choose.randint(1, 3))
        ]
        text = (
            change_yaml("\n".join(lines) + "\n", choose)
            if choose.random() < 0.5
            else "\n".join(lines)
        )
        path = folder / "config.yaml"
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        if choose.random() < 0.1:
            change_file(path, choose)
        args = train_parser().parse_args(["--config", str(path)])
        settings = {name: args[name] for name in names}
        settings["teacher"] = settings["teacher"] and tuple(settings["teacher"])
        TrainConfig(**settings).resolved()
        written = parse_yaml(path.read_text())
        for name, value in (written or {}).items():
            if type(value) is int and type(settings[name]) is int and value != settings[name]:
                raise WrongError(f"{name} is {settings[name]}, not {value}")

    def command_line(self, choose: Random, folder: Path) -> None:
        """Arguments are parsed, or refused by one message."""
        words = [
            str(v) for v in NASTY if isinstance(v, str | int | float) and "\0" not in str(v)[:9]
        ]
        names = [f"--{f.name.replace('_', '-')}" for f in fields(TrainConfig)]
        command = choose.choice(("train", "score", "export", "report", "sweep", "evaluate", "data"))
        argv = [
            choose.choice(choose.choice((names, words, YAML[:40])))
            for _ in range(choose.randint(1, 5))
        ]
        with contextlib.suppress(SystemExit):
            build_parser().parse_args(
                [command, *(w.encode("utf-8", "replace").decode() for w in argv)]
            )

    # -- ONNX --------------------------------------------------------------------------------------

    def onnx_file(self, choose: Random, folder: Path) -> None:
        """A changed ONNX file gives no other scores."""
        path = Path(shutil.copy(self.onnx, folder))
        change_file(path, choose)
        _equal(open_onnx(path)[1](self.images), self.onnx_scores)

    def onnx_metadata(self, choose: Random, folder: Path) -> None:
        """Other metadata with a valid checksum describe the graph, or are refused."""
        model = onnx.load(self.onnx)
        properties = {entry.key: entry.value for entry in model.metadata_props}
        name = choose.choice(list(properties))
        words = [str(v) for v in NASTY if v != 10**400] + ["1", "3", "32", "nan", "inf", "-1", "2"]
        text = choose.choice(words).encode("utf-8", "replace").decode().replace("\0", "?")
        change = choose.randrange(4)
        if change == 0:
            del properties[name]
        elif change == 1:
            rename = choose.choice(("pictures", "x", ""))
            model.graph.input[0].name = rename
            if choose.random() < 0.5:
                for node in model.graph.node:
                    node.input[:] = [rename if n == "images" else n for n in node.input]
        else:
            properties[name] = text
        properties[CHECKSUM_KEY] = CHECKSUM_ZEROS
        del model.metadata_props[:]
        for key, value in properties.items():
            model.metadata_props.add(key=key, value=value)
        path = folder / "other.onnx"
        path.write_bytes(with_checksum(model.SerializeToString()))
        info, score = open_onnx(path)
        _equal(score(self.images), self.onnx_scores)
        if not (math.isfinite(info.threshold) and info.threshold >= 0 and info.channels == 1):
            raise WrongError(f"{info}")

    # -- Data --------------------------------------------------------------------------------------

    def image_file(self, choose: Random, folder: Path) -> None:
        """An accepted image has the pixels that Pillow decodes."""
        path = Path(shutil.copy(choose.choice(sorted(self.pictures.iterdir())), folder))
        change = choose.randrange(10)
        if change == 0:
            path.write_bytes(bomb(choose))
        elif change == 1:
            path.write_bytes(choose.choice(FOREIGN))
        elif change == 2:
            path.write_bytes(other_size(path.read_bytes(), choose))
        else:
            change_file(path, choose)
        colour = choose.random() < 0.5
        is_colour(path)
        pixels = read_image(path, colour, 16)
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                array = np.asarray(upright, np.float64) / 257
                array = np.stack(
                    [np.rint(array).clip(0, 255).astype(np.uint8)] * (3 if colour else 1)
                )
            else:
                array = np.asarray(upright.convert("RGB" if colour else "L"))
                array = np.moveaxis(array, 2, 0) if colour else array[None]
        expected = resize(array[None], 16)[0].numpy().astype(int)
        if np.abs(pixels - expected).max() > 1:
            raise WrongError(f"pixels differ by {np.abs(pixels - expected).max()}")

    def image_folder(self, choose: Random, folder: Path) -> None:
        """Folders with links, loops and special files have the images that a walk finds."""
        folders = [folder / "images"]
        folders[0].mkdir()
        for k in range(choose.randint(1, 12)):
            parent, name = choose.choice(folders), f"{choose.choice('ab')}{k}"
            kind = choose.randrange(6)
            if kind <= 1:
                folders.append(parent / name)
                folders[-1].mkdir()
            elif kind == 2:
                (parent / name).symlink_to(choose.choice(folders))
            elif kind == 3:
                (parent / f"{name}.png").symlink_to(choose.choice(("/dev/zero", "/none", "..")))
            elif kind == 4:
                os.mkfifo(parent / f"{name}.png")
            else:
                shutil.copy(self.pictures / "grey.png", parent / f"{name}.png")
        files = find_images(folders[0])
        if len({p.resolve().parent / p.name for p in files}) != len(files):
            raise WrongError("a file is listed twice")
        readable = {
            p.resolve() for p in folder.rglob("*.png") if p.is_file() and not p.is_symlink()
        }
        read = set()
        for file in files:
            with contextlib.suppress(ImageError):
                read_image(file, False, 16)
                read.add(file.resolve())
        if read != readable:
            raise WrongError(f"{len(read)} of {len(readable)} images")

    def npz_file(self, choose: Random, folder: Path) -> None:
        """Accepted arrays have the labels and pixels of the file."""
        path = Path(shutil.copy(self.npz, folder))
        if choose.random() < 0.5:
            change_npz(path, choose)
        else:
            change_file(path, choose)
        data = load_npz(path)
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays["train_images"], arrays["test_labels"]
            _equal(data.test_labels, labels.astype(object).astype(np.int64))
            if any(int(a) != int(b) for a, b in zip(labels, data.test_labels, strict=True)):
                raise WrongError("labels differ")
            values = images.astype(np.longdouble)
            low, high = values.min(), values.max()
            if images.dtype == np.uint8:
                low, high = 0, 255
            elif low >= 0 and high <= 1:
                low, high = 0, 1
            expected = np.rint((values - low) * 255 / max(high - low, 1e-300)).astype(float)
            actual = data.train_images.reshape(-1).astype(float)
            if images.ndim == 4 and images.shape[1] not in (1, 3):
                expected = np.moveaxis(expected, 3, 1)
            if high > low and np.abs(actual - expected.reshape(-1)).max() > 1:
                raise WrongError("pixels differ")

    def official_file(self, choose: Random, folder: Path) -> None:
        """Changed official files are refused before they are unpacked."""
        root = shutil.copytree(self.mnist, folder / "data")
        path = choose.choice(sorted(p for p in root.rglob("*") if p.is_file()))
        if choose.random() < 0.1:
            path.write_bytes(gzip.compress(bytes(choose.choice((10**6, 10**8)))))
        else:
            change_file(path, choose)
        _same(standard.load("mnist", root).digest, self.digest)

    def detector_arrays(self, choose: Random, folder: Path) -> None:
        """A Detector scores every array with finite numbers, or refuses it."""
        shape = choose.choice(
            ((6, 8, 8), (6, 1, 8, 8), (6, 3, 8, 8), (6, 8, 8, 3), (6, 64), (1, 8, 8), (0, 8, 8),
             (6, 8, 0), (6, 0, 0), (6, 1, 1), (6, 2, 2, 2), (6,), (), (6, 500, 1), (2, 3, 3, 3))
        )  # fmt: skip
        dtype = choose.choice("?bBhHiIlLqQefdgFDOSUMm")
        rng = np.random.default_rng(choose.randrange(2**32))
        values = rng.random(shape)
        with np.errstate(all="ignore"):
            values = values * choose.choice((0, 1, 255, -1, 1e5, 2**63, 1e38, 1.7e308, 1e-310))
            with contextlib.suppress(TypeError, ValueError):  # else float64
                values = np.asarray(values).astype(dtype)
            array = np.asarray(values)
        if array.size and array.dtype.kind == "f" and choose.random() < 0.2:
            array.flat[0] = choose.choice((np.nan, np.inf, -np.inf))
        changes = {choose.choice(PARAMETERS): choose.choice((*NASTY, *WIDTHS))}
        parameters = changes if choose.random() < 0.5 else {}
        detector = clone(self.detector).set_params(**parameters)
        pkd.detector.fit_member = _untrained  # training takes time and threads
        scores = -detector.fit(array).score_samples(array)
        if not np.isfinite(scores).all() or not math.isfinite(detector.threshold_):
            raise WrongError("scores are not finite")

    def kinds(self) -> list[Kind]:
        """All kinds of input."""
        on_images = (PkdError,)
        arrays = (ValueError, TypeError)  # of scikit-learn; PkdErrors of a Detector are ValueErrors
        rows = {
            "checkpoint of a finished phase": (self.checkpoint, (PkdError,)),
            "checkpoint within a phase": (self.progress_checkpoint, (PkdError,)),
            "progress, results, metrics": (self.run_json, (PkdError,)),
            "the same without checksums": (self.run_json_without_checksums, (PkdError,)),
            "config.yaml of a run": (self.run_config, (PkdError,)),
            "plan.json": (self.plan_json, (PkdError,)),
            "sweep.json": (self.sweep_json, (PkdError,)),
            "--config": (self.config_file, (PkdError,)),
            "command line": (self.command_line, (PkdError,)),
            "ONNX file": (self.onnx_file, (PkdError,)),
            "ONNX metadata and inputs": (self.onnx_metadata, (PkdError,)),
            "image file": (self.image_file, on_images),
            "image folder": (self.image_folder, on_images),
            "npz file": (self.npz_file, (PkdError,)),
            "official data file": (self.official_file, (PkdError,)),
            "arrays and parameters of Detector": (self.detector_arrays, arrays),
        }
        return [Kind(name, check, refusals) for name, (check, refusals) in rows.items()]


def run_code(argv: list[str]) -> None:
    """Run a command; PkdError for its exit code 2."""
    code = main(argv)
    if code == 2:
        raise PkdError("refused")
    if code:
        raise WrongError(f"exit code {code}")


def _untrained(config: Any, images: Any, seed: int) -> dict[str, Any]:
    """Networks with their initial weights, instead of `fit_member`."""
    return make_networks(config, [Member(0, seed)], images.shape[1], torch.device("cpu"))


def _equal(actual: np.ndarray, expected: np.ndarray) -> None:
    if not np.array_equal(actual, expected):
        raise WrongError("other numbers")


def _same(actual: Any, expected: Any) -> None:
    if actual != expected:
        raise WrongError(f"{actual}"[:300])
