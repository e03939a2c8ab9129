"""Broken files for the tests: data sets, recipes and runs, each made in a folder that is given."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = [
    "CORRUPTED_BYTE",
    "MaliciousPickle",
    "contents",
    "flip_a_byte",
    "jpeg_bytes",
    "latest",
    "latest_checkpoint",
    "whole_labels",
    "write_cifar",
    "write_images",
    "write_json",
    "write_mnist",
    "write_tar",
]

CORRUPTED_BYTE = 0x55


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder with its bytes; None for folders."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def _idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim])
    return header + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


def write_mnist(root: Path, **changed: bytes) -> None:
    """A small MNIST, gzipped; files given by name ("train-labels") have other content."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for stem, count in (("train", 12), ("t10k", 5)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = random.integers(0, 10, count, dtype=np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = changed.get(f"{stem}_{kind[:6]}", gzip.compress(_idx(array), mtime=0))
            (folder / f"{stem}-{kind}-ubyte.gz").write_bytes(content)


def whole_labels(*labels: int) -> bytes:
    """A gzipped IDX file with these labels."""
    return gzip.compress(_idx(np.array(labels, dtype=np.uint8)), mtime=0)


class MaliciousPickle:
    """Would make a folder named "executed" if it were unpickled as Python does."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("executed",)


def write_cifar(root: Path, content: Any) -> None:
    """CIFAR-10's Python batches, the second one holding something else."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    good = {b"data": np.zeros((2, 3072), dtype=np.uint8), b"labels": [1, 2]}
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        what = content if name == "data_batch_2" else good
        (folder / name).write_bytes(pickle.dumps(what, protocol=2))


def jpeg_bytes(shade: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 255 - shade)).save(content, "JPEG")
    return content.getvalue()


def write_images(root: Path, spoilt: bytes) -> None:
    """Two classes of JPEG files, one file of which has the bytes given."""
    for label in ("cat", "dog"):
        for number in range(6):
            path = root / "images" / label / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(spoilt if (label, number) == ("dog", 3) else jpeg_bytes(40 * number))


def write_tar(root: Path) -> None:
    """A tar archive of images that breaks off in the middle."""
    write_images(root, jpeg_bytes(0))
    with tarfile.open(root / "images.tar", "w") as archive:
        archive.add(root / "images", "images")
    content = (root / "images.tar").read_bytes()
    (root / "images.tar").write_bytes(content[: len(content) // 2 + 100])
    shutil.rmtree(root / "images")


def write_json(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def latest(run: Path) -> Path:
    return run / "checkpoints" / "latest.json"


def latest_checkpoint(run: Path) -> Path:
    """The file of a run's latest checkpoint."""
    return latest(run).with_name(json.loads(latest(run).read_text())["file"])


def flip_a_byte(path: Path) -> None:
    """Change the byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= CORRUPTED_BYTE
    path.write_bytes(content)
