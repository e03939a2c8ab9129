"""Seconds that each Fisher block costs its owner: inversions and preconditioning, one at a time."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from anybatch.kfac.applying import matrix_shape, preconditioned_matrix
from anybatch.kfac.blocks import FactorShape, FisherBlock
from anybatch.kfac.packing import packed_count
from anybatch.kfac.solve import damped_inverses
from anybatch.recipe import KFACSettings

__all__ = ["BlockTimes", "num_bytes", "seconds_of", "wait_for"]

_RELATIVE_DAMPING = 0.1  # of the mean eigenvalue: every inversion succeeds at the first attempt
_REPEATS, _LONGEST_VISIT = 5, 0.03  # of a stage in a round, and seconds after which one is enough
_LONGEST_INVERSION = 0.1  # of the seconds allowed; what takes longer is timed once


@final
class BlockTimes:
    """Inversions and preconditionings, each different one timed once a round.

    Args:
        blocks: whose.
        kfac: the solver.
        longest: seconds above which an inversion is timed in one round alone.
    """

    def __init__(self, blocks: Sequence[FisherBlock], kfac: KFACSettings, longest: float) -> None:
        self._blocks, self._kfac = blocks, kfac
        self._longest = _LONGEST_INVERSION * longest
        self._inversions: dict[FactorShape, list[float]] = {}
        self._preconditions: dict[tuple[object, ...], list[float]] = {}

    def take(self, sums: Mapping[str, Tensor]) -> tuple[float, float]:
        """One round: seconds of all inversions, and of preconditioning every gradient once.

        Args:
            sums: of the statistics, by factor name; how they are divided does not matter.
        """
        done: set[object] = set()
        for block in self._blocks:
            for factor in block.factors:
                shape = _unnamed(factor)
                if shape not in done:
                    self._time_inversion(factor, sums[factor.name])
                done.add(shape)
            kind = _kind(block)
            if kind not in done:
                own = {factor.name: sums[factor.name] for factor in block.factors}
                first = next(iter(own.values()))
                matrix = torch.ones(matrix_shape(block), dtype=first.dtype, device=first.device)
                call = functools.partial(preconditioned_matrix, block, matrix, own)
                found = self._preconditions.setdefault(kind, [])
                found.append(seconds_of(call, first.device))
            done.add(kind)
        factors = (factor for block in self._blocks for factor in block.factors)
        return (
            sum(self._inversions[_unnamed(factor)][-1] for factor in factors),
            sum(self._preconditions[_kind(block)][-1] for block in self._blocks),
        )

    def _time_inversion(self, factor: FactorShape, values: Tensor) -> None:
        found = self._inversions.setdefault(_unnamed(factor), [])
        if found and statistics.median(found) > self._longest:
            return
        diagonal = values if factor.diagonal else values.diagonal(dim1=1, dim2=2)
        damping = _RELATIVE_DAMPING * diagonal.mean() + torch.finfo(values.dtype).tiny
        jobs = [(factor.name, values, damping)]
        call = functools.partial(damped_inverses, jobs, solver=self._kfac.solver)
        found.append(seconds_of(call, values.device))

    def described(self) -> list[dict[str, Any]]:
        """Plain values: of each block its factors' sizes and all seconds, raw."""
        return [
            {
                "name": block.name,
                "kind": block.kind,
                "gradient_bytes": num_bytes(block.parameters),
                "precondition_seconds": list(self._preconditions[_kind(block)]),
                "factors": [self._factor(factor) for factor in block.factors],
            }
            for block in self._blocks
        ]

    def _factor(self, factor: FactorShape) -> dict[str, Any]:
        each = factor.side if factor.diagonal else packed_count(factor.side)
        return {
            "name": factor.name,
            "groups": factor.groups,
            "side": factor.side,
            "diagonal": factor.diagonal,
            "elements": factor.groups * each,
            "inversion_seconds": list(self._inversions[_unnamed(factor)]),
        }


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Median seconds of a call, over some where it is short.

    Args:
        call: to time.
        device: that is waited for.
    """
    found: list[float] = []
    while not found or (sum(found) < _LONGEST_VISIT and len(found) < _REPEATS):
        wait_for(device)
        started = time.perf_counter()
        call()
        wait_for(device)
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def num_bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of tensors together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def wait_for(device: torch.device) -> None:
    """Let a GPU come to the end of what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _unnamed(factor: FactorShape) -> FactorShape:
    """The same for all factors that cost the same."""
    return dataclasses.replace(factor, name="", role="A")


def _kind(block: FisherBlock) -> tuple[object, ...]:
    """The same for all blocks whose gradients cost the same."""
    is_norm = block.kind == "norm"
    return (is_norm, matrix_shape(block), *(factor.diagonal for factor in block.factors))
