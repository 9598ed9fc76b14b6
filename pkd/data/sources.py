"""The official files of the data sets: what they are called, their checksums, how they are read."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from pkd.data.formats import (
    _CIFAR_SHAPE,
    Arrays,
    cifar_bin,
    cifar_pickle,
    gunzipped,
    idx_images,
    idx_labels,
)


@dataclass(frozen=True)
class Form:
    """One published form of a file: its path below the data folder, its MD5, its reader."""

    path: str
    md5: str
    decode: Callable[[bytes], Arrays]


Part = tuple[Form, ...]  # forms of the same content, any of which will do; the first is downloaded


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Attributes:
        classes: names, index = label.
        shape: (C, H, W) of an image.
        train, test: the parts of each split, images and labels in the same order.
        url: the home of the files, or of the one archive that holds them all.
        archive_md5: of that archive; None where the files lie at the url one by one.
    """

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    train: tuple[Part, ...]
    test: tuple[Part, ...]
    url: str
    archive_md5: str | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.train + self.test


def _idx_part(stem: str, decode: Callable[[bytes], Arrays], packed: str, plain: str) -> Part:
    return (
        Form(f"{stem}.gz", packed, functools.partial(gunzipped, decode=decode)),
        Form(stem, plain, decode),
    )


def _idx_source(folder: str, classes: tuple[str, ...], url: str, md5: dict[str, list]) -> Source:
    def split(prefix: str) -> tuple[Part, ...]:
        stem = f"{folder}/raw/{prefix}"
        return (
            _idx_part(f"{stem}-images-idx3-ubyte", idx_images, *md5[f"{prefix}-images"]),
            _idx_part(f"{stem}-labels-idx1-ubyte", idx_labels, *md5[f"{prefix}-labels"]),
        )

    return Source(classes, (1, 28, 28), split("train"), split("t10k"), url)


def _cifar_part(name: str, binary: str, pickled: str) -> Part:
    return (
        Form(f"cifar-10-batches-bin/{name}.bin", binary, cifar_bin),
        Form(f"cifar-10-batches-py/{name}", pickled, cifar_pickle),
    )


TEN_DIGITS = tuple("0123456789")

SOURCES: dict[str, Source] = {
    "mnist": _idx_source(
        "MNIST",
        TEN_DIGITS,
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {  # MD5 of the .gz file, MD5 of its content
            "train-images": [
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "6bbc9ace898e44ae57da46a324031adb",
            ],
            "train-labels": [
                "d53e105ee54ea40749a09fcbcd1e9432",
                "a25bea736e30d166cdddb491f175f624",
            ],
            "t10k-images": ["9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"],
            "t10k-labels": ["ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"],
        },
    ),
    "fashion_mnist": _idx_source(
        "FashionMNIST",
        (
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images": [
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            ],
            "train-labels": [
                "25c81989df183df01b3e8a0aad5dffbe",
                "9018921c3c673c538a1fc5bad174d6f9",
            ],
            "t10k-images": ["bef4ecab320f06d8554ea6380940ec79", "8181f5470baa50b63fa0f6fddb340f0a"],
            "t10k-labels": ["bb300cfdad3c16e7a12a480ee83cd310", "15d484375f8d13e6eb1aabb0c3f46965"],
        },
    ),
    "cifar10": Source(
        classes=(
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        ),
        shape=_CIFAR_SHAPE,
        train=tuple(
            _cifar_part(f"data_batch_{i}", binary, pickled)
            for i, binary, pickled in (
                (1, "5dd7e06a14cb22eb9f671a540d1b7c25", "c99cafc152244af753f735de768cd75f"),
                (2, "5ea93a67294ea407fff1d09f752e9692", "d4bba439e000b95fd0a9bffe97cbabec"),
                (3, "942cd6a4bcdd0dd3c604fbe906cb4421", "54ebc095f3ab1f0389bbae665268c751"),
                (4, "ae636b3ba5c66a11e91e8cb52e771fcb", "634d18415352ddfa80567beed471001a"),
                (5, "53f37980c15c3d472c316c40844f3f0d", "482c414d41f54cd18b22e5b47cb7c3cb"),
            )
        ),
        test=(
            _cifar_part(
                "test_batch", "803d5f7f4d78ea53de84dbe85f74fb6d", "40351d587109b95175f43aff81a1287e"
            ),
        ),
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        archive_md5="c32a1d4ab5d03f1284b67883e8d13530",
    ),
}
