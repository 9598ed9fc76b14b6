"""The official files of the standard data sets: paths, sizes, checksums and download addresses.

The SHA-256 of the idx files and of CIFAR-10's binary batches were computed from files with the MD5
of the publisher. Those of CIFAR-10's pickled batches and archive are the ones that several public
projects agree on.
"""

from collections.abc import Callable
from dataclasses import dataclass

from pkd.data.formats import Arrays, parse_cifar_binary, parse_cifar_pickle, parse_idx


@dataclass(frozen=True)
class OfficialFile:
    """A published file.

    Attributes:
        path: relative to the data folder.
        size: in bytes.
        sha256: hexadecimal checksum.
        parse: parser for the verified content.
    """

    path: str
    size: int
    sha256: str
    parse: Callable[[bytes], Arrays]


# Files with the same arrays, of which any one is enough. The first is the one to download.
Alternatives = tuple[OfficialFile, ...]


@dataclass(frozen=True)
class Source:
    """The files of a data set.

    Attributes:
        classes: class names, index = label.
        train, test: the files of each split; the order of images and labels is the same.
        url: prefix of each file's address, or the address of one archive with all files.
        archive_sha256: checksum of that archive; None if the files are published one by one.
    """

    classes: tuple[str, ...]
    train: tuple[Alternatives, ...]
    test: tuple[Alternatives, ...]
    url: str
    archive_sha256: str | None = None


# The columns of the tables are SHA-256, size in bytes and file name.
MNIST_FILES = """
440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609  9912422 train-images-idx3-ubyte.gz
ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db 47040016 train-images-idx3-ubyte
3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c    28881 train-labels-idx1-ubyte.gz
65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5    60008 train-labels-idx1-ubyte
8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6  1648877 t10k-images-idx3-ubyte.gz
0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7  7840016 t10k-images-idx3-ubyte
f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6     4542 t10k-labels-idx1-ubyte.gz
ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2    10008 t10k-labels-idx1-ubyte
"""
FASHION_MNIST_FILES = """
3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84 26421880 train-images-idx3-ubyte.gz
c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888 47040016 train-images-idx3-ubyte
a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845    29515 train-labels-idx1-ubyte.gz
bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9    60008 train-labels-idx1-ubyte
346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073  4422102 t10k-images-idx3-ubyte.gz
5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b  7840016 t10k-images-idx3-ubyte
67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5     5148 t10k-labels-idx1-ubyte.gz
0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34    10008 t10k-labels-idx1-ubyte
"""
CIFAR_BINARY_FILES = """
cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5 30730000 data_batch_1.bin
a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed 30730000 data_batch_2.bin
bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67 30730000 data_batch_3.bin
014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48 30730000 data_batch_4.bin
755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add 30730000 data_batch_5.bin
8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b 30730000 test_batch.bin
"""
CIFAR_PICKLE_FILES = """
54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd 31035704 data_batch_1
766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8 31035320 data_batch_2
0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9 31035999 data_batch_3
3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b 31035696 data_batch_4
d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154 31035623 data_batch_5
f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831 31035526 test_batch
"""


def _files(table: str, folder: str, parse: Callable[[bytes], Arrays]) -> list[OfficialFile]:
    """The files of a table, whose paths start with `folder`."""
    rows = (line.split() for line in table.split("\n") if line)
    return [OfficialFile(f"{folder}/{name}", int(size), sha, parse) for sha, size, name in rows]


def _idx_source(classes: tuple[str, ...], table: str, folder: str, url: str) -> Source:
    files = _files(table, folder, parse_idx)
    compressed, plain = files[::2], files[1::2]
    pairs = tuple(zip(compressed, plain, strict=True))
    return Source(classes, train=pairs[:2], test=pairs[2:], url=url)


def _cifar_source(classes: tuple[str, ...], url: str, archive_sha256: str) -> Source:
    binary = _files(CIFAR_BINARY_FILES, "cifar-10-batches-bin", parse_cifar_binary)
    pickled = _files(CIFAR_PICKLE_FILES, "cifar-10-batches-py", parse_cifar_pickle)
    pairs = tuple(zip(binary, pickled, strict=True))
    return Source(classes, pairs[:5], pairs[5:], url, archive_sha256)


DIGIT_CLASSES = tuple("0123456789")

SOURCES: dict[str, Source] = {
    "mnist": _idx_source(
        DIGIT_CLASSES,
        MNIST_FILES,
        "MNIST/raw",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
    ),
    "fashion_mnist": _idx_source(
        (
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        FASHION_MNIST_FILES,
        "FashionMNIST/raw",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    "cifar10": _cifar_source(
        (
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        ),
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
}
