"""Fetch: one published file over HTTP, resumed where it broke off, its checksum verified."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import urlsplit

from anybatch.data.published import PublishedFile
from anybatch.data.transfer import TransferProgress, megabytes
from anybatch.errors import InputError

__all__ = ["checksum", "fetch", "not_writable", "part_path"]

_BYTES_PER_READ: Final = 1 << 18
_LEAST_BYTES_PER_SECOND: Final = 1024
_ATTEMPTS_PER_MIRROR: Final = 10
_STALLED: Final = "nothing came for too long"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Transfer:
    """What is fetched, where to, and how it is shown."""

    file: PublishedFile
    part: Path
    progress: TransferProgress
    timeout_seconds: float

    def num_bytes_here(self) -> int:
        """Length of the part."""
        try:
            return self.part.stat().st_size
        except FileNotFoundError:
            return 0


def part_path(file: PublishedFile, folder: Path) -> Path:
    """Where a file grows until it is whole.

    Args:
        file: what is fetched.
        folder: where to.
    """
    return folder / f"{file.name}.part"


def fetch(
    file: PublishedFile,
    mirrors: Sequence[str],
    folder: Path,
    *,
    progress: bool = True,
    timeout_seconds: float = 30.0,
) -> Path:
    """Bring a published file whole into its part beside the place where it will lie.

    A part that is there is gone on with. Each mirror is asked again as long as it brings more;
    then the next one goes on. A part with the wrong checksum is deleted.

    Args:
        file: what is fetched.
        mirrors: addresses that its name is appended to, tried in this order.
        folder: where its part grows; must be there.
        progress: whether to show it on standard error.
        timeout_seconds: after which a mirror that is silent, or brings less than 1 KiB/s, is left.

    Returns:
        The part (see `part_path`), of the published length and checksum.

    Raises:
        InputError: no mirror brought it, or the disk is full; what came is kept.
    """
    failures = []
    with TransferProgress(file.name, file.num_bytes, shown=progress) as shown:
        part = part_path(file, folder)
        transfer = _Transfer(file=file, part=part, progress=shown, timeout_seconds=timeout_seconds)
        try:
            for mirror in mirrors:
                reason = _bring(mirror + file.name, transfer)
                if not reason:
                    return part
                failures.append(f"{urlsplit(mirror).netloc}: {reason}")
                shown.say(f"{mirror}{file.name}: {reason}")
        except KeyboardInterrupt:
            here = megabytes(transfer.num_bytes_here())
            shown.say(f"{file.name}: stopped; {here} are kept, the same command goes on from there")
            raise
    raise InputError(
        file.name,
        "must come from one of its mirrors",
        "; ".join(failures),
        hint="what came is kept: the same command goes on from there",
    )


def checksum(path: Path, algorithm: str) -> str:
    """Checksum of a file in hexadecimal digits.

    Args:
        path: of the file.
        algorithm: as hashlib names it.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest()
    except OSError as error:
        raise InputError(str(path), "must be readable", error.strerror) from None


def not_writable(path: Path, error: OSError) -> InputError:
    """The one line for a place that cannot be written, as when the disk is full.

    Args:
        path: what was being written.
        error: what the system said.
    """
    return InputError(str(path), "must be writable", error.strerror)


def _bring(url: str, transfer: _Transfer) -> str:
    """Make the part whole from one mirror; why it is not, or nothing."""
    total, reason = transfer.file.num_bytes, ""
    for _ in range(_ATTEMPTS_PER_MIRROR):
        before = transfer.num_bytes_here()
        if before > total:
            transfer.progress.say(f"{transfer.part}: longer than published; deleted")
            transfer.part.unlink()
            before = 0
        if before < total:
            transfer.progress.say(_announcement(url, before, total))
            reason = _receive(url, transfer, start=before)
        after = transfer.num_bytes_here()
        if after == total:
            reason = _judged(transfer)
            if not reason or not before:
                return reason
            # Of this file a part came earlier, perhaps from elsewhere: once more from its start.
            transfer.progress.say(f"{url}: {reason}")
        elif after <= before or reason == _STALLED:
            return reason
    return reason


def _announcement(url: str, here: int, total: int) -> str:
    kept = f" ({megabytes(here)} are here)" if here else ""
    return f"{url}: {megabytes(total)}{kept}"


def _judged(transfer: _Transfer) -> str:
    """Nothing if the whole part has its checksum; otherwise it is deleted."""
    actual = checksum(transfer.part, "sha256")
    if actual == transfer.file.sha256:
        return ""
    transfer.part.unlink()
    return f"sha256 {actual[:8]}... is not the published {transfer.file.sha256[:8]}...; deleted"


def _receive(url: str, transfer: _Transfer, *, start: int) -> str:
    """One request: write what comes into the part; why that was not all, or nothing."""
    request = urllib.request.Request(
        url, headers={"User-Agent": "anybatch", "Accept-Encoding": "identity"}
    )
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        with urllib.request.urlopen(request, timeout=transfer.timeout_seconds) as response:
            first, refusal = _first_byte(response, start, transfer.file.num_bytes)
            return refusal or _write_body(response, transfer, first)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            return _receive(url, transfer, start=0)
        return f"HTTP {error.code} {error.reason}"
    except urllib.error.URLError as error:
        return _STALLED if isinstance(error.reason, TimeoutError) else _one_line(error.reason)
    except TimeoutError:
        return _STALLED
    except (OSError, http.client.HTTPException) as error:
        return _one_line(error)


def _first_byte(response: http.client.HTTPResponse, start: int, total: int) -> tuple[int, str]:
    """Which byte of the file the answer begins with, or why it is not the published file."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        given = response.headers.get("Content-Range", "")
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", given.strip())
        if found and int(found[1]) == start and found[2] in (str(total), "*"):
            return start, ""
        return 0, f"answers with the range {given!r}, not with bytes {start}- of {total}"
    if response.status != http.HTTPStatus.OK:
        return 0, f"HTTP {response.status} {response.reason}"
    length = response.headers.get("Content-Length")
    if length is not None and length != str(total):
        return 0, f"serves {length} bytes, not the published {total}"
    return 0, ""


def _write_body(response: http.client.HTTPResponse, transfer: _Transfer, position: int) -> str:
    """Write the answer over the part from `position`; the part never becomes shorter.

    A mirror that ignores ranges sends again what is here: if it breaks off, nothing is lost.
    """
    total = transfer.file.num_bytes
    looked, since_then = time.monotonic(), 0
    with _opened(transfer.part) as file:
        file.seek(position)
        while position < total:
            data = response.read1(min(_BYTES_PER_READ, total - position))
            if not data:
                return f"broke off at {position:,} of {total:,} bytes"
            _write(file, data, transfer.part)
            position += len(data)
            since_then += len(data)
            transfer.progress.show(position, len(data))
            seconds = time.monotonic() - looked
            if seconds > transfer.timeout_seconds:
                if since_then < _LEAST_BYTES_PER_SECOND * seconds:
                    return _STALLED
                looked, since_then = time.monotonic(), 0
    return ""


def _opened(part: Path) -> BinaryIO:
    """The part for writing, unbuffered: what has come survives a kill."""
    try:
        return os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
    except OSError as error:
        raise not_writable(part, error) from None


def _write(file: BinaryIO, data: bytes, part: Path) -> None:
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        raise not_writable(part, error) from None


def _one_line(error: object) -> str:
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())
