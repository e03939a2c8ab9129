"""Image files: found in a folder or a tar archive, read and decoded one by one."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from anybatch.errors import InputError

__all__ = [
    "MEMORY_LIMIT_BYTES",
    "Extent",
    "ImageFile",
    "decode_image",
    "decode_same_size",
    "find_image_files",
]

MEMORY_LIMIT_BYTES: Final = 4 * 2**30
"""Images are held in memory up to this size."""

_SUFFIXES: Final = (".jpg", ".jpeg", ".png")
_DEEP_MODES: Final = ("I", "F")  # more than 8 bits a channel; "I;16" and its kin begin with I


@dataclass(frozen=True, kw_only=True, slots=True)
class Extent:
    """Where a file lies within an archive that is not compressed.

    Attributes:
        archive: the archive.
        offset: its first byte.
        size: how many bytes it has.
    """

    archive: Path
    offset: int
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFile:
    """An image that was found.

    Attributes:
        parts: its path within the folder or archive, part by part.
        content: where its bytes are, or the bytes themselves.
        whole: the folder or archive, for errors.
    """

    parts: tuple[str, ...]
    content: Path | Extent | bytes
    whole: Path

    @property
    def name(self) -> str:
        """Folder or archive and the path within it."""
        return f"{self.whole}: {'/'.join(self.parts)}"

    def read(self) -> bytes:
        """The bytes of the file.

        Raises:
            InputError: if it cannot be read.
        """
        if isinstance(self.content, bytes):
            return self.content
        try:
            if isinstance(self.content, Path):
                return self.content.read_bytes()
            with self.content.archive.open("rb") as archive:
                archive.seek(self.content.offset)
                return archive.read(self.content.size)
        except OSError as error:
            raise InputError(self.name, f"must be readable: {error.strerror}") from error


def find_image_files(path: Path) -> tuple[list[ImageFile], set[tuple[str, ...]]]:
    """The JPEG and PNG files of a folder or tar archive, sorted by path, and all folders in it.

    Hidden files are passed over. The files of a compressed archive are read into memory, still
    encoded.

    Args:
        path: a folder, or an archive that may be compressed by gzip, bzip2 or xz.

    Raises:
        InputError: if it is neither, is broken, or does not fit in memory.
    """
    files: list[ImageFile] = []
    folders: set[tuple[str, ...]] = set()
    entries = _in_folder(path) if path.is_dir() else _in_archive(path)
    for parts, content in entries:
        if any(part.startswith(".") or part == "__MACOSX" for part in parts):
            continue
        if content is None:
            folders.add(parts)
        elif parts[-1].lower().endswith(_SUFFIXES):
            folders.update(parts[:depth] for depth in range(1, len(parts)))
            files.append(ImageFile(parts=parts, content=content, whole=path))
    files.sort(key=lambda file: file.parts)
    return files, folders


def decode_image(file: ImageFile) -> Image.Image:
    """The image, decoded, in RGB (grey is repeated, transparency dropped).

    Args:
        file: what to decode.

    Raises:
        InputError: if it is not a whole JPEG or PNG image of 8 bits a channel.
    """
    try:
        with Image.open(io.BytesIO(file.read()), formats=("JPEG", "PNG")) as image:
            mode = image.mode
            if mode.startswith(_DEEP_MODES):
                raise InputError(file.name, "must have 8 bits a channel", f"mode {mode}")
            # Pillow warns if a palette with transparency becomes RGB directly.
            whole = image.convert("RGBA") if mode == "P" and image.info else image
            return whole.convert("RGB")
    except InputError:
        raise
    except Exception as error:  # Pillow raises many kinds on broken files
        raise InputError(
            file.name, "must be a whole JPEG or PNG image", _without_address(error)
        ) from error


def decode_same_size(
    files: list[ImageFile], *, side: int | None = None
) -> npt.NDArray[np.uint8] | None:
    """All images in one array, if they have one size and fit in memory.

    Args:
        files: one or more.
        side: height and width they must have, in pixels; None allows any.

    Returns:
        uint8, shape (n, H, W, 3); None if they differ in size or exceed `MEMORY_LIMIT_BYTES`.

    Raises:
        InputError: if one is broken.
    """
    first = np.asarray(decode_image(files[0]))
    if side is not None and first.shape[:2] != (side, side):
        return None
    if first.nbytes * len(files) > MEMORY_LIMIT_BYTES:
        return None
    images = np.empty((len(files), *first.shape), dtype=np.uint8)
    for number, file in enumerate(files):
        image = decode_image(file)
        if (image.height, image.width) != first.shape[:2]:
            return None
        images[number] = np.asarray(image)
    return images


_Entries = Iterator[tuple[tuple[str, ...], "Path | Extent | bytes | None"]]


def _in_folder(root: Path) -> _Entries:
    for folder, _, names in os.walk(root, followlinks=True):
        here = Path(folder)
        parts = here.relative_to(root).parts
        if parts:
            yield parts, None
        for name in names:
            yield (*parts, name), here / name


def _in_archive(path: Path) -> _Entries:
    try:
        # Only without compression can a file be read later on by itself.
        is_compressed = not _is_plain_tar(path)
        with tarfile.open(path, "r:*", tarinfo=_StrictTarInfo) as archive:
            yield from _archive_entries(path, archive, is_compressed)
    except InputError:
        raise
    except Exception as error:  # the decompressors have errors of their own kinds
        raise InputError(
            str(path),
            "must be a folder or a whole .tar, .tar.gz, .tar.bz2 or .tar.xz",
            f"{type(error).__name__}: {error}",
        ) from error


def _archive_entries(path: Path, archive: tarfile.TarFile, is_compressed: bool) -> _Entries:
    bytes_held = 0
    for member in archive:
        parts = PurePosixPath(member.name).parts
        if member.isdir() and parts:
            yield parts, None
        elif member.isreg() and member.name.lower().endswith(_SUFFIXES):
            if not is_compressed:
                yield parts, Extent(archive=path, offset=member.offset_data, size=member.size)
                continue
            bytes_held += member.size
            if bytes_held > MEMORY_LIMIT_BYTES:
                raise InputError(
                    str(path),
                    f"must hold at most {MEMORY_LIMIT_BYTES / 2**30:.0f} GiB if compressed",
                    hint="unpack it and give the folder",
                )
            content = archive.extractfile(member)
            yield parts, b"" if content is None else content.read()


def _is_plain_tar(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return True
    except tarfile.ReadError:
        return False


class _StrictTarInfo(tarfile.TarInfo):
    """Refuses an archive that breaks off, where tarfile would take it as ended."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":
                raise  # two blocks of zeros: the regular end
            raise tarfile.ReadError(f"broken at byte {tarfile_.offset}: {error}") from error


def _without_address(error: Exception) -> str:
    text = str(error)
    return "cannot identify it" if "BytesIO object at" in text else text
