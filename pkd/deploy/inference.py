"""Exported detectors: their metadata, and scoring with ONNX Runtime. Needs no torch.

The metadata of an ONNX file has the SHA-256 of the whole file, computed with zeros in its place.
"""

import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import numpy as np

from pkd.utils.checksums import sha256
from pkd.utils.errors import CheckpointError, PkdError
from pkd.utils.files import read_bytes

logger = logging.getLogger(__name__)

ScoreFunction = Callable[[np.ndarray], np.ndarray]  # (n, C, H, W) uint8 -> (n,) float32

# Of exported files: it changes with their graph or their metadata keys. Files of version 1 have the
# latent score alone, those of versions 1 and 2 no SHA-256.
FORMAT_VERSION = "3"
UNVERIFIED = ("1", "2")
MAX_BYTES = 2**31  # of a protocol buffer

CHECKSUM_KEY, CHECKSUM_ZEROS = "pkd.sha256", "0" * 64
# Key and value of the checksum in a file: strings are preceded by a tag and their length.
CHECKSUM = re.compile(rb"\n\npkd\.sha256\x12@([0-9a-f]{64})")

INPUT_NAME = "images"  # of the graph
# The score, and the parts that it is computed from.
OUTPUT_NAMES = ("scores", "latent", "energy", "reconstruction")

INPUT_TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}


@dataclass(frozen=True)
class DetectorInfo:
    """Metadata of one detector.

    Attributes:
        network: "student" or "teacher".
        dataset: name of the training data set.
        normal_class: number of the normal class.
        class_name: name of the normal class.
        seed: of the training.
        channels: of the images, 1 (grey) or 3 (RGB).
        image_size: height and width of the images.
        threshold: images with a higher score are novel.
        contamination: expected share of normal images with a score above the threshold.
        version: of the pkdgan package that trained the detector.
        score: "latent", "reconstruction" or "fused", see `pkd.scoring.score`.
    """

    network: str
    dataset: str
    normal_class: int
    class_name: str
    seed: int
    channels: int
    image_size: int
    threshold: float
    contamination: float
    version: str
    score: str = "latent"

    def metadata(self) -> dict[str, str]:
        """Convert to the properties "pkd.<name>" of an exported file."""
        values = {f"pkd.{field.name}": str(getattr(self, field.name)) for field in fields(self)}
        return {"pkd.format": FORMAT_VERSION} | values

    @classmethod
    def from_metadata(cls, metadata: dict[str, str]) -> "DetectorInfo":
        """Read the properties of an exported file.

        Raises:
            KeyError: a property is missing.
            ValueError: a property has a wrong value, or the file another format version.
        """
        if metadata.get("pkd.format") == "1":
            metadata = {"pkd.score": "latent"} | metadata
        elif metadata.get("pkd.format") not in (*UNVERIFIED, FORMAT_VERSION):
            raise ValueError(f"pkd.format is {metadata.get('pkd.format')}, not {FORMAT_VERSION}")
        types: dict[str, Callable[[str], Any]] = get_type_hints(cls)
        info = cls(**{name: convert(metadata[f"pkd.{name}"]) for name, convert in types.items()})
        for name, holds in RANGES.items():
            if not holds(getattr(info, name)):
                raise ValueError(f"pkd.{name} is {getattr(info, name)}")
        return info


RANGES: dict[str, Callable[[Any], bool]] = {
    "network": lambda value: value in ("student", "teacher"),
    "normal_class": lambda value: value >= 0,
    "seed": lambda value: value >= 0,
    "channels": lambda value: value in (1, 3),
    "image_size": lambda value: 0 < value <= 1024,
    "threshold": lambda value: math.isfinite(value) and value >= 0,
    "contamination": lambda value: 0 < value <= 0.5,
    "score": lambda value: value in ("latent", "reconstruction", "fused"),
}


