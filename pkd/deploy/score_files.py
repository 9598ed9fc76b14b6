"""Scores of image files by a detector. Needs no torch for an ONNX file."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from pkd.data.image_files import ImageError, find_images, is_colour, read_image, unusable_images
from pkd.deploy.inference import DetectorInfo, ScoreFunction, open_onnx
from pkd.utils.errors import ConfigError, DataError, PkdError
from pkd.utils.text import csv_cell

BATCH_SIZE = 64


class ImageScore(NamedTuple):
    """One line of output.

    Attributes:
        image: path of the file.
        score: novelty score, higher is more novel.
        threshold: of the detector.
        verdict: "normal", or "novel" for a score above the threshold.
    """

    image: str
    score: float
    threshold: float
    verdict: str


def open_detector(
    path: Path,
    network: str | None = None,
    normal_class: int | None = None,
    seed: int | None = None,
) -> tuple[DetectorInfo, ScoreFunction]:
    """Open a detector of a run folder in PyTorch, or an ONNX file in ONNX Runtime.

    Args:
        path: run folder, or ONNX file that `pkd export` wrote.
        network: of a run: "student" or "teacher"; None is the student, or the teacher of a
            teacher-only run.
        normal_class: of a run; may be None if it has one normal class only.
        seed: of a run; None is 0.

    Raises:
        CheckpointError: the run or the file cannot be used.
        ConfigError: the run has no such detector.
        PkdError: a detector is selected, but `path` is an ONNX file.
    """
    if path.is_dir():
        from pkd.deploy.open_run import open_run  # imports torch, which ONNX files do not need

        return open_run(path, network, normal_class, seed)
    choices = {"network": network, "normal_class": normal_class, "seed": seed}
    given = [name for name, value in choices.items() if value is not None]
    if given:
        names = ", ".join(f"`{name}`" for name in given)
        raise PkdError(
            f"{path} is a file with one detector, but {names} selects a detector of a run folder: "
            "leave it out"
        )
    return open_onnx(path)


def list_images(paths: Iterable[Path]) -> list[Path]:
    """List image files: files as they are given, and all image files below folders.

    Raises:
        DataError: a folder has no images or cannot be read.
    """
    files: list[Path] = []
    for path in paths:
        images = find_images(path) if path.is_dir() else [path]
        if not images:
            raise DataError(f"{path} holds no images: give a folder with images, or image files")
        files += images
    return files


def score_files(
    files: Iterable[Path],
    info: DetectorInfo,
    score: ScoreFunction,
    on_bad: Callable[[str], None] | None = None,
) -> Iterator[ImageScore]:
    """Score image files, with one batch of them in memory at a time.

    Args:
        files: grey or RGB images of any size. A grey detector refuses RGB images instead of
            converting them.
        info: metadata of the detector.
        score: score function of the detector.
        on_bad: called with the message of each file that cannot be used; the file is skipped.
            None: such files are errors.

    Yields:
        The score of each file, in their order.

    Raises:
        DataError: after the last score, with the names of the files that cannot be used; or no
            file can be used.
    """
    refused: list[str] = []
    report = on_bad or refused.append
    any_usable = False
    remaining = iter(files)
    while batch := list(islice(remaining, BATCH_SIZE)):
        read = ((path, _read(path, info, report)) for path in batch)
        usable = [(path, image) for path, image in read if image is not None]
        if usable:
            any_usable = True
            paths, images = zip(*usable, strict=True)
            for path, value in zip(paths, score(np.stack(images)).tolist(), strict=True):
                verdict = "normal" if value <= info.threshold else "novel"
                yield ImageScore(str(path), value, info.threshold, verdict)
    if refused:
        raise unusable_images(refused)
    if not any_usable:
        raise DataError("none of the images can be used: give others")


def _read(path: Path, info: DetectorInfo, on_bad: Callable[[str], None]) -> np.ndarray | None:
    """Read an image as the detector's input (C, H, W) uint8; None, after `on_bad`, if unusable."""
    colour = info.channels == 3
    try:
        if not colour and is_colour(path):
            raise ImageError(
                f"{path}: it is in colour, but the detector is for grey: convert it to grey"
            )
        return read_image(path, colour, info.image_size)
    except ImageError as error:
        on_bad(str(error))
        return None


Writer = Callable[[TextIO, Iterable[ImageScore]], None]


def write_csv(file: TextIO, rows: Iterable[ImageScore]) -> None:
    """Write a header and one line for each row as they arrive; see `csv_cell`."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(ImageScore._fields)
    writer.writerows(map(csv_cell, row) for row in rows)


def write_json(file: TextIO, rows: Iterable[ImageScore]) -> None:
    """Write one array, with one object in each line, as the rows arrive."""
    file.write("[")
    for k, row in enumerate(rows):
        file.write(("," if k else "") + "\n" + json.dumps(row._asdict()))
    file.write("\n]\n")


_WRITERS: dict[str, Writer] = {".csv": write_csv, ".json": write_json}


def writer_for(output: Path | None) -> Writer:
    """Select the writer by the suffix of `output`, CSV for None; ConfigError for other suffixes."""
    suffix = ".csv" if output is None else output.suffix.lower()
    if suffix not in _WRITERS:
        raise ConfigError("output", f"{output} must end in {' or '.join(_WRITERS)}")
    return _WRITERS[suffix]
