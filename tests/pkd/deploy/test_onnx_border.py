"""What an ONNX file must be before a detector uses it: undamaged, with usable metadata."""

import random
from pathlib import Path

import numpy as np
import onnx
import pytest

from pkd.deploy.inference import CHECKSUM_KEY, CHECKSUM_ZEROS, open_onnx, with_checksum
from pkd.utils.errors import CheckpointError


def with_metadata(file: Path, **metadata: str | None) -> bytes:
    """The content of a file with other metadata, and with the checksum of the new content."""
    model = onnx.load_from_string(file.read_bytes())
    changes = {f"pkd.{name}": value for name, value in metadata.items()}
    properties = {entry.key: entry.value for entry in model.metadata_props}
    properties |= {CHECKSUM_KEY: CHECKSUM_ZEROS} | changes
    del model.metadata_props[:]
    for key, value in properties.items():
        if value is not None:
            model.metadata_props.add(key=key, value=value)
    content = model.SerializeToString()
    return with_checksum(content) if CHECKSUM_KEY.encode() in content else content


def test_no_flipped_bit_is_accepted(small_onnx):
    content, choose = bytearray(small_onnx.read_bytes()), random.Random(0)
    metadata = content.index(b"pkd.")
    positions = [*choose.sample(range(len(content)), 300), *range(metadata, metadata + 300)]
    for position in positions:
        bit = 1 << choose.randrange(8)
        content[position] ^= bit
        with pytest.raises(
            CheckpointError, match=r"damaged|not one that this version|no ONNX file"
        ):
            open_onnx(bytes(content))
        content[position] ^= bit
    open_onnx(bytes(content))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("threshold", value) for value in ("nan", "inf", "-inf", "-1", "x", "")),
        *(("channels", value) for value in ("0", "2", "-1", "3", "1.0", "9" * 5000)),
        *(("image_size", value) for value in ("0", "-32", "31", "64", "1000000")),
        *(("contamination", value) for value in ("nan", "0", "0.6")),
        *(("normal_class", "-1"), ("seed", "-1"), ("network", "judge"), ("score", "best")),
        *(("threshold", None), ("format", None), ("format", "9"), ("sha256", None)),
    ],
)
def test_metadata_that_cannot_be_used_is_refused(name, value, small_onnx):
    with pytest.raises(CheckpointError, match="export the run again"):
        open_onnx(with_metadata(small_onnx, **{name: value}))


def test_files_with_other_inputs_are_refused(small_onnx):
    model = onnx.load_from_string(with_metadata(small_onnx))
    model.graph.input[0].name = "pictures"
    for node in model.graph.node:
        node.input[:] = ["pictures" if name == "images" else name for name in node.input]
    for entry in model.metadata_props:
        entry.value = CHECKSUM_ZEROS if entry.key == CHECKSUM_KEY else entry.value
    with pytest.raises(CheckpointError, match="cannot score images"):
        open_onnx(with_checksum(model.SerializeToString()))


def test_files_from_before_checksums_open_with_a_notice(small_onnx, caplog):
    content = with_metadata(small_onnx, format="2", sha256=None)
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 32, 32), np.uint8)
    _, score = open_onnx(content)
    assert "exported before files had checksums" in caplog.text
    assert (score(images) == open_onnx(small_onnx)[1](images)).all()
    assert caplog.text.count("before files had checksums") == 1


def test_scores_that_are_not_finite_are_refused(small_onnx):
    _, score = open_onnx(small_onnx)
    with pytest.raises(CheckpointError, match="cannot score images"):
        score(np.zeros((1, 3, 32, 32), np.uint8))
