"""Export of one detector of a run as a single file, with pixels as input and scores as output."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pkd.data.arrays import resize
from pkd.deploy.inference import (
    CHECKSUM_KEY,
    CHECKSUM_ZEROS,
    INPUT_NAME,
    OUTPUT_NAMES,
    DetectorInfo,
    ScoreFunction,
    open_onnx,
    with_checksum,
)
from pkd.deploy.open_run import load_detector
from pkd.runs.data import load_dataset
from pkd.scoring.novelty import score_parts
from pkd.scoring.single import Scorer, score_function
from pkd.training.config import ResolvedConfig
from pkd.utils.errors import ConfigError, PkdError
from pkd.utils.files import atomic_write

TOLERANCE = 1e-4  # relative; measured differences are below 1e-5

TEST_IMAGES = 128  # that an exported file is verified on

OPSET = 18  # of 2022, supported by all current runtimes

INPUT_TYPES = {"uint8": torch.uint8, "float": torch.float32}

_ANY_BATCH_SIZE = ({0: torch.export.Dim("batch")},)


class ExportSummary(NamedTuple):
    """Result of `export_run`.

    Attributes:
        info: metadata of the exported detector.
        size: of the file in bytes.
        images: number of test images that the file was verified on.
        difference: largest relative difference of their scores from the scores of the run.
    """

    info: DetectorInfo
    size: int
    images: int
    difference: float


def export_run(
    run: Path,
    output: Path,
    *,
    overwrite: bool = False,
    file_format: str = "onnx",
    input_type: str = "uint8",
    network: str | None = None,
    normal_class: int | None = None,
    seed: int | None = None,
    data_dir: str | None = None,
) -> ExportSummary:
    """Export a detector of a finished run, verified on test images before the file is written.

    Args:
        run: run folder.
        output: file to write.
        overwrite: whether an existing file may be replaced.
        file_format: a key of FORMATS.
        input_type: type of the pixels in [0, 255], a key of INPUT_TYPES.
        network: "student" or "teacher"; None is the student, or the teacher of a teacher-only run.
        normal_class: may be None if the run has one normal class only.
        seed: None is 0.
        data_dir: folder or file of the test images; None takes the run's.

    Raises:
        CheckpointError: the run is not finished, damaged, or of another version of pkd.
        ConfigError: the run has no such detector, or the format needs a missing package.
        DataError: the test images are missing or damaged.
        OutputError: `output` cannot be written, or exists and `overwrite` is false.
        PkdError: the exported graph gives other scores than the run.
    """
    detector = load_detector(run, network, normal_class, seed)
    with atomic_write(output, overwrite) as temporary:
        config = detector.config
        images = _test_images(replace(config, data_dir=data_dir or config.data_dir))
        parts = score_parts(detector.generator, images, detector.stack)[:, detector.member]
        content, score = FORMATS[file_format](
            detector.scorer(), detector.info, INPUT_TYPES[input_type]
        )
        difference = relative_difference(score, images.numpy(), detector.score(parts))
        if not difference <= TOLERANCE:
            raise PkdError(
                f"the scores of the exported {detector.info.network} differ from the run's by "
                f"{difference:.1e} relatively (at most {TOLERANCE:.0e} is allowed), so nothing was "
                "written: try other versions of onnx and onnxruntime, or the other `format`"
            )
        temporary.write_bytes(content)
    return ExportSummary(detector.info, len(content), len(images), difference)


def to_onnx(scorer: Scorer, info: DetectorInfo, dtype: torch.dtype) -> tuple[bytes, ScoreFunction]:
    """Export to ONNX, for batches of any size.

    Returns:
        The content of the file, and the same content loaded into ONNX Runtime.
    """
    try:
        import onnxscript  # noqa: F401 (torch.onnx needs it; its own message has no remedy)
    except ImportError as error:
        raise ConfigError(
            "format",
            "onnx needs onnx, onnxscript and onnxruntime, which are not all installed: "
            "pip install 'pkdgan[export]', or choose `format` torch",
        ) from error
    with _quiet():
        program = torch.onnx.export(
            scorer,
            (_example(info, dtype),),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=list(OUTPUT_NAMES),
            dynamic_shapes=_ANY_BATCH_SIZE,
        )
    assert program is not None  # for mypy: only the exporter without dynamo returns None
    model = program.model_proto
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, model.graph):
        del part.metadata_props[:]  # source locations, which take more space than a student
    for key, value in (info.metadata() | {CHECKSUM_KEY: CHECKSUM_ZEROS}).items():
        model.metadata_props.add(key=key, value=value)
    content = with_checksum(model.SerializeToString())
    return content, open_onnx(content)[1]


def to_torch(scorer: Scorer, info: DetectorInfo, dtype: torch.dtype) -> tuple[bytes, ScoreFunction]:
    """Export with torch.export (.pt2), for batches of any size.

    Returns:
        The content of the file, and the same content loaded back.
    """
    with _quiet():
        program = torch.export.export(
            scorer, (_example(info, dtype),), dynamic_shapes=_ANY_BATCH_SIZE, strict=False
        )
        file = io.BytesIO()
        torch.export.save(program, file, extra_files={"pkd.json": json.dumps(info.metadata())})
    file.seek(0)
    return file.getvalue(), score_function(torch.export.load(file).module(), dtype)


Exporter = Callable[[Scorer, DetectorInfo, torch.dtype], tuple[bytes, ScoreFunction]]

FORMATS: dict[str, Exporter] = {"onnx": to_onnx, "torch": to_torch}


def _example(info: DetectorInfo, dtype: torch.dtype) -> Tensor:
    # two images: torch.export treats a dimension of size 1 as a constant
    return torch.zeros(2, info.channels, info.image_size, info.image_size, dtype=dtype)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporters' warnings on torchvision and on their own future."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def relative_difference(score: ScoreFunction, images: np.ndarray, expected: np.ndarray) -> float:
    """Largest relative difference of scores from expected ones.

    The images are scored in two batches, one image and the rest, to verify that the batch size is
    not fixed.

    Args:
        score: function under test.
        images: (n, C, H, W) uint8, n at least 2.
        expected: (n,) scores.
    """
    scores = np.concatenate([score(images[:1]), score(images[1:])])
    smallest = np.finfo(np.float32).tiny
    return float((np.abs(scores - expected) / np.maximum(expected, smallest)).max())


def _test_images(config: ResolvedConfig) -> Tensor:
    """(n, C, H, W) uint8, spread evenly over the test split of a run."""
    images = load_dataset(config).test_images
    rows = np.linspace(0, len(images) - 1, min(TEST_IMAGES, len(images))).round().astype(int)
    return resize(images[rows], config.image_size)
