"""Factors: running statistics and damped inverses of the factors that one rank owns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, final

import torch
from torch import Tensor

from anybatch.errors import InputError
from anybatch.kfac.adaptive_refresh import History
from anybatch.kfac.blocks import FactorShape
from anybatch.kfac.ladder import EventCounts
from anybatch.kfac.solve import damped_inverses
from anybatch.recipe_preconditioner import AdaptiveRefresh, KFACSettings

__all__ = ["Factors"]


@final
class Factors:
    """Statistics of the owned factors, averaged over refreshes, and their inverses.

    Args:
        shapes: of the factors that this rank owns.
        settings: average, solver, similarity.

    Attributes:
        running: by factor name, (groups, side, side) or (groups, side); never changed by inverting.
        inverses: damped, of the same shapes; one that could not be made anew stays as it was.
        events: what went wrong, counted by factor and rung.
    """

    def __init__(self, shapes: Iterable[FactorShape], settings: KFACSettings) -> None:
        self.shapes = {shape.name: shape for shape in shapes}
        self._settings = settings
        self.running: dict[str, Tensor] = {}
        self.inverses: dict[str, Tensor] = {}
        self.events = EventCounts()
        self._measured: dict[str, int] = {}  # last update with a measurement
        self._histories: dict[str, History] = {}
        if isinstance(settings.refresh, AdaptiveRefresh):
            self._histories = {name: History() for name in self.shapes}

    def take(self, statistics: Mapping[str, Tensor], update: int) -> None:
        """Move the running statistics by a new measurement.

        running <- share * running + (1 - share) * new; the first one as it is. The share is
        `average`, of an adaptive refresh average^n after n updates without a measurement, so that a
        rare one counts for all that it stands for. A measurement that is not finite (squares of
        gradients above 1e19 are not) moves nothing; that is decided, and counted, on the device.

        Args:
            statistics: of owned factors, in memory that is theirs from now on.
            update: its number.
        """
        for name, new in statistics.items():
            elapsed = update - self._measured.get(name, update - 1) if self._histories else 1
            share = self._settings.average ** max(1, elapsed)
            self._measured[name] = update
            old = self.running.get(name)
            if old is None:
                self.running[name] = new
                continue
            # Of sums of squares: what is not finite anywhere is not so on the diagonal.
            is_finite = torch.isfinite(_diagonal(new).sum())
            self.events.add_if(name, "ignored", ~is_finite)
            if self._histories:  # these go on reading the measurement
                self.running[name] = torch.where(is_finite, torch.lerp(new, old, share), old)
            else:
                new.lerp_(old, share)
                self.running[name] = torch.where(is_finite, new, old, out=new)

    def changes(self, statistics: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Relative change of each measurement against the last and the one before, if adaptive."""
        if not self._histories:
            return {}
        return {name: self._histories[name].take(new) for name, new in statistics.items()}

    def invert(self, dampings: Mapping[str, Tensor]) -> None:
        """Make the damped inverses of some factors anew.

        Args:
            dampings: (groups,), by the names of the factors.

        Cost:
            About side^3 multiply-adds a factor and group; one synchronization for all.
        """
        jobs = [(name, self.running[name], damping) for name, damping in dampings.items()]
        results = damped_inverses(jobs, solver=self._settings.solver)
        for (name, _, _), (inverse, event) in zip(jobs, results, strict=True):
            if event is not None:
                self.events.add(event)
                if event.reason == "not-finite":
                    del self.running[name]  # the next measurement begins anew
            if inverse is not None:
                # One layout, whichever solver: products round by it, and states are compared.
                self.inverses[name] = inverse.contiguous()

    def state_dict(self) -> dict[str, Any]:
        """By factor name; tensors are not copied."""
        return {
            name: {
                "running": self.running.get(name),
                "inverse": self.inverses.get(name),
                "measured": self._measured.get(name),
                "history": self._histories[name].state_dict() if self._histories else None,
            }
            for name in self.shapes
        }

    def load_state_dict(
        self, state: Mapping[str, Any], *, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Take copies of what belongs to the owned factors.

        Args:
            state: of all factors.
            device: of the model.
            dtype: of the model's statistics.

        Raises:
            InputError: the state's factors have other sizes.
        """
        self.running, self.inverses, self._measured = {}, {}, {}
        for name, shape in self.shapes.items():
            one = state[name]
            for kept, key in ((self.running, "running"), (self.inverses, "inverse")):
                if one[key] is not None:
                    _check_size(name, one[key], shape)
                    kept[name] = one[key].to(device, dtype, copy=True)
            if one["measured"] is not None:
                self._measured[name] = one["measured"]
            if self._histories and one["history"] is not None:
                self._histories[name].load_state_dict(one["history"], device=device)


def _check_size(name: str, tensor: Tensor, shape: FactorShape) -> None:
    if tuple(tensor.shape) != shape.shape:
        rule = f"must have the shape {shape.shape}"
        hint = "is the state another model's?"
        raise InputError(f"factor {name}", rule, tuple(tensor.shape), hint=hint)


def _diagonal(statistic: Tensor) -> Tensor:
    return statistic if statistic.dim() == 2 else statistic.diagonal(dim1=1, dim2=2)
