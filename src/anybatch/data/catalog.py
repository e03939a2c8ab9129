"""Catalog: the built-in data sets by name, and where they are looked for. Does not import torch."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from anybatch.data.published import PUBLISHED
from anybatch.errors import InputError

if TYPE_CHECKING:
    from anybatch.data.splits import Splits

__all__ = [
    "DATA_SETS",
    "CatalogEntry",
    "CatalogRow",
    "catalog_status",
    "data_root",
    "default_model",
    "find_data_root",
    "is_builtin",
    "load_splits",
]

_HINT: Final = "give --data DIR or set ANYBATCH_DATA"


def _load_digits(path: Path, image_size: int | None) -> Splits:
    from anybatch.data.digits import load_digits

    return load_digits()


def _load_mnist(path: Path, image_size: int | None) -> Splits:
    from anybatch.data.mnist import load_mnist

    return load_mnist(path)


def _load_fashion_mnist(path: Path, image_size: int | None) -> Splits:
    from anybatch.data.mnist import load_fashion_mnist

    return load_fashion_mnist(path)


def _load_cifar10(path: Path, image_size: int | None) -> Splits:
    from anybatch.data.cifar10 import load_cifar10

    return load_cifar10(path)


def _load_image_folder(path: Path, image_size: int | None) -> Splits:
    from anybatch.data.image_folder import load_image_folder

    return load_image_folder(path, image_size=image_size)


def _load_text(path: Path, image_size: int | None) -> Splits:
    from anybatch.data.text import load_text

    return load_text(path)


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogEntry:
    """A built-in data set.

    Attributes:
        description: one line for people.
        default_model: name of the network that fits it.
        load: makes the splits from a data root (or from PATH) and an image size.
        looked_for: relative paths, any one of which shows that it is there; empty if it ships
            with the package or takes a path.
        takes_path: whether it is written NAME:PATH.
    """

    description: str
    default_model: str
    load: Callable[[Path, int | None], Splits]
    looked_for: tuple[str, ...] = ()
    takes_path: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogRow:
    """What is known of a built-in data set on this machine.

    Attributes:
        name: as it is given on the command line.
        description: one line for people.
        looked_for: the paths looked at; empty if it ships with the package or takes a path.
        found: whether it is there; None if that depends on the PATH given.
    """

    name: str
    description: str
    looked_for: tuple[Path, ...]
    found: bool | None


DATA_SETS: Final[Mapping[str, CatalogEntry]] = MappingProxyType(
    {
        "digits": CatalogEntry(
            description="1,797 handwritten digits of 8x8 pixels, shipped with the package",
            default_model="mlp",
            load=_load_digits,
        ),
        "mnist": CatalogEntry(
            description="70,000 handwritten digits of 28x28 pixels",
            default_model="lenet",
            load=_load_mnist,
            looked_for=(
                "MNIST/raw/train-images-idx3-ubyte",
                "MNIST/raw/train-images-idx3-ubyte.gz",
            ),
        ),
        "fashion-mnist": CatalogEntry(
            description="70,000 pictures of clothes of 28x28 pixels",
            default_model="lenet",
            load=_load_fashion_mnist,
            looked_for=(
                "FashionMNIST/raw/train-images-idx3-ubyte",
                "FashionMNIST/raw/train-images-idx3-ubyte.gz",
            ),
        ),
        "cifar10": CatalogEntry(
            description="60,000 colour photographs of 32x32 pixels in 10 classes",
            default_model="resnet9",
            load=_load_cifar10,
            looked_for=("cifar-10-batches-py", "cifar-10-batches-bin"),
        ),
        "image-folder": CatalogEntry(
            description="JPEG or PNG files in class folders, or a tar of them",
            default_model="resnet9",
            load=_load_image_folder,
            takes_path=True,
        ),
        "text": CatalogEntry(
            description="a text file, as a character-level language model",
            default_model="gpt",
            load=_load_text,
            takes_path=True,
        ),
    }
)


def is_builtin(name: str) -> bool:
    """Whether a name, with or without :PATH, is that of a built-in data set.

    Args:
        name: as given on the command line.

    Example:
        >>> is_builtin("text:book.txt"), is_builtin("package.module:function")
        (True, False)
    """
    return name.partition(":")[0] in DATA_SETS


def default_model(name: str) -> str:
    """Name of the network that fits a built-in data set.

    Args:
        name: as given on the command line, with or without :PATH.

    Raises:
        InputError: if there is no such data set.

    Example:
        >>> default_model("text:book.txt")
        'gpt'
    """
    return _entry(name).default_model


def find_data_root(option: Path | None) -> list[Path]:
    """The folders data sets are looked for in, in order.

    Args:
        option: the folder given on the command line; None looks into the environment variable
            ANYBATCH_DATA, and without it into ./data.

    Raises:
        InputError: if the folder was named and does not exist.
    """
    named = option if option is not None else os.environ.get("ANYBATCH_DATA") or None
    root = data_root(option)
    if named is not None and not root.is_dir():
        thing = "--data" if option is not None else "ANYBATCH_DATA"
        raise InputError(thing, "must be an existing folder", str(root))
    return [root]


def data_root(option: Path | None) -> Path:
    """The folder that data sets lie in, whether or not it is there; see `find_data_root`.

    Args:
        option: the folder given on the command line.
    """
    named = option if option is not None else os.environ.get("ANYBATCH_DATA") or "data"
    return Path(named).expanduser()


def load_splits(name: str, *, data: Path | None = None, image_size: int | None = None) -> Splits:
    """Load a built-in data set.

    Args:
        name: a name of `DATA_SETS`, with :PATH where it takes one. A relative PATH is looked for
            from here and then in the data root.
        data: the data root; see `find_data_root`.
        image_size: side in pixels that image folders are resized to.

    Raises:
        InputError: if the name is unknown, a file is missing or broken, or `image_size` is given
            where it has no effect.
    """
    base, colon, path = name.partition(":")
    entry = _entry(name)
    if image_size is not None and base != "image-folder":
        raise InputError("image_size", f"must be left out for {base}", image_size)
    if not entry.takes_path:
        if colon:
            raise InputError(base, "must be given without a path", name)
        if not entry.looked_for:
            return entry.load(Path(), image_size)
        return entry.load(_root_of(base, entry, data), image_size)
    if not path:
        raise InputError(base, "must be given with a path", name, hint=f"{base}:PATH")
    return entry.load(_existing(path, data), image_size)


def catalog_status(data: Path | None = None) -> list[CatalogRow]:
    """One row for each built-in data set: what it is and whether it is here.

    Args:
        data: the data root; see `find_data_root`.
    """
    roots = find_data_root(data)
    rows = []
    for name, entry in DATA_SETS.items():
        paths = tuple(root / relative for root in roots for relative in entry.looked_for)
        found = None if entry.takes_path else not paths or any(path.exists() for path in paths)
        shown = f"{name}:PATH" if entry.takes_path else name
        rows.append(
            CatalogRow(name=shown, description=entry.description, looked_for=paths, found=found)
        )
    return rows


def _entry(name: str) -> CatalogEntry:
    base = name.partition(":")[0]
    entry = DATA_SETS.get(base)
    if entry is None:
        nearest = difflib.get_close_matches(base, DATA_SETS, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"one of {', '.join(DATA_SETS)}"
        raise InputError("data set", "must be a known name", base, hint=hint)
    return entry


def _root_of(name: str, entry: CatalogEntry, data: Path | None) -> Path:
    roots = find_data_root(data)
    for root in roots:
        if any((root / relative).exists() for relative in entry.looked_for):
            return root
    raise InputError(
        name,
        f"must have {' or '.join(entry.looked_for)} in {' or '.join(map(str, roots))},"
        " but it is not there",
        hint=_download_hint(name, data) if name in PUBLISHED else _HINT,
    )


def _download_hint(name: str, data: Path | None) -> str:
    there = f" --data {shlex.quote(str(data))}" if data is not None else ""
    return f"{_HINT}, or fetch it: anybatch tasks --download {name}{there}"


def _existing(path: str, data: Path | None) -> Path:
    given = Path(path).expanduser()
    if given.exists():
        return given
    roots = [] if given.is_absolute() else find_data_root(data)
    for root in roots:
        if (root / given).exists():
            return root / given
    tried = " or ".join(str(candidate) for candidate in [given, *(root / given for root in roots)])
    raise InputError("path of the data", "must exist", tried, hint=_HINT)
