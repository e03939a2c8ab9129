"""Image classes: the split and class of each image file, from the names of its folders."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from anybatch.data.draws import permutation
from anybatch.data.image_files import ImageFile
from anybatch.errors import InputError

__all__ = ["ImageClasses", "sort_into_classes"]

_SPLITS: Final = ("train", "test", "val")
_TEST_FRACTION: Final = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageClasses:
    """Files and labels of each split.

    Attributes:
        class_names: sorted; a label is a place in it.
        files: of each split ("train", "test" and perhaps "validation").
        labels: of each split, one for each file.
    """

    class_names: tuple[str, ...]
    files: dict[str, list[ImageFile]]
    labels: dict[str, list[int]]


def sort_into_classes(
    files: list[ImageFile], folders: set[tuple[str, ...]], path: Path
) -> ImageClasses:
    """Read splits and classes off the paths.

    Either the top folders are train/ and test/ (and perhaps val/, which becomes the validation
    split) with a folder for each class, or they are the class folders themselves. With train/ and
    val/ alone, val/ is the test split, as nothing else was held out. Without either, a fixed 10 %
    of each class, at least one image, is. A single folder around everything is passed over.

    Args:
        files: all image files, sorted.
        folders: all folders, also those without images.
        path: the folder or archive, for errors.

    Raises:
        InputError: if the folders are not arranged so, a class has no images, or the splits have
            different classes.
    """
    if not files:
        raise InputError(str(path), "must hold JPEG or PNG images in class folders")
    depth = _depth_of_wrapping(files)
    below = {folder[depth:] for folder in folders if len(folder) > depth}
    tops = {folder[0] for folder in below}
    if not tops & set(_SPLITS):
        classes = _classes_of(files, below, (), depth, path)
        return _with_test_held_out(classes, path)
    if "train" not in tops or not tops <= set(_SPLITS):
        raise InputError(
            str(path),
            "must hold the folders train and test (and perhaps val), or class folders alone",
            ", ".join(sorted(tops)),
        )
    splits = {top: _classes_of(files, below, (top,), depth, path) for top in sorted(tops)}
    _check_same_classes(splits, path)
    if len(splits) == 1:
        return _with_test_held_out(splits["train"], path)
    if "test" not in splits:
        return _numbered({"train": splits["train"], "test": splits["val"]})
    named = {"validation" if top == "val" else top: classes for top, classes in splits.items()}
    return _numbered(named)


def _depth_of_wrapping(files: list[ImageFile]) -> int:
    depth = 0
    while (
        len({file.parts[depth] for file in files}) == 1
        and files[0].parts[depth] not in _SPLITS
        and all(len(file.parts) >= depth + 3 for file in files)
    ):
        depth += 1
    return depth


def _classes_of(
    files: list[ImageFile],
    folders: Iterable[tuple[str, ...]],
    prefix: tuple[str, ...],
    depth: int,
    path: Path,
) -> dict[str, list[ImageFile]]:
    """The files of each class folder under `prefix`."""
    level = len(prefix)
    names = {folder[level] for folder in folders if folder[:level] == prefix and folder[level:]}
    classes: dict[str, list[ImageFile]] = {name: [] for name in sorted(names)}
    for file in files:
        parts = file.parts[depth:]
        if parts[:level] != prefix:
            continue
        if len(parts) < level + 2:
            raise InputError(file.name, "must lie in a class folder")
        classes[parts[level]].append(file)
    place = "/".join((str(path), *prefix))
    for name, members in classes.items():
        if not members:
            raise InputError(f"{place}/{name}", "must hold at least one JPEG or PNG image")
    if len(classes) < 2:
        raise InputError(
            place, "must hold at least two class folders", ", ".join(classes) or "none"
        )
    return classes


def _check_same_classes(splits: dict[str, dict[str, list[ImageFile]]], path: Path) -> None:
    for top, classes in splits.items():
        differing = sorted(classes.keys() ^ splits["train"].keys())
        if differing:
            raise InputError(
                f"{path}: train and {top}",
                "must have the same class folders, these are in only one",
                ", ".join(differing),
            )


def _with_test_held_out(classes: dict[str, list[ImageFile]], path: Path) -> ImageClasses:
    splits: dict[str, dict[str, list[ImageFile]]] = {"train": {}, "test": {}}
    for label, (name, files) in enumerate(classes.items()):
        if len(files) < 2:
            raise InputError(
                f"{path}/{name}", "must hold at least two images, as one is held out to test"
            )
        num_test = max(1, round(len(files) * _TEST_FRACTION))
        order = permutation(len(files), seed=label, epoch=0).tolist()
        splits["test"][name] = [files[number] for number in sorted(order[:num_test])]
        splits["train"][name] = [files[number] for number in sorted(order[num_test:])]
    return _numbered(splits)


def _numbered(splits: dict[str, dict[str, list[ImageFile]]]) -> ImageClasses:
    return ImageClasses(
        class_names=tuple(splits["train"]),
        files={
            split: [file for members in classes.values() for file in members]
            for split, classes in splits.items()
        },
        labels={
            split: [label for label, files in enumerate(classes.values()) for _ in files]
            for split, classes in splits.items()
        },
    )
