"""A mirror on this machine that misbehaves as told, and small published sets to fetch from it.

python mirror_server.py ADDRESS ARGUMENTS... runs the `anybatch` command with these sets.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import signal
import sys
import tarfile
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

import numpy as np
from data_files import cifar_images, idx_bytes

from anybatch.data import download
from anybatch.data.published import DataFile, GzippedFiles, PublishedFile, TarArchive

__all__ = [
    "Answer",
    "Mirror",
    "Request",
    "archive_of",
    "cifar_members",
    "published_archive",
    "published_files",
    "small_files",
    "zipped",
]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How a request is answered.

    Attributes:
        content: of the whole file.
        status: 200 is 206 where a range is asked for and honoured.
        ranges: whether ranges are honoured.
        cut: bytes of the body that are sent before the connection closes.
        held: whether it is held open after `cut` bytes instead, until the mirror stops.
        drip: seconds between single bytes.
        length: whether Content-Length is sent.
        headers: more of them, which replace those above.
    """

    content: bytes = b""
    status: int = 200
    ranges: bool = True
    cut: int | None = None
    held: bool = False
    drip: float = 0.0
    length: bool = True
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    path: str
    range: str | None


class Mirror:
    """Serves answers by path; the last answer of a path is repeated; others are 404.

    Attributes:
        requests: in their order.
    """

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[Request] = []
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.mirror = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def address(self, folder: str = "") -> str:
        """Of a folder, with a slash at its end."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/{folder}"

    def put(self, path: str, *answers: Answer | bytes) -> None:
        """Answer requests for /path so, one after another."""
        self.answers[f"/{path}"] = [
            Answer(content=answer) if isinstance(answer, bytes) else answer for answer in answers
        ]

    def answer(self, request: Request) -> Answer:
        """Note the request and choose its answer."""
        with self._lock:
            self.requests.append(request)
            answers = self.answers.get(request.path, [Answer(status=404)])
            return answers.pop(0) if len(answers) > 1 else answers[0]

    def ranges(self, path: str) -> list[str | None]:
        """The ranges asked for of /path, in order."""
        return [request.range for request in self.requests if request.path == f"/{path}"]


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    mirror: Mirror

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: clients that are killed or leave are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        answer = self.server.mirror.answer(Request(self.path, asked))
        first, status = 0, answer.status
        if asked and answer.ranges and status == 200:
            first, status = int(asked.removeprefix("bytes=").removesuffix("-")), 206
        body = answer.content[first:]
        headers = {"Content-Length": str(len(body))} if answer.length else {}
        if status == 206:
            end, total = len(answer.content) - 1, len(answer.content)
            headers["Content-Range"] = f"bytes {first}-{end}/{total}"
        self.send_response(status)
        for name, value in (headers | answer.headers).items():
            self.send_header(name, value)
        self.end_headers()
        self._send(body[: answer.cut], answer)

    def _send(self, body: bytes, answer: Answer) -> None:
        stopped = self.server.mirror.stopped
        if answer.drip:
            for value in body:
                if stopped.wait(answer.drip):
                    return
                self.wfile.write(bytes([value]))
        else:
            self.wfile.write(body)
        self.wfile.flush()
        if answer.held:
            stopped.wait()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the requests are kept."""


# --- small sets ----------------------------------------------------------------------------------


def small_files() -> dict[str, bytes]:
    """The unpacked files of a small set in the layout of MNIST, in the order of their download."""
    random = np.random.default_rng(2)
    contents = {}
    for stem, count in (("t10k", 3), ("train", 6)):
        labels = random.integers(0, 10, count, dtype=np.uint8)
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        contents[f"{stem}-labels-idx1-ubyte"] = idx_bytes(labels)
        contents[f"{stem}-images-idx3-ubyte"] = idx_bytes(images)
    return contents


def zipped(content: bytes) -> bytes:
    """As it is served; the same bytes each time."""
    return gzip.compress(content, mtime=0)


def published_files(*mirrors: str) -> GzippedFiles:
    """What is published of `small_files`."""
    files = tuple(
        (_served(f"{name}.gz", zipped(content)), DataFile(name=name, md5=md5(content)))
        for name, content in small_files().items()
    )
    return GzippedFiles(name="mnist", folder="MNIST/raw", mirrors=mirrors, files=files)


def cifar_members() -> dict[str, bytes]:
    """The files of a small set in the layout of CIFAR-10."""
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    contents = {}
    for name, images, labels in zip(names, *cifar_images(), strict=True):
        batch = {b"data": images, b"labels": labels.tolist()}
        contents[name] = pickle.dumps(batch, protocol=2)
    return contents | {"batches.meta": b"names of classes"}


def archive_of(members: dict[str, bytes | str]) -> bytes:
    """A tar.gz of files; a member that is text is a symbolic link to there."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def published_archive(archive: bytes, *mirrors: str) -> TarArchive:
    """What is published of an archive with `cifar_members`."""
    return TarArchive(
        name="cifar10",
        folder="cifar-10-batches-py",
        mirrors=mirrors,
        archive=_served("cifar-10-python.tar.gz", archive),
        members=tuple(
            DataFile(name=name, md5=md5(content), is_read=name != "batches.meta")
            for name, content in cifar_members().items()
        ),
    )


def md5(content: bytes) -> str:
    """Checksum in hexadecimal digits."""
    return hashlib.md5(content).hexdigest()


def _served(name: str, content: bytes) -> PublishedFile:
    return PublishedFile(
        name=name, num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
    )


if __name__ == "__main__":
    from anybatch.cli import main

    # Also where the tests run in the background of a shell, whose jobs ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    download.PUBLISHED = {"mnist": published_files(sys.argv[1])}  # type: ignore[misc]
    sys.exit(main(sys.argv[2:]))
