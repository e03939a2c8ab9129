"""Small data sets in the files of their makers, written for the tests."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = [
    "cifar_images",
    "gzipped",
    "idx_bytes",
    "png_bytes",
    "write_cifar",
    "write_mnist",
    "write_tar",
]


def idx_bytes(array: np.ndarray) -> bytes:
    """An IDX file of unsigned bytes."""
    header = bytes([0, 0, 8, array.ndim])
    return header + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


def gzipped(content: bytes) -> bytes:
    """The same bytes at any time: they name test cases, and two workers must agree on the names."""
    return gzip.compress(content, mtime=0)


def write_mnist(root: Path, name: str = "MNIST", *, packed: bool = True) -> dict[str, np.ndarray]:
    """Both splits in the layout of torchvision; returns the arrays by file stem."""
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    arrays = {}
    for stem, count in (("train", 12), ("t10k", 5)):
        arrays[f"{stem}-images-idx3-ubyte"] = random.integers(
            0, 256, (count, 28, 28), dtype=np.uint8
        )
        arrays[f"{stem}-labels-idx1-ubyte"] = random.integers(0, 10, count, dtype=np.uint8)
    for file_name, array in arrays.items():
        content = idx_bytes(array)
        if packed:
            (folder / f"{file_name}.gz").write_bytes(gzipped(content))
        else:
            (folder / file_name).write_bytes(content)
    return arrays


def cifar_images() -> tuple[np.ndarray, np.ndarray]:
    """Six batches of four images (channels first, flat) and their labels."""
    random = np.random.default_rng(1)
    return (
        random.integers(0, 256, (6, 4, 3072), dtype=np.uint8),
        random.integers(0, 10, (6, 4), dtype=np.uint8),
    )


def write_cifar(root: Path, *, binary: bool) -> None:
    """Five training batches and a test batch."""
    folder = root / ("cifar-10-batches-bin" if binary else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for name, images, labels in zip(names, *cifar_images(), strict=True):
        if binary:
            rows = np.concatenate([labels[:, None], images], axis=1)
            (folder / f"{name}.bin").write_bytes(rows.tobytes())
        else:
            batch = {b"data": images, b"labels": labels.tolist(), b"batch_label": b"one"}
            (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


def png_bytes(shade: int, *, size: tuple[int, int] = (6, 6), mode: str = "RGB") -> bytes:
    """An image of one colour; `size` is (width, height)."""
    content = io.BytesIO()
    colour = (shade, 0, 255 - shade) if mode == "RGB" else shade
    Image.new(mode, size, colour).save(content, "PNG")
    return content.getvalue()


def write_tar(path: Path, files: dict[str, bytes], *, mode: str = "w") -> Path:
    """An archive with these files."""
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path
