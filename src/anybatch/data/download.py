"""Download: a published data set into the data root, whole or not at all where loaders look."""

from __future__ import annotations

import contextlib
import difflib
import gzip
import hashlib
import os
import shutil
import sys
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from anybatch.data.catalog import data_root
from anybatch.data.fetch import checksum, fetch, not_writable
from anybatch.data.published import (
    PUBLISHED,
    DataFile,
    GzippedFiles,
    PublishedData,
    PublishedFile,
    TarArchive,
)
from anybatch.errors import InputError

__all__ = ["Download", "download_data", "download_published", "published_data"]

_MOVE_AWAY: Final = "move it away, then download again"
_FOLDER_AWAY: Final = "move the folder away, then download again"
_BROKEN_ARCHIVE: Final = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)


@dataclass(frozen=True, kw_only=True, slots=True)
class Download:
    """What a download has done.

    Attributes:
        name: of the data set.
        folder: where its files lie.
        new_files: names of those that were not there before; empty if all were, and were right.
    """

    name: str
    folder: Path
    new_files: tuple[str, ...]


def download_data(name: str, data: Path | str | None = None, *, progress: bool = True) -> Download:
    """Download a data set into the data root, laid out as the loaders look for it.

    What is there and has its checksum is not fetched again; what is there and has not is never
    overwritten. An interrupted download goes on where it stopped. Several processes may call this
    at once: one downloads, the others wait for it.

    Args:
        name: "mnist", "fashion-mnist" or "cifar10".
        data: data root, made if its parent is there; None takes ANYBATCH_DATA, then ./data.
        progress: whether to show it on standard error.

    Raises:
        InputError: unknown name, a file of the user's is in the way, no mirror brings it, or the
            disk is full.
    """
    root = data_root(Path(data) if data is not None else None)
    return download_published(published_data(name), root, progress=progress)


