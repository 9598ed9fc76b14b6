"""Exported detectors: their metadata, and scoring with ONNX Runtime. Needs no torch."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import numpy as np

from pkd.utils.errors import CheckpointError, PkdError

ScoreFunction = Callable[[np.ndarray], np.ndarray]  # (n, C, H, W) uint8 -> (n,) float32

# Of exported files: it changes with their graph or their metadata keys. Files of version 1 have the
# latent score alone.
FORMAT_VERSION = "2"

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
        elif metadata.get("pkd.format") != FORMAT_VERSION:
            raise ValueError(f"pkd.format is {metadata.get('pkd.format')}, not {FORMAT_VERSION}")
        types: dict[str, Callable[[str], Any]] = get_type_hints(cls)
        return cls(**{name: convert(metadata[f"pkd.{name}"]) for name, convert in types.items()})


def open_onnx(model: Path | bytes) -> tuple[DetectorInfo, ScoreFunction]:
    """Load a detector that `pkd export` wrote as ONNX, to run in ONNX Runtime on one thread.

    Args:
        model: the file or its content.

    Raises:
        CheckpointError: the file cannot be read, or `pkd export` did not write it.
        PkdError: ONNX Runtime is not installed.
    """
    runtime = onnx_runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1  # the networks are too small to gain from more threads
    options.log_severity_level = 4
    name = str(model) if isinstance(model, Path) else "the exported graph"
    try:
        content = model.read_bytes() if isinstance(model, Path) else model
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except OSError as error:
        raise CheckpointError(
            f"{name} cannot be read ({error.strerror}): give a run folder, or an ONNX file that "
            "pkd export wrote"
        ) from error
    except Exception as error:  # the exceptions of ONNX Runtime have no common base class
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{name} is no ONNX file that ONNX Runtime can load ({reason}): give a run folder, or "
            "an ONNX file that pkd export wrote"
        ) from error
    try:
        info = DetectorInfo.from_metadata(session.get_modelmeta().custom_metadata_map)
        dtype = INPUT_TYPES[session.get_inputs()[0].type]
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{name} is an ONNX file, but not one that this version of pkd export wrote ({error}): "
            "export the run again with pkd export RUN_DIR --output FILE.onnx"
        ) from error

    def score(images: np.ndarray) -> np.ndarray:
        (scores,) = session.run([OUTPUT_NAMES[0]], {INPUT_NAME: images.astype(dtype)})
        return scores

    return info, score


def onnx_runtime() -> ModuleType:
    """Import onnxruntime; PkdError if it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise PkdError(
            "ONNX files need onnxruntime, which is not installed: pip install 'pkdgan[export]'"
        ) from error
    return onnxruntime
