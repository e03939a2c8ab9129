"""Stages: where the seconds of an update go, measured only when asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias, final

import torch

__all__ = ["Stage", "Stages"]

Stage: TypeAlias = Literal["statistics", "exchange", "inversion", "precondition", "share", "write"]


@final
class Stages:
    """Seconds of the stages of one update.

    Args:
        device: where the work is done; a GPU is waited for at both ends of a stage.

    Attributes:
        timed: whether seconds are taken; off, nothing waits and nothing is kept.
        seconds: by stage, of the last update that has ended.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.timed = False
        self.seconds: dict[Stage, float] = {}
        self._open: dict[Stage, float] = {}

    def end(self) -> None:
        """An update has ended: its seconds can be read, those of the next begin at 0."""
        self.seconds, self._open = self._open, {}

    @contextmanager
    def of(self, stage: Stage) -> Iterator[None]:
        """A context whose seconds count for `stage`."""
        if not self.timed:
            yield
            return
        self._wait()
        started = time.perf_counter()
        yield
        self._wait()
        self._open[stage] = self._open.get(stage, 0.0) + time.perf_counter() - started

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