def with_checksum(content: bytes) -> bytes:
    """Put the SHA-256 of an ONNX file into its metadata.

    Args:
        content: of the file, whose metadata has `CHECKSUM_ZEROS` as `CHECKSUM_KEY`.
    """
    (match,) = CHECKSUM.finditer(content)
    start, end = match.span(1)
    return content[:start] + sha256(content).encode() + content[end:]


def verify_checksum(content: bytes) -> bool:
    """Compare an ONNX file with the SHA-256 in its metadata.

    Returns:
        Whether it has one.

    Raises:
        ValueError: it has another one, or several.
    """
    matches = list(CHECKSUM.finditer(content))
    if not matches:
        return False
    start, end = matches[0].span(1)
    zeros = content[:start] + CHECKSUM_ZEROS.encode() + content[end:]
    if len(matches) > 1 or matches[0][1].decode() != sha256(zeros):
        raise ValueError("its content differs from its SHA-256")
    return True


def open_onnx(model: Path | bytes) -> tuple[DetectorInfo, ScoreFunction]:
    """Load a detector that `pkd export` wrote as ONNX, to run in ONNX Runtime on one thread.

    Its checksum is verified, and it scores one image as a trial.

    Args:
        model: the file or its content.

    Raises:
        CheckpointError: the file cannot be read or is damaged, or `pkd export` did not write it.
        PkdError: ONNX Runtime is not installed.
    """
    runtime = onnx_runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1  # the networks are too small to gain from more threads
    options.log_severity_level = 4
    name = str(model) if isinstance(model, Path) else "the exported graph"
    try:
        content = read_bytes(model, MAX_BYTES) if isinstance(model, Path) else model
    except OSError as error:
        raise CheckpointError(
            f"{name} cannot be read ({error.strerror}): give a run folder, or an ONNX file that "
            "pkd export wrote"
        ) from error
    try:
        verified = verify_checksum(content)
    except ValueError as error:
        raise CheckpointError(
            f"{name} is damaged, {error}: restore it from a copy, or export the run again with "
            "pkd export RUN_DIR --output FILE.onnx"
        ) from error
    try:
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the exceptions of ONNX Runtime have no common base class
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{name} is no ONNX file that ONNX Runtime can load ({reason}): give a run folder, or "
            "an ONNX file that pkd export wrote"
        ) from error
    try:
        metadata = session.get_modelmeta().custom_metadata_map
        info = DetectorInfo.from_metadata(metadata)
        if not verified and metadata["pkd.format"] not in UNVERIFIED:
            raise ValueError(f"it has no {CHECKSUM_KEY}")
        (graph_input,) = session.get_inputs()
        dtype = INPUT_TYPES[graph_input.type]
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{name} is an ONNX file, but not one that this version of pkd export wrote ({error}): "
            "export the run again with pkd export RUN_DIR --output FILE.onnx"
        ) from error

    def score(images: np.ndarray) -> np.ndarray:
        try:
            (scores,) = session.run([OUTPUT_NAMES[0]], {INPUT_NAME: images.astype(dtype)})
            scores = np.asarray(scores)
        except Exception as error:  # the exceptions of ONNX Runtime have no common base class
            raise _unusable(name, " ".join(str(error).split())) from error
        if scores.shape != (len(images),) or scores.dtype.kind != "f":
            raise _unusable(name, f"its scores have shape {scores.shape}, type {scores.dtype}")
        if not np.isfinite(scores).all():
            raise _unusable(name, "it gives scores that are not finite")
        return scores

    score(np.zeros((1, info.channels, info.image_size, info.image_size), np.uint8))
    if not verified:
        logger.warning(
            "%s was exported before files had checksums: damage to it is not detected", name
        )
    return info, score


def _unusable(name: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{name} cannot score images of the size that its metadata has ({reason}): export the run "
        "again with pkd export RUN_DIR --output FILE.onnx"
    )


def onnx_runtime() -> ModuleType:
    """Import onnxruntime; PkdError if it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise PkdError(
            "ONNX files need onnxruntime, which is not installed: pip install 'pkdgan[export]'"
        ) from error
    return onnxruntime
