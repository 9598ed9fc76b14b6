"""The table of the official files."""

import os

import pytest

from pkd.data import standard
from pkd.data.sources import SOURCES


def test_the_table_is_complete():
    assert (*SOURCES,) == ("mnist", "fashion_mnist", "cifar10") == standard.DATASETS[1:]
    groups = [group for source in SOURCES.values() for group in (*source.train, *source.test)]
    assert len(groups) == 4 + 4 + 6
    files = [file for group in groups for file in group]
    assert len({file.sha256 for file in files}) == len({file.path for file in files}) == 28
    assert all(len(bytes.fromhex(file.sha256)) == 32 for file in files)
    assert all(len(set(source.classes)) == 10 for source in SOURCES.values())


def test_images_and_labels_are_in_the_same_split():
    for name in ("mnist", "fashion_mnist"):
        names = [group[1].path.split("/")[-1] for group in SOURCES[name].train]
        assert names == ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"]
        names = [group[1].path.split("/")[-1] for group in SOURCES[name].test]
        assert names == ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
    names = [group[1].path.split("/")[-1] for group in SOURCES["cifar10"].train]
    assert names == [f"data_batch_{k}" for k in range(1, 6)]
    for binary, pickled in (*SOURCES["cifar10"].train, *SOURCES["cifar10"].test):
        assert binary.path.removeprefix("cifar-10-batches-bin/").removesuffix(".bin") == (
            pickled.path.removeprefix("cifar-10-batches-py/")
        )


@pytest.mark.parametrize(
    ("name", "train", "test", "shape"),
    [
        ("mnist", 60000, 10000, (1, 28, 28)),
        ("fashion_mnist", 60000, 10000, (1, 28, 28)),
        ("cifar10", 50000, 10000, (3, 32, 32)),
    ],
)
def test_the_real_files(name, train, test, shape):
    if not os.environ.get("PKD_DATA_DIR"):
        pytest.skip("PKD_DATA_DIR is not set")
    if any(status.state == "missing" for status in standard.inspect(name)):
        pytest.skip(f"PKD_DATA_DIR has no {name}")
    real = standard.load(name)
    assert real.train_images.shape == (train, *shape)
    assert real.test_images.shape == (test, *shape)
    assert real.train_labels.shape == (train,)
    assert set(real.test_labels) == set(range(10))
