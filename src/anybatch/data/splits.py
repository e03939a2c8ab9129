"""Splits: a data set as its loader returns it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from anybatch.data.source import Source

__all__ = ["Splits"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Splits:
    """The parts of a data set and what a model has to know about it.

    Attributes:
        kind: "classification" (targets are class numbers) or "language-modelling" (targets are
            the next tokens).
        train: the training examples.
        test: examples to read once at the end.
        validation: examples to choose by; None where the data set brings none, so that the task
            sets a fixed part of `train` aside.
        input_shape: of one example: (C, H, W) for images, (context_length,) for text.
        num_outputs: classes, or vocabulary size.
        vocabulary_size: number of different tokens; None for images.
        class_names: name of each output, in the order of the class numbers (characters for text).
        attribution: who made the data, and its licence where it is known.
    """

    kind: Literal["classification", "language-modelling"]
    train: Source
    test: Source
    validation: Source | None = None
    input_shape: tuple[int, ...]
    num_outputs: int
    vocabulary_size: int | None = None
    class_names: tuple[str, ...]
    attribution: str
