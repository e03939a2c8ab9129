"""The training losses since the last record, kept on the device until it is due."""

from __future__ import annotations

from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from anybatch.world import World

__all__ = ["BadUpdate", "LossWindow"]


class BadUpdate(NamedTuple):
    """The first update of a window whose loss was not finite.

    Attributes:
        number: counted from 1 within the window.
        position: (epoch, examples of the epoch before it).
        num_examples: of its global batch.
    """

    number: int
    position: tuple[int, int]
    num_examples: int


@final
class LossWindow:
    """Per-example losses of the updates since the last record.

    Nothing is added up or read before `reduce`, so an update costs no kernel and no
    synchronization.

    Args:
        device: of the losses.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._losses: list[list[Tensor]] = []
        self._sizes: list[int] = []
        self._positions: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def num_examples(self) -> int:
        """Examples of the updates so far, over all ranks."""
        return sum(self._sizes)

    def append(
        self, losses: list[Tensor], num_examples: int, position: tuple[int, int] = (0, 0)
    ) -> None:
        """Add an update.

        Args:
            losses: one vector of per-example losses for each of this rank's micro-batches.
            num_examples: of the global batch.
            position: (epoch, examples of the epoch before it), to find the batch again.
        """
        self._positions.append(position)
        self._losses.append(losses)
        self._sizes.append(num_examples)

    def reduce(self, world: World) -> tuple[float, BadUpdate | None]:
        """Mean loss per example, and the first update whose loss was not finite, if any.

        Empties the window.

        Collectives:
            One all-reduce of a number per update; every rank must call.
        """
        sums = self._sums()
        world.sum_in_place(sums)
        values = sums.tolist()
        mean = sum(values) / max(1, self.num_examples)
        finite = sums.isfinite().tolist()
        bad = None
        if not all(finite):
            first = finite.index(False)
            bad = BadUpdate(first + 1, self._positions[first], self._sizes[first])
        self._losses, self._sizes, self._positions = [], [], []
        return mean, bad

    def _sums(self) -> Tensor:
        """Summed loss of each update on this rank, float64."""
        if (
            len({tuple(map(len, losses)) for losses in self._losses}) == 1
            and len(self._losses[0]) == 1
        ):
            return torch.stack([losses[0] for losses in self._losses]).sum(1, dtype=torch.float64)
        sums = torch.zeros(len(self._sizes), dtype=torch.float64, device=self._device)
        for number, losses in enumerate(self._losses):
            for vector in losses:
                sums[number] += vector.sum(dtype=torch.float64)
        return sums

    def state_dict(self) -> dict[str, Any]:
        """The window as it stands (this rank's losses)."""
        losses = [[vector.cpu() for vector in vectors] for vectors in self._losses]
        return {"losses": losses, "sizes": self._sizes, "positions": self._positions}

    def load_state_dict(self, states: list[dict[str, Any]], world: World) -> None:
        """Put back what `state_dict` returned, each loss on one rank, however many there are now.

        Args:
            states: of every rank that there was, in order.
            world: the ranks that there are.
        """
        own = states[world.rank :: world.size]
        updates = range(len(states[0]["sizes"]))
        losses = [[v for state in own for v in state["losses"][update]] for update in updates]
        self._losses = [[v.to(self._device) for v in vectors] for vectors in losses]
        self._sizes = list(states[0]["sizes"])
        self._positions = [(epoch, offset) for epoch, offset in states[0]["positions"]]
