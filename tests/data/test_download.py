"""Downloads from a mirror on this machine that breaks off, lies, vanishes, stalls and is killed."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from mirror_server import (
    Answer,
    Mirror,
    archive_of,
    cifar_members,
    published_archive,
    published_files,
    small_files,
    zipped,
)

import anybatch
from anybatch.cli import main
from anybatch.data import download, transfer
from anybatch.data.catalog import DATA_SETS, load_splits
from anybatch.data.download import download_data, download_published, published_data
from anybatch.data.fetch import fetch, part_path
from anybatch.data.published import PUBLISHED, GzippedFiles, PublishedFile
from anybatch.data.transfer import TransferProgress
from anybatch.errors import InputError
from anybatch.task import load_task

REAL_DATA = Path(
    os.environ.get("ANYBATCH_DATA", "no data")
).resolve()  # before it is hidden from us
SCRIPT = str(Path(__file__).with_name("mirror_server.py"))
CONTENT = bytes(range(256)) * 40  # of the single file that most tests fetch
BROKEN = CONTENT[:100] + b"?" + CONTENT[101:]
FILE = PublishedFile(
    name="numbers.bin", num_bytes=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest()
)


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with Mirror() as running:
        yield running


@pytest.fixture(autouse=True)
def nowhere(tmp_path_factory, monkeypatch) -> None:
    """A working folder without data, and no proxy between us and the mirror."""
    monkeypatch.delenv("ANYBATCH_DATA", raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path_factory.mktemp("nowhere"))


def fetched(mirror: Mirror, folder: Path, *names: str, **options: float) -> bytes:
    """Fetch the single file from these folders of the mirror; what came."""
    addresses = [mirror.address(f"{name}/") for name in names or ("a",)]
    path = fetch(FILE, addresses, folder, **options)
    assert path == part_path(FILE, folder) == folder / "numbers.bin.part"
    return path.read_bytes()


def serve_set(mirror: Mirror) -> GzippedFiles:
    """Put the small MNIST on the mirror."""
    for name, content in small_files().items():
        mirror.put(f"{name}.gz", zipped(content))
    return published_files(mirror.address())


def listed(root: Path) -> list[str]:
    """Every file below a folder, hidden ones too."""
    found = (path for path in root.rglob("*") if not path.is_dir())
    return sorted(path.relative_to(root).as_posix() for path in found)


# --- one file ------------------------------------------------------------------------------------


def test_a_file_comes_whole(mirror, tmp_path, capsys):
    mirror.put("a/numbers.bin", CONTENT)
    assert fetched(mirror, tmp_path) == CONTENT
    assert mirror.ranges("a/numbers.bin") == [None]
    assert capsys.readouterr().err == f"{mirror.address('a/')}numbers.bin: 10 kB\n"


def test_a_body_that_breaks_off_is_gone_on_with(mirror, tmp_path, capsys):
    cut = Answer(content=CONTENT, cut=3000)
    mirror.put("a/numbers.bin", cut, cut, CONTENT)
    assert fetched(mirror, tmp_path) == CONTENT
    # Each request brings 3,000 bytes, and the next one asks for what is left.
    assert mirror.ranges("a/numbers.bin") == [None, "bytes=3000-", "bytes=6000-"]
    assert "(3 kB are here)" in capsys.readouterr().err


def test_a_mirror_that_always_breaks_off_at_once_is_left(mirror, tmp_path):
    mirror.put("a/numbers.bin", Answer(content=CONTENT, cut=0))
    mirror.put("b/numbers.bin", CONTENT)
    assert fetched(mirror, tmp_path, "a", "b") == CONTENT
    assert mirror.ranges("a/numbers.bin") == [None]


def test_a_mirror_that_brings_a_little_each_time_is_left_in_the_end(mirror, tmp_path):
    mirror.put("a/numbers.bin", Answer(content=CONTENT, cut=10))
    with pytest.raises(InputError, match=r"broke off at 100 of 10,240 bytes"):
        fetched(mirror, tmp_path)
    assert len(mirror.requests) == 10


def test_a_mirror_may_ignore_ranges(mirror, tmp_path):
    mirror.put(
        "a/numbers.bin", Answer(content=CONTENT, cut=3000), Answer(content=CONTENT, ranges=False)
    )
    assert fetched(mirror, tmp_path) == CONTENT
    assert mirror.ranges("a/numbers.bin") == [None, "bytes=3000-"]


def test_a_mirror_that_ignores_ranges_and_breaks_off_earlier_loses_nothing(mirror, tmp_path):
    mirror.put("a/numbers.bin", Answer(content=CONTENT, ranges=False, cut=1000))
    (tmp_path / "numbers.bin.part").write_bytes(CONTENT[:5000])
    with pytest.raises(InputError, match=r"broke off at 1,000 of"):
        fetched(mirror, tmp_path)
    assert (tmp_path / "numbers.bin.part").read_bytes() == CONTENT[:5000]


def test_a_range_that_is_not_satisfiable_is_asked_for_from_the_start(mirror, tmp_path):
    (tmp_path / "numbers.bin.part").write_bytes(CONTENT[:5000])
    mirror.put("a/numbers.bin", Answer(status=416), CONTENT)
    assert fetched(mirror, tmp_path) == CONTENT
    assert mirror.ranges("a/numbers.bin") == ["bytes=5000-", None]


@pytest.mark.parametrize("given", ["bytes 0-10239/10240", "bytes 5000-10238/10239", "", "5000-"])
def test_another_range_than_asked_for_is_refused(mirror, tmp_path, given):
    (tmp_path / "numbers.bin.part").write_bytes(CONTENT[:5000])
    mirror.put("a/numbers.bin", Answer(content=CONTENT, headers={"Content-Range": given}))
    mirror.put("b/numbers.bin", CONTENT)
    assert fetched(mirror, tmp_path, "a", "b") == CONTENT
    assert mirror.ranges("b/numbers.bin") == ["bytes=5000-"]


def test_a_corrupted_file_is_deleted_and_the_next_mirror_asked(mirror, tmp_path, capsys):
    mirror.put("a/numbers.bin", BROKEN)
    mirror.put("b/numbers.bin", CONTENT)
    assert fetched(mirror, tmp_path, "a", "b") == CONTENT
    said = capsys.readouterr().err.splitlines()
    assert mirror.ranges("a/numbers.bin") == mirror.ranges("b/numbers.bin") == [None]
    wrong, right = hashlib.sha256(BROKEN).hexdigest()[:8], FILE.sha256[:8]
    assert said[1] == (
        f"{mirror.address('a/')}numbers.bin: sha256 {wrong}... is not the published {right}...;"
        " deleted"
    )


def test_a_file_corrupted_everywhere_leaves_nothing(mirror, tmp_path):
    for name in ("a", "b"):
        mirror.put(f"{name}/numbers.bin", BROKEN)
    with pytest.raises(InputError, match=r"numbers.bin must come from one of its mirrors, got 127"):
        fetched(mirror, tmp_path, "a", "b")
    assert listed(tmp_path) == []


def test_a_corrupted_beginning_is_not_blamed_on_the_mirror_that_sent_the_rest(mirror, tmp_path):
    (tmp_path / "numbers.bin.part").write_bytes(BROKEN[:5000])
    mirror.put("a/numbers.bin", CONTENT)
    assert fetched(mirror, tmp_path) == CONTENT
    assert mirror.ranges("a/numbers.bin") == ["bytes=5000-", None]


@pytest.mark.parametrize("here", [CONTENT + b"more", BROKEN])
def test_a_part_that_cannot_be_right_is_begun_anew(mirror, tmp_path, here):
    (tmp_path / "numbers.bin.part").write_bytes(here)
    mirror.put("a/numbers.bin", CONTENT)
    assert fetched(mirror, tmp_path) == CONTENT
    assert mirror.ranges("a/numbers.bin") == [None]


def test_a_whole_part_costs_no_request(mirror, tmp_path):
    (tmp_path / "numbers.bin.part").write_bytes(CONTENT)
    assert fetched(mirror, tmp_path) == CONTENT
    assert mirror.requests == []


def test_a_file_that_vanishes_on_the_way_comes_on_from_elsewhere(mirror, tmp_path):
    mirror.put("a/numbers.bin", Answer(content=CONTENT, cut=4000), Answer(status=404))
    mirror.put("b/numbers.bin", CONTENT)
    assert fetched(mirror, tmp_path, "a", "b") == CONTENT
    assert mirror.ranges("a/numbers.bin") == [None, "bytes=4000-"]
    assert mirror.ranges("b/numbers.bin") == ["bytes=4000-"]


def test_a_file_that_has_vanished_everywhere_is_one_line_and_keeps_what_came(mirror, tmp_path):
    mirror.put("a/numbers.bin", Answer(content=CONTENT, cut=4000), Answer(status=404))
    mirror.put("b/numbers.bin", Answer(status=503))
    with pytest.raises(InputError) as caught:
        fetched(mirror, tmp_path, "a", "b")
    host = mirror.address().split("/")[2]
    assert str(caught.value) == (
        f"numbers.bin must come from one of its mirrors, got {host}: HTTP 404 Not Found;"
        f" {host}: HTTP 503 Service Unavailable"
        " (what came is kept: the same command goes on from there)"
    )
    assert (tmp_path / "numbers.bin.part").read_bytes() == CONTENT[:4000]


def test_another_file_under_that_name_does_not_touch_what_is_here(mirror, tmp_path):
    (tmp_path / "numbers.bin.part").write_bytes(CONTENT[:5000])
    mirror.put("a/numbers.bin", Answer(content=b"<html>sign in</html>", ranges=False))
    with pytest.raises(InputError, match=r"serves 20 bytes, not the published 10240"):
        fetched(mirror, tmp_path)
    assert (tmp_path / "numbers.bin.part").read_bytes() == CONTENT[:5000]


@pytest.mark.parametrize("more", [b"", b"and more" * 1000])
def test_a_length_need_not_be_told_and_no_more_is_read_than_published(mirror, tmp_path, more):
    mirror.put("a/numbers.bin", Answer(content=CONTENT + more, length=False))
    assert fetched(mirror, tmp_path) == CONTENT


def test_a_redirect_is_followed_and_keeps_the_range(mirror, tmp_path):
    (tmp_path / "numbers.bin.part").write_bytes(CONTENT[:5000])
    mirror.put("a/numbers.bin", Answer(status=302, headers={"Location": "/b/numbers.bin"}))
    mirror.put("b/numbers.bin", CONTENT)
    assert fetched(mirror, tmp_path) == CONTENT
    assert mirror.ranges("b/numbers.bin") == ["bytes=5000-"]


def test_a_redirect_in_a_circle_is_left(mirror, tmp_path):
    mirror.put("a/numbers.bin", Answer(status=302, headers={"Location": "/a/numbers.bin"}))
    mirror.put("b/numbers.bin", CONTENT)
    assert fetched(mirror, tmp_path, "a", "b") == CONTENT


@pytest.mark.parametrize(
    "answer",
    [
        Answer(content=CONTENT, cut=2000, held=True),
        Answer(content=CONTENT, drip=0.02),
    ],
    ids=["stalled", "dripping"],
)
def test_a_mirror_that_stalls_or_drips_is_left_and_the_next_goes_on(mirror, tmp_path, answer):
    mirror.put("a/numbers.bin", answer)
    mirror.put("b/numbers.bin", CONTENT)
    assert fetched(mirror, tmp_path, "a", "b", timeout_seconds=1.0) == CONTENT
    assert mirror.ranges("a/numbers.bin") == [None]
    (asked,) = mirror.ranges("b/numbers.bin")
    assert asked is not None
    assert 0 < int(asked.removeprefix("bytes=").removesuffix("-")) <= 2000


def test_a_mirror_that_does_not_listen_is_left(mirror, tmp_path):
    mirror.put("b/numbers.bin", CONTENT)
    with Mirror() as other:
        nobody = other.address()
    path = fetch(FILE, [nobody, mirror.address("b/")], tmp_path, progress=False)
    assert path.read_bytes() == CONTENT


# --- a set of files ------------------------------------------------------------------------------


def test_a_set_lies_where_its_loader_looks_and_nothing_else_is_left(mirror, tmp_path):
    done = download_published(serve_set(mirror), tmp_path / "new")
    names = [f"{name}.gz" for name in small_files()]
    assert done.folder == tmp_path / "new" / "MNIST" / "raw"
    assert done.new_files == tuple(names)
    assert listed(tmp_path) == sorted(f"new/MNIST/raw/{name}" for name in names)
    assert load_splits("mnist", data=tmp_path / "new").train.num_examples == 6


def test_what_is_there_and_right_is_not_fetched_again(mirror, tmp_path):
    published = serve_set(mirror)
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    first, second, third, fourth = small_files().items()
    (folder / first[0]).write_bytes(first[1])
    (folder / f"{second[0]}.gz").write_bytes(zipped(second[1]))
    (folder / f"{third[0]}.gz").write_bytes(gzip.compress(third[1], 1, mtime=7))
    before = listed(tmp_path)
    assert download_published(published, tmp_path).new_files == (f"{fourth[0]}.gz",)
    assert [request.path for request in mirror.requests] == [f"/{fourth[0]}.gz"]
    assert set(before) < set(listed(tmp_path))
    assert download_published(published, tmp_path).new_files == ()
    assert len(mirror.requests) == 1


def test_a_whole_set_may_lie_in_a_folder_that_cannot_be_written(mirror, tmp_path, monkeypatch):
    published = serve_set(mirror)
    download_published(published, tmp_path)
    # Whoever may write everywhere would not notice a folder's permissions.
    monkeypatch.setattr(Path, "mkdir", None)
    monkeypatch.setattr(download, "_locked", None)
    assert download_published(published, tmp_path).new_files == ()


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("cut", [True, False])
def test_a_file_of_the_user_is_never_overwritten(mirror, tmp_path, ending, cut):
    published = serve_set(mirror)
    download_published(published, tmp_path)
    mirror.requests.clear()
    name, content = list(small_files().items())[1]
    path = tmp_path / "MNIST" / "raw" / f"{name}{ending}"
    wrong = content[:-1] + bytes([content[-1] ^ 1])
    wrong = zipped(wrong) if ending else wrong
    wrong = wrong[:-20] if cut else wrong
    path.write_bytes(wrong)
    with pytest.raises(InputError) as caught:
        download_published(published, tmp_path)
    assert str(caught.value).startswith(f"{path} must ")
    assert str(caught.value).endswith("(move it away, then download again)")
    assert path.read_bytes() == wrong
    assert mirror.requests == []


def test_a_file_that_the_user_puts_there_meanwhile_is_not_overwritten(mirror, tmp_path):
    published = serve_set(mirror)
    served = published.files[-1][0].name
    own = tmp_path / "MNIST" / "raw" / served
    answer = mirror.answer

    def put_and_answer(request):
        if request.path == f"/{served}":
            own.write_bytes(b"mine")
        return answer(request)

    mirror.answer = put_and_answer
    with pytest.raises(InputError, match="must not appear during its download"):
        download_published(published, tmp_path)
    assert own.read_bytes() == b"mine"


def test_until_the_last_file_is_there_the_set_is_not_found(mirror, tmp_path):
    published = serve_set(mirror)
    last = published.files[-1][0].name
    mirror.put(last, Answer(content=zipped(list(small_files().values())[-1]), cut=50))
    mirror.answers[f"/{last}"].append(Answer(status=404))
    with pytest.raises(InputError, match="must come from one of its mirrors"):
        download_published(published, tmp_path)
    assert f"MNIST/raw/{last}.part" in listed(tmp_path)
    with pytest.raises(InputError, match=r"not there \(.*anybatch tasks --download mnist "):
        load_splits("mnist", data=tmp_path)
    mirror.put(last, zipped(list(small_files().values())[-1]))
    assert download_published(published, tmp_path).new_files == (last,)
    assert mirror.ranges(last)[-1] == "bytes=50-"
    assert load_splits("mnist", data=tmp_path).train.num_examples == 6


# --- an archive ----------------------------------------------------------------------------------


FIRST = "cifar-10-batches-py/data_batch_1"


def members_in_folder() -> dict[str, bytes | str]:
    return {f"cifar-10-batches-py/{name}": data for name, data in cifar_members().items()}


def serve_archive(mirror: Mirror, archive: bytes):
    mirror.put("cifar-10-python.tar.gz", archive)
    return published_archive(archive, mirror.address())


def test_an_archive_is_unpacked_where_its_loader_looks(mirror, tmp_path):
    published = serve_archive(mirror, archive_of(members_in_folder()))
    (tmp_path / ".cifar-10-batches-py.unpacking").mkdir()  # of a process that was killed
    (tmp_path / ".cifar-10-batches-py.unpacking" / "data_batch_1").write_bytes(b"half")
    done = download_published(published, tmp_path)
    assert done.new_files == ("cifar-10-python.tar.gz",)
    assert listed(tmp_path) == sorted(members_in_folder())
    assert load_splits("cifar10", data=tmp_path).train.num_examples == 20
    assert download_published(published, tmp_path).new_files == ()
    assert len(mirror.requests) == 1


def test_no_path_in_an_archive_is_followed(mirror, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    evil: dict[str, bytes | str] = {
        "../evil": b"1",
        f"{outside}/evil": b"2",
        "cifar-10-batches-py/../../evil": b"3",
        "cifar-10-batches-py/link": str(outside),
        "cifar-10-batches-py/link/evil": b"4",
        "cifar-10-batches-py/readme.html": b"5",
    }
    published = serve_archive(mirror, archive_of(evil | members_in_folder()))
    download_published(published, tmp_path / "data")
    assert listed(tmp_path) == sorted(f"data/{name}" for name in members_in_folder())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda members: members | {FIRST: "/etc/passwd"}, f"must hold the file {FIRST}"),
        (lambda members: members | {FIRST: b"else"}, "must hold the published data of md5"),
        (
            lambda members: {k: v for k, v in members.items() if k != FIRST},
            f"must hold the file {FIRST}",
        ),
    ],
    ids=["link", "other content", "missing"],
)
def test_an_archive_without_a_right_member_leaves_no_folder(mirror, tmp_path, change, message):
    published = serve_archive(mirror, archive_of(change(members_in_folder())))
    with pytest.raises(InputError, match=message):
        download_published(published, tmp_path)
    assert listed(tmp_path) == ["cifar-10-python.tar.gz.part"]
    assert not (tmp_path / "cifar-10-batches-py").exists()


@pytest.mark.parametrize("broken", [b"no archive", archive_of(members_in_folder())[:2000]])
def test_an_archive_that_is_none_leaves_no_folder(mirror, tmp_path, broken):
    published = serve_archive(mirror, broken)
    with pytest.raises(InputError, match="must be a whole tar archive"):
        download_published(published, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-python.tar.gz.part"]


def test_an_archive_of_the_users_is_unpacked_without_a_request_and_stays(mirror, tmp_path):
    archive = archive_of(members_in_folder())
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive)
    download_published(published_archive(archive, mirror.address()), tmp_path)
    assert listed(tmp_path) == sorted([*members_in_folder(), "cifar-10-python.tar.gz"])
    assert mirror.requests == []


def test_another_archive_of_the_users_is_named_and_left_as_it_is(mirror, tmp_path, capsys):
    own = tmp_path / "cifar-10-python.tar.gz"
    own.write_bytes(b"half an archive")
    download_published(serve_archive(mirror, archive_of(members_in_folder())), tmp_path)
    said = capsys.readouterr().err.splitlines()[0]
    assert said == f"{own}: not the published archive; left as it is"
    assert own.read_bytes() == b"half an archive"
    assert listed(tmp_path) == sorted([*members_in_folder(), own.name])


def test_a_folder_that_is_there_in_part_is_not_touched(mirror, tmp_path):
    published = serve_archive(mirror, archive_of(members_in_folder()))
    download_published(published, tmp_path)
    (tmp_path / "cifar-10-batches-py" / "batches.meta").unlink()  # which no loader reads
    assert download_published(published, tmp_path).new_files == ()
    (tmp_path / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(InputError, match=r"test_batch must be there, as its folder is \(move the"):
        download_published(published, tmp_path)
    assert len(mirror.requests) == 1


# --- processes -----------------------------------------------------------------------------------


def start(mirror: Mirror, *arguments: str) -> subprocess.Popen[str]:
    """`anybatch` in a process of its own that knows the small set."""
    return subprocess.Popen(
        [sys.executable, SCRIPT, mirror.address(), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(process.communicate())
        time.sleep(0.005)


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_download_goes_on_where_it_stopped(mirror, tmp_path, kind):
    published = serve_set(mirror)
    served, last = published.files[-1][0], zipped(list(small_files().values())[-1])
    mirror.put(served.name, Answer(content=last, cut=1000, held=True), last)
    process = start(mirror, "tasks", "--download", "mnist", "--data", str(tmp_path))
    part = tmp_path / "MNIST" / "raw" / f"{served.name}.part"
    wait_until(lambda: part.exists() and part.stat().st_size == 1000, process)
    process.send_signal(kind)
    code, _, err = finish(process)
    assert code == (130 if kind == signal.SIGINT else -kind)
    said = f"{served.name}: stopped; 1 kB are kept, the same command goes on from there\n"
    assert err.endswith(said) == (kind == signal.SIGINT)
    assert part.read_bytes() == last[:1000]
    assert not part.with_suffix("").exists()
    assert download_published(published, tmp_path).new_files == (served.name,)
    assert mirror.ranges(served.name) == [None, "bytes=1000-"]
    assert listed(tmp_path) == sorted(f"MNIST/raw/{name}.gz" for name in small_files())


def test_processes_that_download_at_once_fetch_each_file_once(mirror, tmp_path):
    published = serve_set(mirror)
    first = published.files[0][0].name
    mirror.put(first, Answer(content=zipped(next(iter(small_files().values()))), drip=0.02))
    started = [
        start(mirror, "tasks", "--download", "mnist", "--data", str(tmp_path)) for _ in range(3)
    ]
    ends = [finish(process) for process in started]
    assert [code for code, _, _ in ends] == [0, 0, 0], ends
    assert [request.path for request in mirror.requests] == [
        f"/{served.name}" for served, _ in published.files
    ]
    assert sum("fetched" in out for _, out, _ in ends) == 1
    assert sum("was there already" in out for _, out, _ in ends) == 2
    assert listed(tmp_path) == sorted(f"MNIST/raw/{name}.gz" for name in small_files())


def test_who_waits_says_so_and_goes_on_where_a_killed_process_stopped(mirror, tmp_path, capsys):
    published = serve_set(mirror)
    held = Answer(content=zipped(next(iter(small_files().values()))), cut=10, held=True)
    first = published.files[0][0].name
    mirror.put(first, held, Answer(content=held.content))
    process = start(mirror, "tasks", "--download", "mnist", "--data", str(tmp_path))
    part = tmp_path / "MNIST" / "raw" / f"{first}.part"
    wait_until(lambda: part.exists() and part.stat().st_size == 10, process)
    waiting = threading.Thread(target=download_published, args=(published, tmp_path))
    waiting.start()
    said = ""
    while "waiting" not in said and waiting.is_alive():
        said += capsys.readouterr().err
        time.sleep(0.005)
    assert said == "mnist: another process downloads it; waiting\n"
    process.kill()
    process.communicate()
    waiting.join(timeout=60)
    assert mirror.ranges(first) == [None, "bytes=10-"]
    assert listed(tmp_path) == sorted(f"MNIST/raw/{name}.gz" for name in small_files())


def test_who_has_waited_holds_a_lock_that_the_next_one_sees(mirror, tmp_path, capsys):
    published = serve_set(mirror)
    answer, asked, may_go = mirror.answer, threading.Event(), threading.Event()
    lock, was_locked = tmp_path / ".mnist.lock", []

    def fail_once(request):
        if not asked.is_set():
            asked.set()
            assert may_go.wait(60)
            return Answer(status=404)
        was_locked.append(lock.exists())
        return answer(request)

    def download_or_fail() -> None:
        with contextlib.suppress(InputError):
            download_published(published, tmp_path)

    mirror.answer = fail_once
    first, second = (threading.Thread(target=download_or_fail) for _ in range(2))
    first.start()
    assert asked.wait(60)
    second.start()
    said = ""
    while "waiting" not in said and second.is_alive():
        said += capsys.readouterr().err
        time.sleep(0.005)
    may_go.set()
    first.join(timeout=60)
    second.join(timeout=60)
    # The first one took its lock file away; the second one must not trust what it had opened.
    assert was_locked == [True] * 4
    assert listed(tmp_path) == sorted(f"MNIST/raw/{name}.gz" for name in small_files())


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
del sys.argv[:2]
import runpy
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_full_disk_is_one_line_and_with_room_again_it_goes_on(mirror, tmp_path):
    published = serve_set(mirror)
    last = published.files[-1][0].name
    arguments = [mirror.address(), "tasks", "--download", "mnist", "--data", str(tmp_path)]
    full = subprocess.run(
        [sys.executable, "-B", "-c", LIMITED, "3000", SCRIPT, *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    part = tmp_path / "MNIST" / "raw" / f"{last}.part"
    assert full.returncode == 2
    assert full.stderr == f"anybatch: {part} must be writable, got File too large\n"
    assert json.loads(full.stdout)["error"] in full.stderr
    assert part.stat().st_size == 3000
    assert not part.with_suffix("").exists()
    assert download_published(published, tmp_path).new_files == (last,)
    assert mirror.ranges(last) == [None, "bytes=3000-"]


def test_a_disk_that_fills_up_while_unpacking_keeps_the_archive(mirror, tmp_path, monkeypatch):
    published = serve_archive(mirror, archive_of(members_in_folder()))

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(download.shutil, "copyfileobj", full)
        with pytest.raises(InputError, match="must be writable, got No space left on device"):
            download_published(published, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-python.tar.gz.part"]
    download_published(published, tmp_path)
    assert listed(tmp_path) == sorted(members_in_folder())
    assert len(mirror.requests) == 1


@pytest.mark.parametrize("place", ["file/data", "no/such/data"])
def test_a_place_that_cannot_be_made_is_refused(mirror, tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"data must be writable, got N"):
        download_published(serve_set(mirror), tmp_path / place)
    assert mirror.requests == []


# --- names, commands, table ----------------------------------------------------------------------


@pytest.fixture
def small_set(mirror, monkeypatch) -> GzippedFiles:
    """The small set under the name of MNIST, served."""
    published = serve_set(mirror)
    monkeypatch.setattr(download, "PUBLISHED", {"mnist": published, "cifar10": published})
    return published


def test_nothing_is_fetched_unless_asked(small_set, mirror, tmp_path):
    assert main(["tasks", "--data", str(tmp_path)]) == 0
    with pytest.raises(
        InputError, match=r"fetch it: anybatch tasks --download mnist --data /\S+\)$"
    ):
        load_task("mnist", data=tmp_path)
    assert mirror.requests == []
    assert load_task("mnist", data=tmp_path, download=True).source("test").num_examples == 3
    assert len(mirror.requests) == 4
    load_task("mnist", data=tmp_path)
    assert len(mirror.requests) == 4


def test_the_place_is_the_argument_or_the_environment_or_data(small_set, tmp_path, monkeypatch):
    assert anybatch.download_data("mnist", str(tmp_path / "a")).folder.is_relative_to(tmp_path)
    monkeypatch.setenv("ANYBATCH_DATA", str(tmp_path / "b"))
    assert download_data("mnist", progress=False).folder == tmp_path / "b" / "MNIST" / "raw"
    monkeypatch.delenv("ANYBATCH_DATA")
    with pytest.raises(InputError, match=r"fetch it: anybatch tasks --download mnist\)$"):
        load_task("mnist")
    assert download_data("mnist").folder == Path("data/MNIST/raw")
    assert load_task("mnist").source("test").num_examples == 3


def test_the_command_fetches_and_then_lists(small_set, tmp_path, capsys):
    arguments = ["tasks", "--download", "mnist", "--data", str(tmp_path)]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    folder = tmp_path / "MNIST" / "raw"
    names = [f"{name}.gz" for name in small_files()]
    assert out.splitlines()[0] == (
        f"mnist: {', '.join(names)} fetched; the checksums in {folder} are right"
    )
    assert any(line.split()[:2] == ["mnist", "found"] for line in out.splitlines())
    assert [line.split("/")[-1] for line in err.splitlines()] == [
        f"{served.name}: {served.num_bytes / 1e3:.0f} kB" for served, _ in small_set.files
    ]
    assert main([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out)
    assert found["downloads"] == [{"name": "mnist", "folder": str(folder), "new_files": []}]
    assert {row["name"]: row["found"] for row in found["tasks"]}["mnist"] is True


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnits", "must be one of: mnist, cifar10, got mnits (did you mean mnist?)\n"),
        ("digits", "must be one of: mnist, cifar10, got digits\n"),
        ("mnist:x", "must be one of: mnist, cifar10, got mnist:x (did you mean mnist?)\n"),
    ],
)
def test_an_unknown_name_is_refused_before_anything_is_fetched(
    small_set, mirror, tmp_path, capsys, name, message
):
    arguments = ["tasks", "--download", "mnist", "--download", name, "--data", str(tmp_path)]
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"anybatch: data set to download {message}"
    assert mirror.requests == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_without_a_network_it_is_one_line_and_exit_2(mirror, tmp_path, monkeypatch, capsys, name):
    for proxy in ("http_proxy", "https_proxy"):  # knows nothing and refuses to connect
        monkeypatch.setenv(proxy, mirror.address())
    monkeypatch.setenv("no_proxy", "")
    assert main(["tasks", "--download", name, "--data", str(tmp_path), "--json"]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("anybatch: ")
    assert err.count("\n") == 1
    assert " must come from one of its mirrors, got " in err
    assert json.loads(out)["error"] in err
    assert listed(tmp_path) == []


def test_the_table_fits_the_loaders(tmp_path):
    for name, published in PUBLISHED.items():
        assert published_data(name) is published
        assert published.name == name
        assert all(mirror.startswith("http") for mirror in published.mirrors)
        assert all(mirror.endswith("/") for mirror in published.mirrors)
        assert len({mirror.split("/")[2] for mirror in published.mirrors}) >= 2
        if isinstance(published, GzippedFiles):
            served, data = published.files[-1]  # what shows that a set is there comes last
            shown = (f"{published.folder}/{data.name}", f"{published.folder}/{served.name}")
            assert shown == DATA_SETS[name].looked_for
            sums = [text for pair in published.files for text in (pair[0].sha256, pair[1].md5)]
        else:
            assert published.folder == DATA_SETS[name].looked_for[0]
            sums = [published.archive.sha256, *(member.md5 for member in published.members)]
        assert len(set(sums)) == len(sums)
        assert {len(bytes.fromhex(text)) for text in sums} == {16, 32}
    with pytest.raises(dataclasses.FrozenInstanceError):
        PUBLISHED["mnist"].name = "else"


def test_the_real_mnist_has_the_checksums_of_the_table():
    if not (REAL_DATA / "MNIST" / "raw").is_dir():
        pytest.skip("MNIST is not in ANYBATCH_DATA")
    assert download_data("mnist", REAL_DATA).new_files == ()


# --- progress ------------------------------------------------------------------------------------


def test_in_a_pipe_it_is_a_line_every_ten_seconds(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(transfer, "time", SimpleNamespace(monotonic=lambda: now[0]))
    stream = io.StringIO()
    with TransferProgress("a.gz", 100_000_000, stream=stream) as progress:
        for number in range(1, 13):
            now[0] += 2.0
            progress.show(40_000_000 + 1_000_000 * number, 1_000_000)
    assert stream.getvalue().splitlines() == [
        "a.gz  45.0 MB of 100.0 MB  0.50 MB/s, about 110 s left",
        "a.gz  50.0 MB of 100.0 MB  0.50 MB/s, about 100 s left",
    ]


def test_on_a_terminal_it_is_a_bar_and_without_asking_nothing():
    leader, follower = pty.openpty()
    received: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # the other side has closed
            while data := os.read(leader, 4096):
                received.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(follower, "w") as stream:
        with TransferProgress("[a].gz", 1000, stream=stream) as progress:
            progress.show(500, 500)
            progress.say("a line [above]")
            progress.show(1000, 500)
        with TransferProgress("b.gz", 1000, shown=False, stream=stream) as progress:
            progress.say("no line")
            progress.show(1000, 1000)
    reader.join(timeout=10)
    os.close(leader)
    shown = b"".join(received).decode()
    assert "a line [above]" in shown
    assert "[a].gz" in shown
    assert "1.0/1.0 kB" in shown
    assert "b.gz" not in shown
    assert "no line" not in shown
