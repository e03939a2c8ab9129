"""Options of `anybatch plan` and `anybatch explain`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from anybatch.options.measuring import MeasurementOptions
from anybatch.options.parts import Flag

__all__ = ["Explain", "MakePlan"]


@dataclass(kw_only=True)
class MakePlan(MeasurementOptions):
    """Measure a task and this machine: batch size, lr, schedule, and how long to the target.

    Example: anybatch plan mnist --target 0.98
    """

    target: Annotated[str | None, tyro.conf.arg(metavar="TARGET")] = None
    """What is to be reached on validation: 0.98, 'accuracy>=0.98' or 'loss<=1.6'."""
    budget: Annotated[str, tyro.conf.arg(metavar="SHARE")] = "5%"
    """What measuring may take of the present recipe's time; short runs take up to 30 %."""

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        from anybatch.commands.plan import make

        return make(self)


@dataclass(kw_only=True)
class Explain:
    """Show a plan again: every reason, what each batch size would cost, what would change it.

    Example: anybatch explain runs/plan/plan.json
    """

    plan: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="PLAN")]]
    """A plan.json, or the folder that holds it."""
    replay: Flag = False
    """Compute the plan again from its raw samples, and say whether it is the same."""
    json: Flag = False
    """Print one JSON document."""

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        from anybatch.commands.plan import explain

        return explain(self)
