"""Seen: how many examples came through the layers of each block, and how many of them count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from anybatch.kfac.layer_sums import num_measured

__all__ = ["Seen", "usual_examples", "usual_passed"]


class Seen(NamedTuple):
    """What came through the layers of one block.

    Attributes:
        calls: of them.
        examples: of all calls, that were measured.
        passed: of all calls.
    """

    calls: int = 0
    examples: int = 0
    passed: int = 0

    def and_one_of(self, passed: int, share: float) -> Seen:
        """With one more call, of so many examples of which a share is measured."""
        measured = num_measured(passed, share)
        return Seen(self.calls + 1, self.examples + measured, self.passed + passed)


def usual_examples(seen: Mapping[str, Seen]) -> int:
    """N: examples that were measured.

    That is the sum of leading dimensions of the inputs of a layer that is called as seldom as any;
    where such layers differ, the most common sum, and of several the smallest. (A layer may be
    called many times for an example, and positions have an embedding without examples.)

    Args:
        seen: by block.

    Example:
        >>> usual_examples({"a": Seen(1, 8, 8), "shared": Seen(2, 16, 16), "b": Seen(1, 8, 8)})
        8
    """
    return _usual([(each.calls, each.examples) for each in seen.values()])


def usual_passed(seen: Mapping[str, Seen]) -> int:
    """Examples that have passed, measured or not.

    Args:
        seen: by block.
    """
    return _usual([(each.calls, each.passed) for each in seen.values()])


def _usual(of_blocks: list[tuple[int, int]]) -> int:
    if not of_blocks:
        return 0
    seldom = min(calls for calls, _ in of_blocks)
    counts = [count for calls, count in of_blocks if calls == seldom]
    return min(set(counts), key=lambda count: (-counts.count(count), count))
