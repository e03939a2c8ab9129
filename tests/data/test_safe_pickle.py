"""Safe pickles: arrays come out, and nothing that a file names is ever called."""

from __future__ import annotations

import os
import pickle
import struct

import numpy as np
import pytest

from anybatch.data.safe_pickle import read_pickle
from anybatch.errors import InputError


def binstring(content: bytes) -> bytes:
    """A string as Python 2 pickled it in protocol 2."""
    return b"T" + struct.pack("<i", len(content)) + content


def python2_array(array: np.ndarray) -> bytes:
    """The opcodes of numpy under Python 2 (protocol 2) for an array of bytes."""
    shape = b"".join(b"J" + struct.pack("<i", size) for size in array.shape)
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n"
        + (b"cnumpy\nndarray\nK\x00\x85" + binstring(b"b") + b"\x87R")
        + (b"(K\x01(" + shape + b"t")
        + (b"cnumpy\ndtype\n" + binstring(b"u1") + b"K\x00K\x01\x87R")
        + (b"(K\x03" + binstring(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb")
        + (b"\x89" + binstring(array.tobytes()) + b"tb")
    )


def python2_batch(images: np.ndarray, labels: list[int]) -> bytes:
    """A CIFAR batch as its makers wrote it: {"data": array, "labels": list}, keys as bytes."""
    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    return (
        b"\x80\x02}("
        + (binstring(b"data") + python2_array(images))
        + (binstring(b"labels") + b"](" + numbers + b"e")
        + b"u."
    )


def written(tmp_path, content: bytes):
    path = tmp_path / "batch"
    path.write_bytes(content)
    return path


ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 12)


def test_a_pickle_of_python_2_is_read(tmp_path):
    content = python2_batch(ARRAY, [3, 7])
    # The opcodes above are right: Python's own unpickler reads the same.
    reference = pickle.loads(content, encoding="bytes")
    batch = read_pickle(written(tmp_path, content))
    assert list(batch) == list(reference) == [b"data", b"labels"]
    assert np.array_equal(batch[b"data"], reference[b"data"])
    assert batch[b"labels"] == [3, 7]


@pytest.mark.parametrize(
    "array",
    [
        ARRAY,
        np.asfortranarray(ARRAY),
        np.arange(6, dtype=">i4"),
        np.array([[0.5, 1.5]]),
        np.array([True, False]),
    ],
    ids=["bytes", "fortran", "big endian", "floats", "bools"],
)
def test_arrays_of_python_3_in_protocol_2_are_read(tmp_path, array):
    value = {"data": array, "more": [(1, 2.5), None, "text", b"bytes", -(10**30)]}
    result = read_pickle(written(tmp_path, pickle.dumps(value, protocol=2)))
    assert np.array_equal(result["data"], array)
    assert result["data"].dtype == array.dtype
    assert result["more"] == value["more"]


class Malicious:
    """Creates a file when it is unpickled in the usual way."""

    def __init__(self, command) -> None:
        self.command = command

    def __reduce__(self):
        return self.command


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_malicious_pickle_does_nothing_and_is_refused(tmp_path, protocol):
    victim = tmp_path / "created"
    content = pickle.dumps({b"data": Malicious((os.mkdir, (str(victim),)))}, protocol=protocol)
    path = written(tmp_path, content)
    with pytest.raises(InputError, match=r"names \w+\.mkdir .*nothing of it was executed"):
        read_pickle(path)
    assert not victim.exists()
    pickle.loads(content)
    assert victim.exists()  # it was malicious indeed


@pytest.mark.parametrize(
    "name",
    [
        "builtins\neval",
        "os\nsystem",
        "numpy\nload",
        "numpy.core.multiarray\nscalar",
        "_codecs\ndecode",
        "copyreg\n_reconstructor",
        "numpy\nndarray.tofile",
    ],
)
def test_every_other_name_is_refused(tmp_path, name):
    path = written(tmp_path, b"\x80\x02c" + name.encode() + b"\n.")
    with pytest.raises(InputError) as caught:
        read_pickle(path)
    assert f"but names {name.replace(chr(10), '.')}" in str(caught.value)
    assert str(caught.value).startswith(str(path))


STATE = b"}X\x01\x00\x00\x00aK\x01s"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        python2_batch(ARRAY, [1, 2])[:-20],
        b"\x80\x02cnumpy\nndarray\n.",  # a stand-in by itself
        b"\x80\x02cnumpy\nndarray\n)R.",  # called
        b"\x80\x02cnumpy\ndtype\n" + STATE + b"b.",  # changed by a state
        b"\x80\x02cnumpy\ndtype\nN" + STATE + b"\x86b.",  # changed attribute by attribute
        b"\x80\x02cnumpy\ndtype\n)\x81.",  # a new one made
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.",
        b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00O8\x85R.",  # objects
        python2_array(ARRAY).replace(b"J\x02\x00", b"J\x03\x00") + b".",  # more rows than bytes
        python2_array(ARRAY).replace(b"J\x02\x00\x00\x00", b"J\xfe\xff\xff\xff") + b".",
        b"\x80\x02]q\x00h\x00a.",  # holds itself
        b"\x80\x02Pabc\n.",  # asks for a persistent object
    ],
)
def test_broken_pickles_are_refused_in_one_line(tmp_path, content):
    path = written(tmp_path, content)
    with pytest.raises(InputError) as caught:
        read_pickle(path)
    assert str(caught.value).startswith(f"{path} must be a whole pickle of arrays, lists and")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="must be readable: No such file"):
        read_pickle(tmp_path / "missing")
