"""Text: a file as a character-level language model."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from anybatch.data.resident import ResidentSource
from anybatch.data.splits import Splits
from anybatch.errors import InputError

__all__ = ["load_text"]

_TRAIN_FRACTION: Final = 0.9
_VALIDATION_FRACTION: Final = 0.05


def load_text(path: Path, *, context_length: int = 128) -> Splits:
    """Windows of a text, each with the characters that follow.

    The vocabulary is the sorted set of characters of the whole file. The first 90 % of the text
    are to train, the next 5 % to validate and the last 5 % to test. Each part is cut into windows
    of `context_length` characters that do not overlap, so that each character is predicted once in
    an epoch; the target of a window is the window one character later. Characters that do not fill
    a window are left out.

    Args:
        path: a text in UTF-8.
        context_length: characters of a window, >= 1.

    Raises:
        InputError: if the file cannot be read or decoded, or is too short for a window in each
            part.
    """
    if context_length < 1:
        raise InputError("context_length", "must be >= 1", context_length)
    characters = np.frombuffer(_text(path).encode("utf-32-le"), dtype=np.uint32)
    vocabulary, tokens = np.unique(characters, return_inverse=True)
    first = int(len(tokens) * _TRAIN_FRACTION)
    second = int(len(tokens) * (_TRAIN_FRACTION + _VALIDATION_FRACTION))
    shortest = min(first, second - first, len(tokens) - second)
    if shortest < context_length + 1:
        needed = 20 * (context_length + 1)
        raise InputError(
            str(path),
            f"must hold about {needed} characters, so that each part has a window of"
            f" {context_length} and one more",
            f"{len(tokens)} characters",
            hint="a smaller context_length needs less",
        )
    parts = {"train": tokens[:first], "validation": tokens[first:second], "test": tokens[second:]}
    sources = {split: _source(part, context_length, split) for split, part in parts.items()}
    return Splits(
        kind="language-modelling",
        train=sources["train"],
        validation=sources["validation"],
        test=sources["test"],
        input_shape=(context_length,),
        num_outputs=len(vocabulary),
        vocabulary_size=len(vocabulary),
        class_names=tuple(chr(code) for code in vocabulary.tolist()),
        attribution=f"text file {path.name}",
    )


def _source(tokens: np.ndarray, context_length: int, split: str) -> ResidentSource:
    num_windows = (len(tokens) - 1) // context_length
    used = torch.from_numpy(tokens[: num_windows * context_length + 1].astype(np.int64))

    def windows(of: Tensor) -> Tensor:
        return of.view(num_windows, context_length)

    return ResidentSource.from_arrays(windows(used[:-1]), windows(used[1:]), split=split)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            str(path),
            f"must be text in UTF-8, but byte {error.start} is not: {error.reason}",
        ) from error
    except OSError as error:
        raise InputError(str(path), f"must be readable: {error.strerror}") from error
