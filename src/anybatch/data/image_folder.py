"""Image folders: JPEG or PNG files in class folders, or a tar archive of them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from anybatch.data.cifar10 import CIFAR10_NORMALIZATION
from anybatch.data.image_classes import ImageClasses, sort_into_classes
from anybatch.data.image_dataset import ImageDataset
from anybatch.data.image_files import decode_same_size, find_image_files
from anybatch.data.resident import Normalization, ResidentSource
from anybatch.data.source import Source
from anybatch.data.splits import Splits
from anybatch.data.streamed import StreamedSource
from anybatch.errors import InputError

__all__ = ["load_image_folder"]

_IMAGENET_NORMALIZATION: Final = Normalization(
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


def load_image_folder(path: Path, *, image_size: int | None = None) -> Splits:
    """Images in class folders: see `sort_into_classes` for how they may be arranged.

    Images are read as RGB. If all have one size, `image_size` asks for no other and they fit into
    4 GiB as bytes, they are held in memory; otherwise they are streamed and resized to squares.
    They are normalized by the constants of CIFAR-10 if 32x32, else by those of ImageNet.

    Args:
        path: a folder, or a .tar, .tar.gz, .tar.bz2 or .tar.xz.
        image_size: side in pixels that images are resized to; may be left out if all have one
            size.

    Raises:
        InputError: if the folders are not arranged so, an image is broken, images must be streamed
            and `image_size` is missing, or they must be streamed from a compressed archive.
    """
    if image_size is not None and image_size < 1:
        raise InputError("image_size", "must be >= 1", image_size)
    files, folders = find_image_files(path)
    classes = sort_into_classes(files, folders, path)
    sources, side = _resident_sources(classes, image_size) or _streamed_sources(
        classes, image_size, path
    )
    return Splits(
        kind="classification",
        train=sources["train"],
        test=sources["test"],
        validation=sources.get("validation"),
        input_shape=(3, *side),
        num_outputs=len(classes.class_names),
        class_names=classes.class_names,
        attribution=f"image folder {path.name}",
    )


_Sources = tuple[dict[str, Source], tuple[int, int]]


def _resident_sources(classes: ImageClasses, image_size: int | None) -> _Sources | None:
    """Sources and (height, width), or None if the images do not go into memory as they are."""
    images = decode_same_size(
        [file for files in classes.files.values() for file in files], side=image_size
    )
    if images is None:
        return None
    height, width = images.shape[1:3]
    sources: dict[str, Source] = {}
    first = 0
    for split, labels in classes.labels.items():
        sources[split] = ResidentSource.from_arrays(
            images[first : first + len(labels)],
            np.array(labels),
            normalization=_normalization(height, width),
            split=split,
        )
        first += len(labels)
    return sources, (height, width)


def _streamed_sources(classes: ImageClasses, image_size: int | None, path: Path) -> _Sources:
    if isinstance(classes.files["train"][0].content, bytes):
        raise InputError(
            str(path),
            "must be uncompressed, as its images do not have one size and fit into memory",
            hint="unpack it and give the folder",
        )
    if image_size is None:
        raise InputError(
            "image_size",
            f"must be given, as the images in {path} do not have one size and fit into memory",
            hint="--set image_size=224, say",
        )
    sources: dict[str, Source] = {
        split: StreamedSource(
            ImageDataset(
                files=files,
                labels=classes.labels[split],
                image_size=image_size,
                normalization=_normalization(image_size, image_size),
            ),
            split=split,
        )
        for split, files in classes.files.items()
    }
    return sources, (image_size, image_size)


def _normalization(height: int, width: int) -> Normalization:
    return CIFAR10_NORMALIZATION if (height, width) == (32, 32) else _IMAGENET_NORMALIZATION
