"""CIFAR-10, in the files of its makers: the Python batches or the binary ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from anybatch.data.resident import Normalization, ResidentSource
from anybatch.data.safe_pickle import read_pickle
from anybatch.data.splits import Splits
from anybatch.errors import InputError

__all__ = ["CIFAR10_NORMALIZATION", "load_cifar10"]

CIFAR10_NORMALIZATION: Final = Normalization(
    mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)
)
_BYTES_PER_IMAGE: Final = 3 * 32 * 32
_BATCHES: Final = {
    "train": ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"),
    "test": ("test_batch",),
}
_CLASSES: Final = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def load_cifar10(root: Path) -> Splits:
    """CIFAR-10: 50,000 + 10,000 colour photographs of 32x32 pixels in 10 classes.

    Python batches are read without executing anything in them (see `safe_pickle`).

    Args:
        root: the folder that holds cifar-10-batches-py (read if both are there) or
            cifar-10-batches-bin.

    Raises:
        InputError: if a file is missing or broken.
    """
    folder = root / "cifar-10-batches-py"
    read, suffix = _read_python_batch, ""
    if not folder.is_dir():
        folder, read, suffix = root / "cifar-10-batches-bin", _read_binary_batch, ".bin"
    sources = {}
    for split, names in _BATCHES.items():
        parts = [read(_existing(folder / f"{name}{suffix}")) for name in names]
        images = np.concatenate([images for images, _ in parts])
        labels = np.concatenate([labels for _, labels in parts])
        sources[split] = ResidentSource.from_arrays(
            np.ascontiguousarray(images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)),
            labels,
            normalization=CIFAR10_NORMALIZATION,
            split=split,
        )
    return Splits(
        kind="classification",
        train=sources["train"],
        test=sources["test"],
        input_shape=(3, 32, 32),
        num_outputs=10,
        class_names=_CLASSES,
        attribution="Krizhevsky (2009), Learning multiple layers of features from tiny images",
    )


def _read_python_batch(path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    batch = read_pickle(path)
    if not isinstance(batch, dict):
        raise InputError(str(path), "must hold a dict", type(batch).__name__)
    images, labels = _entry(batch, "data", path), _entry(batch, "labels", path)
    if (
        not isinstance(images, np.ndarray)
        or images.dtype != np.uint8
        or images.ndim != 2
        or images.shape[1] != _BYTES_PER_IMAGE
    ):
        shown = getattr(images, "shape", type(images).__name__)
        raise InputError(str(path), "must hold data of shape (n, 3072) and uint8", shown)
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise InputError(str(path), "must hold labels as a list of whole numbers")
    if len(labels) != len(images):
        raise InputError(str(path), f"must hold {len(images)} labels", len(labels))
    return images, _checked_labels(np.array(labels, dtype=np.int64), path)


def _read_binary_batch(path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    if not content.size or content.size % (1 + _BYTES_PER_IMAGE):
        raise InputError(
            str(path), "must hold 3,073 bytes for each image (label, then pixels)", content.size
        )
    rows = content.reshape(-1, 1 + _BYTES_PER_IMAGE)
    return rows[:, 1:], _checked_labels(rows[:, 0].astype(np.int64), path)


def _entry(batch: dict[Any, Any], key: str, path: Path) -> Any:
    # Python 2 wrote the keys as bytes.
    for form in (key.encode(), key):
        if form in batch:
            return batch[form]
    raise InputError(str(path), f"must hold an entry {key!r}", f"keys {list(batch)[:5]}")


def _checked_labels(labels: npt.NDArray[np.int64], path: Path) -> npt.NDArray[np.int64]:
    outside = (labels < 0) | (labels > 9)
    if outside.any():
        first = int(outside.argmax())
        raise InputError(
            str(path), "must hold labels 0 ... 9", f"{labels[first]} at example {first}"
        )
    return labels


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise InputError(str(path), "must exist", hint="give --data DIR or set ANYBATCH_DATA")
    return path
