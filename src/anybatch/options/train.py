"""Options of `anybatch train`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from anybatch.options.parts import Flag, Folder, Name, Overrides

__all__ = ["Train"]


@dataclass(kw_only=True)
class Train:
    """Train a network on a task, show its progress, and write a run folder.

    Example: anybatch train mnist --target 0.99
    """

    task: tyro.conf.Positional[Name] = None
    """Built-in name (see `anybatch tasks`) or package.module:function; not needed with --resume."""
    recipe: Name = None
    """Shipped name, TOML file or package.module:function; by default the one that fits the task."""
    set: Overrides = ()
    """Change a field of the recipe, as in --set optimizer.lr=0.3; may be repeated."""
    data: Folder = None
    """Folder of data sets as torchvision lays them out; by default ANYBATCH_DATA, then ./data."""
    out: Folder = None
    """New folder for the run; by default one below runs/."""
    target: Annotated[str | None, tyro.conf.arg(metavar="TARGET")] = None
    """Stop when reached: 0.99, 'accuracy>=0.99' or 'loss<=1.6'; exit 1 if it is missed."""
    target_on: Annotated[
        Literal["validation", "test"] | None, tyro.conf.arg(metavar="{validation,test}")
    ] = None
    """Split that the target is judged on; test only for published protocols."""
    plan: Annotated[Path | None, tyro.conf.arg(metavar="PLAN")] = None
    """Train as this plan.json says, from where its pilot ended; to be given without a recipe."""
    seeds: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Train this many seeds, one after another; a study that can be resumed."""
    resume: Folder = None
    """Go on with this run, or study, where it stopped."""
    extend: Annotated[str | None, tyro.conf.arg(metavar="DURATION")] = None
    """With --resume: train this much longer, as in --extend '5 epochs'."""
    dry_run: Flag = False
    """Only build all and take two updates on made-up data: memory, bytes between ranks, seconds."""
    ranks: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """With --dry-run: processes that would share the training."""
    json: Flag = False
    """Print one JSON document on standard output and nothing else."""

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        from anybatch.commands.train import train

        return train(self)
