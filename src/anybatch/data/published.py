"""What is published where: the data sets that can be downloaded, their mirrors and checksums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeAlias

__all__ = [
    "PUBLISHED",
    "DataFile",
    "GzippedFiles",
    "PublishedData",
    "PublishedFile",
    "TarArchive",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedFile:
    """A file as its mirrors serve it.

    Attributes:
        name: of the file, which is appended to a mirror's address.
        num_bytes: its length.
        sha256: its checksum, in hexadecimal digits.
    """

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFile:
    """A file as a loader reads it, unpacked.

    Attributes:
        name: of the file.
        md5: its checksum, in hexadecimal digits; the only one that the makers give.
        is_read: False for a file that belongs to the set but that no loader of ours reads.
    """

    name: str
    md5: str
    is_read: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class GzippedFiles:
    """A data set of files, each served gzipped; they lie in the data root gzipped or not.

    Attributes:
        name: of the data set in the catalog.
        folder: below the data root.
        mirrors: addresses that a file's name is appended to, tried in this order.
        files: each as it is served and as it is unpacked, in the order of their download.
    """

    name: str
    folder: str
    mirrors: tuple[str, ...]
    files: tuple[tuple[PublishedFile, DataFile], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TarArchive:
    """A data set served as one tar archive that holds one folder of files.

    Attributes:
        name: of the data set in the catalog.
        folder: below the data root, and the folder in the archive.
        mirrors: addresses that the archive's name is appended to, tried in this order.
        archive: as it is served.
        members: the files in that folder which are unpacked.
    """

    name: str
    folder: str
    mirrors: tuple[str, ...]
    archive: PublishedFile
    members: tuple[DataFile, ...]


PublishedData: TypeAlias = GzippedFiles | TarArchive


def _idx(stem: str, num_bytes: int, sha256: str, md5: str) -> tuple[PublishedFile, DataFile]:
    served = PublishedFile(name=f"{stem}.gz", num_bytes=num_bytes, sha256=sha256)
    return served, DataFile(name=stem, md5=md5)


# The training images come last, because they are what shows that a data set is there.
_MNIST: Final = GzippedFiles(
    name="mnist",
    folder="MNIST/raw",
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    files=(
        _idx(
            "t10k-labels-idx1-ubyte",
            4_542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            "27ae3e4e09519cfbb04c329615203637",
        ),
        _idx(
            "t10k-images-idx3-ubyte",
            1_648_877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "2646ac647ad5339dbf082846283269ea",
        ),
        _idx(
            "train-labels-idx1-ubyte",
            28_881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "a25bea736e30d166cdddb491f175f624",
        ),
        _idx(
            "train-images-idx3-ubyte",
            9_912_422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "6bbc9ace898e44ae57da46a324031adb",
        ),
    ),
)
_FASHION_MNIST: Final = GzippedFiles(
    name="fashion-mnist",
    folder="FashionMNIST/raw",
    mirrors=(
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    files=(
        _idx(
            "t10k-labels-idx1-ubyte",
            5_148,
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ),
        _idx(
            "t10k-images-idx3-ubyte",
            4_422_102,
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "8181f5470baa50b63fa0f6fddb340f0a",
        ),
        _idx(
            "train-labels-idx1-ubyte",
            29_515,
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "9018921c3c673c538a1fc5bad174d6f9",
        ),
        _idx(
            "train-images-idx3-ubyte",
            26_421_880,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        ),
    ),
)
_CIFAR10: Final = TarArchive(
    name="cifar10",
    folder="cifar-10-batches-py",
    mirrors=(
        "https://www.cs.toronto.edu/~kriz/",
        "https://dataset.bj.bcebos.com/cifar/",
    ),
    archive=PublishedFile(
        name="cifar-10-python.tar.gz",
        num_bytes=170_498_071,
        sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    ),
    members=(
        DataFile(name="data_batch_1", md5="c99cafc152244af753f735de768cd75f"),
        DataFile(name="data_batch_2", md5="d4bba439e000b95fd0a9bffe97cbabec"),
        DataFile(name="data_batch_3", md5="54ebc095f3ab1f0389bbae665268c751"),
        DataFile(name="data_batch_4", md5="634d18415352ddfa80567beed471001a"),
        DataFile(name="data_batch_5", md5="482c414d41f54cd18b22e5b47cb7c3cb"),
        DataFile(name="test_batch", md5="40351d587109b95175f43aff81a1287e"),
        DataFile(name="batches.meta", md5="5ff9c542aee3614f3951f8cda6e48888", is_read=False),
    ),
)

PUBLISHED: Final[Mapping[str, PublishedData]] = MappingProxyType(
    {published.name: published for published in (_MNIST, _FASHION_MNIST, _CIFAR10)}
)
