"""Reading pickles of arrays, lists and numbers without executing anything that they name.

The CIFAR batches are pickles of protocol 2 written by Python 2. A pickle can name any function and
have it called. Here each name a numpy array needs stands for an inert object of ours, and every
other name is refused before anything happens.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any, Final

import numpy as np

from anybatch.errors import InputError

__all__ = ["read_pickle"]

_DTYPES: Final = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "b1")


def read_pickle(path: Path) -> Any:
    """The content of a pickle that holds only arrays, strings, numbers and containers of them.

    Strings written by Python 2 come as bytes.

    Args:
        path: the file.

    Returns:
        What was pickled, with its numpy arrays (read-only).

    Raises:
        InputError: if the file is broken, or names anything but what a numpy array needs; nothing
            of the file has been executed then.
    """
    try:
        with path.open("rb") as file:
            return _with_arrays(_InertUnpickler(file, path).load())
    except InputError:
        raise
    except OSError as error:
        raise InputError(str(path), f"must be readable: {error.strerror}") from error
    except Exception as error:  # the unpickler raises nearly any kind on broken bytes
        raise InputError(
            str(path),
            "must be a whole pickle of arrays, lists and numbers",
            f"{type(error).__name__}: {error}",
        ) from error


class _InertUnpickler(pickle.Unpickler):
    """Finds no class or function but stand-ins, made anew for each file."""

    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file, encoding="bytes")
        self._path = path
        array, dtype = _ArrayName(), _MakeDtype()
        self._stand_ins: dict[tuple[str, str], Any] = {
            ("numpy.core.multiarray", "_reconstruct"): _MakeArray(),
            ("numpy._core.multiarray", "_reconstruct"): _MakeArray(),
            ("numpy", "ndarray"): array,
            ("numpy", "dtype"): dtype,
            ("_codecs", "encode"): _Encode(),
        }

    def find_class(self, module: str, name: str) -> Any:
        stand_in = self._stand_ins.get((module, name))
        if stand_in is None:
            raise InputError(
                str(self._path),
                f"must hold only arrays, lists and numbers, but names {module}.{name}",
                hint="nothing of it was executed; do not trust this file",
            )
        return stand_in


# The stand-ins have no settable attributes, so a file cannot change them either.


class _ArrayName:
    """Stands for numpy.ndarray, which is only named."""

    __slots__ = ()


class _MakeArray:
    """Stands for numpy's _reconstruct, which makes an empty array to be filled by its state."""

    __slots__ = ()

    def __call__(self, array_type: Any, shape: Any, code: Any) -> _Array:
        if not isinstance(array_type, _ArrayName):
            raise ValueError("only plain arrays can be read")
        return _Array()


class _MakeDtype:
    """Stands for numpy.dtype."""

    __slots__ = ()

    def __call__(self, code: Any, align: Any = False, copy: Any = False) -> _Dtype:
        return _Dtype(code)


class _Encode:
    """Stands for _codecs.encode, as Python 3 writes the bytes of an array in protocol 2."""

    __slots__ = ()

    def __call__(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise ValueError("only latin1 text can stand for bytes")
        return text.encode("latin1")


class _Dtype:
    """An element type: a code of `_DTYPES` and a byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any) -> None:
        text = code.decode("ascii") if isinstance(code, bytes) else code
        if text not in _DTYPES:
            raise ValueError(f"unknown element type {text!r}")
        self.code = text
        self.order = "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        self.order = order.decode("ascii") if isinstance(order, bytes) else order
        if self.order not in ("|", "<", ">", "="):
            raise ValueError(f"unknown byte order {self.order!r}")


class _Array:
    """An array: shape, element type, order and bytes."""

    __slots__ = ("state",)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def to_numpy(self) -> np.ndarray:
        _, shape, dtype, is_fortran, content = self.state
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes):
            raise ValueError("an array must have an element type and bytes")
        if not all(isinstance(size, int) and size >= 0 for size in shape):
            raise ValueError(f"an array cannot have the shape {shape!r}")
        elements = np.frombuffer(content, dtype=np.dtype(dtype.order + dtype.code))
        if elements.size != math.prod(shape):
            raise ValueError(f"an array of shape {shape} has {elements.size} elements")
        return elements.reshape(shape, order="F" if is_fortran else "C")


def _with_arrays(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.to_numpy()
    if isinstance(value, dict):
        return {key: _with_arrays(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_with_arrays(entry) for entry in value)
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise ValueError(f"cannot hold a {type(value).__name__.strip('_')}")
