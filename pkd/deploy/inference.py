"""A detector that has left its run: what it tells of itself, and ONNX Runtime. Needs no torch."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from pkd.utils.errors import PkdError

Score = Callable[[np.ndarray], np.ndarray]  # (n, C, H, W) uint8 -> (n,) float32

FORMAT = "1"  # of the exported files; another one means another graph or other keys

IMAGES, SCORES = "images", "scores"  # the graph's input and output

INPUT_TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}


@dataclass(frozen=True)
class Card:
    """What one has to know of a detector to use it.

    Attributes:
        network: "student" or "teacher".
        dataset: that it was trained on.
        normal_class, class_name: the class that is normal to it.
        seed: of its training.
        channels: of its images, 1 (grey) or 3 (RGB).
        image_size: their height and width.
        threshold: score beyond which an image is novel.
        contamination: share of normal images that the threshold lets be called novel.
        version: of pkdgan, that trained it.
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

    def metadata(self) -> dict[str, str]:
        """As the properties of an exported file, "pkd.<name>"."""
        texts = {f"pkd.{field.name}": str(getattr(self, field.name)) for field in fields(self)}
        return {"pkd.format": FORMAT} | texts

    @classmethod
    def from_metadata(cls, metadata: dict[str, str]) -> "Card":
        """What `metadata` was made of; KeyError or ValueError if it is of another format."""
        if metadata.get("pkd.format") != FORMAT:
            raise ValueError(f"pkd.format is {metadata.get('pkd.format')}, not {FORMAT}")
        return cls(**{f.name: f.type(metadata[f"pkd.{f.name}"]) for f in fields(cls)})


def open_onnx(model: Path | bytes) -> tuple[Card, Score]:
    """A detector in an ONNX file that `pkd export` wrote, run by ONNX Runtime on one thread.

    Args:
        model: the file, or its content.

    Raises:
        PkdError: it is no ONNX file or none of ours, or ONNX Runtime is not installed.
    """
    runtime = onnx_runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1  # these networks are too small to share out
    options.log_severity_level = 4
    name = str(model) if isinstance(model, Path) else "the exported graph"
    try:
        content = model.read_bytes() if isinstance(model, Path) else model
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except OSError as error:
        raise PkdError(
            f"{name} cannot be read ({error.strerror}): name a run folder, or an ONNX file that "
            "pkd export wrote"
        ) from error
    except Exception as error:  # ONNX Runtime's errors have no common name of their own
        why = " ".join(str(error).split())
        raise PkdError(
            f"{name} is no ONNX file that ONNX Runtime can load ({why}): name a run folder, or an "
            "ONNX file that pkd export wrote"
        ) from error
    try:
        card = Card.from_metadata(session.get_modelmeta().custom_metadata_map)
        dtype = INPUT_TYPES[session.get_inputs()[0].type]
    except (KeyError, ValueError) as error:
        raise PkdError(
            f"{name} is an ONNX file, but not one that this version of pkd export wrote ({error}): "
            "export the run again with pkd export RUN_DIR --output FILE.onnx"
        ) from error

    def score(images: np.ndarray) -> np.ndarray:
        (scores,) = session.run([SCORES], {IMAGES: images.astype(dtype)})
        return scores

    return card, score


def onnx_runtime():
    """The module onnxruntime; PkdError where it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise PkdError(
            "ONNX files need onnxruntime, which is not installed: pip install 'pkdgan[export]'"
        ) from error
    return onnxruntime
