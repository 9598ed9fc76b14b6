"""Parsers of the official file formats, on small synthetic files."""

import gzip
import pickle

import numpy as np
import pytest
from data_file_helpers import (
    encode_binary,
    encode_idx,
    encode_numpy1_pickle,
    encode_pickle,
    encode_python2_pickle,
    random_split,
)

from pkd.data.formats import parse_cifar_binary, parse_cifar_pickle, parse_idx


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_idx_images_and_labels(compress):
    images, labels = random_split(0, 5, (28, 27))
    parsed = parse_idx(compress(encode_idx(images)))
    assert parsed.keys() == {"images"}
    np.testing.assert_array_equal(parsed["images"], images[:, None], strict=True)
    parsed = parse_idx(compress(encode_idx(labels)))
    assert parsed.keys() == {"labels"}
    np.testing.assert_array_equal(parsed["labels"], labels.astype(np.int64), strict=True)


@pytest.mark.parametrize(
    ("parse", "encode"),
    [
        (parse_cifar_binary, encode_binary),
        (parse_cifar_pickle, encode_pickle),
        (parse_cifar_pickle, encode_numpy1_pickle),
        (parse_cifar_pickle, encode_python2_pickle),
    ],
)
@pytest.mark.filterwarnings("error")
def test_cifar_batches(parse, encode):
    images, labels = random_split(0, 5)
    parsed = parse(encode(images, labels))
    np.testing.assert_array_equal(parsed["images"], images, strict=True)
    np.testing.assert_array_equal(parsed["labels"], labels.astype(np.int64), strict=True)


def test_the_module_names_of_both_numpy_versions_are_tested():
    assert b"numpy._core" in encode_pickle(*random_split(0, 5))
    assert b"numpy.core" in encode_numpy1_pickle(*random_split(0, 5))


@pytest.mark.filterwarnings("ignore:dtype")
def test_the_python_2_pickle_of_these_tests_is_valid():
    """NumPy itself reads the hand-written opcodes."""
    images, labels = random_split(0, 5)
    batch = pickle.loads(encode_python2_pickle(images, labels), encoding="latin1")
    np.testing.assert_array_equal(batch["data"], images.reshape(5, -1), strict=True)
    assert batch["labels"] == labels.tolist()
