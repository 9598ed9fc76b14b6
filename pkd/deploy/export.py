"""`pkd export`: one detector of a run as a single file, image in and novelty score out."""

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from pkd.deploy.inference import IMAGES, SCORES, Card, Score, open_onnx
from pkd.scoring.single import Scorer, in_torch
from pkd.utils.errors import PkdError

TOLERANCE = 1e-4  # relative; what is seen lies below 1e-5

OPSET = 18  # of 2022, which every current runtime knows


def to_onnx(scorer: Scorer, card: Card, dtype: torch.dtype) -> tuple[bytes, Score]:
    """Content of an ONNX file with any batch size, and the same file in ONNX Runtime."""
    try:
        import onnxscript  # noqa: F401 (torch.onnx needs it, and names it less kindly)
    except ImportError as error:
        raise PkdError(
            "--format onnx needs onnx, onnxscript and onnxruntime, which are not all installed: "
            "pip install 'pkdgan[export]', or take --format torch"
        ) from error
    with _quiet():
        program = torch.onnx.export(
            scorer,
            (_example(card, dtype),),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[IMAGES],
            output_names=[SCORES],
            dynamic_shapes=_ANY_BATCH,
        )
    model = program.model_proto
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, model.graph):
        del part.metadata_props[:]  # where each node stood in the source: longer than a student
    for key, value in card.metadata().items():
        model.metadata_props.add(key=key, value=value)
    content = model.SerializeToString()
    return content, open_onnx(content)[1]


def to_torch(scorer: Scorer, card: Card, dtype: torch.dtype) -> tuple[bytes, Score]:
    """Content of a .pt2 file with any batch size, and the same file loaded back."""
    with _quiet():
        program = torch.export.export(
            scorer, (_example(card, dtype),), dynamic_shapes=_ANY_BATCH, strict=False
        )
        file = io.BytesIO()
        torch.export.save(program, file, extra_files={"pkd.json": json.dumps(card.metadata())})
    file.seek(0)
    return file.getvalue(), in_torch(torch.export.load(file).module(), dtype)


FORMATS = {"onnx": to_onnx, "torch": to_torch}

_ANY_BATCH = ({0: torch.export.Dim("batch")},)


def _example(card: Card, dtype: torch.dtype) -> Tensor:
    # of two images: a batch of one would be taken for a constant
    return torch.zeros(2, card.channels, card.image_size, card.image_size, dtype=dtype)


@contextmanager
def _quiet() -> Iterator[None]:
    """What exporters say of torchvision and of their own future is nothing to a user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def difference(score: Score, images: np.ndarray, wanted: np.ndarray) -> float:
    """Largest relative difference of scores from `wanted`, over a batch of one and one of the rest.

    Args:
        images: (n, C, H, W) uint8, n at least 2.
        wanted: (n,) scores.
    """
    found = np.concatenate([score(images[:1]), score(images[1:])])
    return float((np.abs(found - wanted) / np.maximum(wanted, np.finfo(np.float32).tiny)).max())