def published_data(name: str) -> PublishedData:
    """What is published of a data set.

    Args:
        name: as in the catalog.

    Raises:
        InputError: nothing is published under that name.

    Example:
        >>> published_data("cifar10").folder
        'cifar-10-batches-py'
    """
    if name not in PUBLISHED:
        rule = f"must be one of: {', '.join(PUBLISHED)}"
        nearest = difflib.get_close_matches(name, PUBLISHED, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else ""
        raise InputError("data set to download", rule, name, hint=hint)
    return PUBLISHED[name]


def download_published(
    published: PublishedData, root: Path, *, progress: bool = True, timeout_seconds: float = 30.0
) -> Download:
    """Download a data set that is described by hand; see `download_data`.

    Args:
        published: its files, mirrors and checksums.
        root: data root.
        progress: whether to show it on standard error.
        timeout_seconds: after which a mirror that is silent is left for the next one.

    Raises:
        InputError: as in `download_data`.
    """
    folder = root / published.folder
    missing = _missing(published, root)
    if missing:
        _make_folder(root)
        with _alone(root / f".{published.name}.lock", published.name, progress=progress):
            missing = _missing(published, root)  # another process may have been faster
            if isinstance(published, TarArchive):
                if missing:
                    _fetch_archive(published, root, progress, timeout_seconds)
            else:
                for file in missing:
                    _make_folder(folder, parents=True)
                    part = fetch(
                        file,
                        published.mirrors,
                        folder,
                        progress=progress,
                        timeout_seconds=timeout_seconds,
                    )
                    _put_in_place(part, folder / file.name)
    return Download(
        name=published.name, folder=folder, new_files=tuple(file.name for file in missing)
    )


# --- what is there -------------------------------------------------------------------------------


def _missing(published: PublishedData, root: Path) -> list[PublishedFile]:
    """The published files that must come; refuses what is there and is something else."""
    folder = root / published.folder
    if isinstance(published, GzippedFiles):
        return [served for served, data in published.files if not _is_there(folder, served, data)]
    if not os.path.lexists(folder):
        return [published.archive]
    for member in published.members:
        path = folder / member.name
        if path.exists():
            _demand(path, member, checksum(path, "md5"))
        elif member.is_read:
            raise InputError(str(path), "must be there, as its folder is", hint=_FOLDER_AWAY)
    return []


def _is_there(folder: Path, served: PublishedFile, data: DataFile) -> bool:
    """Whether a file is there as its loader would read it: unpacked first, else gzipped."""
    plain, zipped = folder / data.name, folder / served.name
    if os.path.lexists(plain):
        _demand(plain, data, checksum(plain, "md5"))
        return True
    if not os.path.lexists(zipped):
        return False
    if checksum(zipped, "sha256") != served.sha256:
        _demand(zipped, data, _unzipped_md5(zipped))  # the same content, zipped by somebody else
    return True


def _demand(path: Path, data: DataFile, actual: str) -> None:
    if actual != data.md5:
        rule = f"must hold the published data of md5 {data.md5}"
        raise InputError(str(path), rule, actual, hint=_MOVE_AWAY)


def _unzipped_md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with gzip.open(path) as file:
            while data := file.read(1 << 20):
                digest.update(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            str(path), "must be a whole gzip file", str(error), hint=_MOVE_AWAY
        ) from None
    return digest.hexdigest()


# --- putting in place ----------------------------------------------------------------------------


def _make_folder(folder: Path, *, parents: bool = False) -> None:
    try:
        folder.mkdir(parents=parents, exist_ok=True)
    except OSError as error:
        raise not_writable(folder, error) from None


def _put_in_place(source: Path, target: Path) -> None:
    """Rename a whole file or folder to where the loader looks, unless something has come there."""
    if os.path.lexists(target):
        raise InputError(str(target), "must not appear during its download", hint=_MOVE_AWAY)
    try:
        if source.is_file():
            with source.open("rb") as file:
                os.fsync(file.fileno())
        source.rename(target)
    except OSError as error:
        raise not_writable(target, error) from None


def _fetch_archive(
    published: TarArchive, root: Path, progress: bool, timeout_seconds: float
) -> None:
    """Fetch the archive, unless the user has put it there, and unpack it."""
    own = root / published.archive.name
    if own.is_file():
        if checksum(own, "sha256") == published.archive.sha256:
            _unpack(published, own, root)
            return
        _say(f"{own}: not the published archive; left as it is", progress)
    part = fetch(
        published.archive,
        published.mirrors,
        root,
        progress=progress,
        timeout_seconds=timeout_seconds,
    )
    _unpack(published, part, root)
    part.unlink()


def _unpack(published: TarArchive, archive: Path, root: Path) -> None:
    """Unpack the members beside their place and rename the folder, so that it is there whole."""
    beside = root / f".{published.folder}.unpacking"
    shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed
    try:
        beside.mkdir()
        _unpack_members(published, archive, beside)
        for member in published.members:
            if not (beside / member.name).exists():
                rule = f"must hold the file {published.folder}/{member.name}"
                raise InputError(str(archive), rule)
            shown = archive / published.folder / member.name
            _demand(shown, member, checksum(beside / member.name, "md5"))
        _put_in_place(beside, root / published.folder)
    except _BROKEN_ARCHIVE as error:
        raise InputError(str(archive), "must be a whole tar archive", str(error)) from None
    except OSError as error:
        raise not_writable(beside, error) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _unpack_members(published: TarArchive, archive: Path, folder: Path) -> None:
    """Write the members that are asked for, by our own names: no path in an archive is followed."""
    targets = {f"{published.folder}/{m.name}": folder / m.name for m in published.members}
    with tarfile.open(archive, "r:*") as opened:
        for entry in opened:
            content = opened.extractfile(entry) if entry.isreg() else None
            target = targets.pop(entry.name, None) if content is not None else None
            if content is not None and target is not None:
                with content, target.open("xb") as file:
                    shutil.copyfileobj(content, file, 1 << 20)
                    file.flush()
                    os.fsync(file.fileno())


# --- one process at a time -----------------------------------------------------------------------


@contextlib.contextmanager
def _alone(path: Path, name: str, *, progress: bool) -> Iterator[None]:
    """Hold a lock file, which the system lets go of when the process ends, however it ends."""
    file = _locked(path, name, progress=progress)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before letting go: who waited sees that it is another file
        file.close()


def _locked(path: Path, name: str, *, progress: bool) -> BinaryIO:
    while True:
        try:
            file = path.open("ab")
        except OSError as error:
            raise not_writable(path, error) from None
        try:
            _lock(file, name, progress=progress)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()  # of a process that has finished and taken it away


def _lock(file: BinaryIO, name: str, *, progress: bool) -> None:
    if sys.platform == "win32":
        raise InputError("downloads", "must run where files can be locked (flock)", sys.platform)
    import fcntl

    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"{name}: another process downloads it; waiting", progress)
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        raise InputError(file.name, "must be lockable (flock)", error.strerror) from None


def _say(text: str, progress: bool) -> None:
    if progress:
        print(text, file=sys.stderr, flush=True)  # noqa: T201
