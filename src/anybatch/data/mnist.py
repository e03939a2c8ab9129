"""MNIST and Fashion-MNIST, in the files of their makers (IDX, gzipped or not)."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from anybatch.data.resident import Normalization, ResidentSource
from anybatch.data.splits import Splits
from anybatch.errors import InputError

__all__ = ["load_fashion_mnist", "load_mnist", "read_idx"]

_UNSIGNED_BYTE: Final = 8
_FILE_STEMS: Final = {"train": "train", "test": "t10k"}
_MNIST_NORMALIZATION: Final = Normalization(mean=(0.1307,), std=(0.3081,))
_FASHION_NORMALIZATION: Final = Normalization(mean=(0.2860,), std=(0.3530,))
_FASHION_CLASSES: Final = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def load_mnist(root: Path) -> Splits:
    """MNIST: 60,000 + 10,000 handwritten digits of 28x28 pixels.

    Args:
        root: the folder that holds MNIST/raw, as torchvision writes it.

    Raises:
        InputError: if a file is missing or broken.
    """
    return _load(
        root / "MNIST" / "raw",
        _MNIST_NORMALIZATION,
        class_names=tuple(str(digit) for digit in range(10)),
        attribution="LeCun, Cortes and Burges (1998), The MNIST database of handwritten digits",
    )


def load_fashion_mnist(root: Path) -> Splits:
    """Fashion-MNIST: 60,000 + 10,000 pictures of clothes of 28x28 pixels.

    Args:
        root: the folder that holds FashionMNIST/raw, as torchvision writes it.

    Raises:
        InputError: if a file is missing or broken.
    """
    return _load(
        root / "FashionMNIST" / "raw",
        _FASHION_NORMALIZATION,
        class_names=_FASHION_CLASSES,
        attribution="Xiao, Rasul and Vollgraf (2017), Fashion-MNIST (Zalando, MIT licence)",
    )


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The array of unsigned bytes in an IDX file.

    The file begins with two zero bytes, the element type (8 = unsigned byte) and the number of
    dimensions, then has each dimension as a 32-bit big-endian number, then the elements.

    Args:
        path: the file; gzipped if its name ends in .gz.

    Returns:
        Of the shape the file states; read-only.

    Raises:
        InputError: if the file is not of that form.

    Reference:
        LeCun, Cortes and Burges (1998), The MNIST database, "File formats".
    """
    content = _content(path)
    num_dimensions = content[3] if len(content) >= 4 else 0
    if content[:3] != bytes([0, 0, _UNSIGNED_BYTE]) or not 1 <= num_dimensions <= 4:
        raise InputError(
            str(path),
            "must be an IDX file of unsigned bytes (magic number 0x000008..)",
            f"0x{content[:4].hex()}",
        )
    first = 4 + 4 * num_dimensions
    header = content[4:first]
    shape = tuple(
        int.from_bytes(header[start : start + 4], "big") for start in range(0, len(header), 4)
    )
    if len(content) < first or len(content) != first + math.prod(shape):
        raise InputError(
            str(path),
            f"must hold {math.prod(shape)} bytes after its header for shape {shape}",
            max(0, len(content) - first),
        )
    return np.frombuffer(content, dtype=np.uint8, offset=first).reshape(shape)


def _content(path: Path) -> bytes:
    try:
        if path.suffix == ".gz":
            return gzip.decompress(path.read_bytes())
        return path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(str(path), "must be a whole gzip file", str(error)) from error
    except OSError as error:
        raise InputError(str(path), f"must be readable: {error.strerror}") from error


def _load(
    folder: Path,
    normalization: Normalization,
    *,
    class_names: tuple[str, ...],
    attribution: str,
) -> Splits:
    sources = {}
    for split, stem in _FILE_STEMS.items():
        images_path = _found(folder / f"{stem}-images-idx3-ubyte")
        labels_path = _found(folder / f"{stem}-labels-idx1-ubyte")
        images, labels = read_idx(images_path), read_idx(labels_path)
        if images.ndim != 3 or images.shape[1:] != (28, 28):
            raise InputError(str(images_path), "must hold 28x28 images", f"shape {images.shape}")
        if labels.shape != images.shape[:1]:
            raise InputError(
                str(labels_path),
                f"must hold {len(images)} labels, as many as {images_path.name} has images",
                f"shape {labels.shape}",
            )
        if (labels > 9).any():
            first = int((labels > 9).argmax())
            raise InputError(
                str(labels_path), "must hold labels 0 ... 9", f"{labels[first]} at example {first}"
            )
        sources[split] = ResidentSource.from_arrays(
            images[:, :, :, None], labels, normalization=normalization, split=split
        )
    return Splits(
        kind="classification",
        train=sources["train"],
        test=sources["test"],
        input_shape=(1, 28, 28),
        num_outputs=10,
        class_names=class_names,
        attribution=attribution,
    )


def _found(path: Path) -> Path:
    for candidate in (path, path.with_name(f"{path.name}.gz")):
        if candidate.exists():
            return candidate
    raise InputError(f"{path}[.gz]", "must exist", hint="give --data DIR or set ANYBATCH_DATA")
