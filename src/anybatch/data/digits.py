"""Digits: 1,797 handwritten digits of 8x8 pixels, which ship with the package."""

from __future__ import annotations

import gzip
from importlib.resources import files
from typing import Final

import numpy as np

from anybatch.data.draws import permutation
from anybatch.data.resident import Normalization, ResidentSource
from anybatch.data.splits import Splits

__all__ = ["load_digits"]

_NUM_TEST: Final = 360
_SPLIT_SEED: Final = 1998  # the year of the data set; any fixed number does
_NORMALIZATION: Final = Normalization(mean=(0.3053,), std=(0.3760,), scale=16.0)
_ATTRIBUTION: Final = (
    "Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits (test part), UCI Machine"
    " Learning Repository, CC BY 4.0"
)


def load_digits() -> Splits:
    """The digits, 1,437 to train and 360 to test, the same ones always.

    The test examples are the first 360 of `permutation(1797, seed=1998, epoch=0)`, in that order,
    and the training examples the rest. Pixels are 0 ... 16.

    Example:
        >>> splits = load_digits()
        >>> splits.train.num_examples, splits.test.num_examples, splits.input_shape
        (1437, 360, (1, 8, 8))
    """
    packed = files("anybatch.data").joinpath("files", "digits.csv.gz").read_bytes()
    lines = gzip.decompress(packed).decode("ascii").splitlines()
    table = np.array([line.split(",") for line in lines], dtype=np.uint8)
    images = table[:, :64].reshape(-1, 8, 8, 1)
    order = permutation(len(table), seed=_SPLIT_SEED, epoch=0).numpy()
    sources = {
        split: ResidentSource.from_arrays(
            images[chosen], table[chosen, 64], normalization=_NORMALIZATION, split=split
        )
        for split, chosen in (("train", order[_NUM_TEST:]), ("test", order[:_NUM_TEST]))
    }
    return Splits(
        kind="classification",
        train=sources["train"],
        test=sources["test"],
        input_shape=(1, 8, 8),
        num_outputs=10,
        class_names=tuple(str(digit) for digit in range(10)),
        attribution=_ATTRIBUTION,
    )
