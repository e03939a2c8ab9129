"""Options of `anybatch study`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from anybatch.options.parts import Flag, Folder, Name, Overrides, named

__all__ = ["StudyBatchSize", "StudyCommands", "StudyResume"]

_On = Annotated[str, tyro.conf.arg(metavar="WHERE")]
_Time = Annotated[str | None, tyro.conf.arg(name="for", metavar="TIME")]


@dataclass(kw_only=True)
class StudyBatchSize:
    """What it takes to reach a target at several batch sizes: updates, examples, seconds.

    The recipe's duration is the cap of each trial. Data is found under ANYBATCH_DATA, or ./data.

    Example: anybatch study batch-size digits --target 0.95 --batch-sizes 8,32,128 --lr 0.1
    """

    task: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="TASK")]]
    """Built-in name (see `anybatch tasks`) or package.module:function."""
    recipe: Name = None
    """Shipped name, TOML file or package.module:function; by default the one that fits the task."""
    set: Overrides = ()
    """Change a field of the recipe, as in --set duration='20 epochs'; may be repeated."""
    out: Folder = None
    """New folder for the study; by default one below runs/."""
    target: Annotated[str | None, tyro.conf.arg(metavar="TARGET")] = None
    """What is to be reached: 0.98, 'accuracy>=0.98' or 'loss<=1.6'; by default the recipe's."""
    batch_sizes: Annotated[str | None, tyro.conf.arg(metavar="B,B,...")] = None
    """As in 8,32,128; by default 8, 32, 128, ... up to the set, and the recipe's."""
    lr: Annotated[float | None, tyro.conf.arg(metavar="LR")] = None
    """The same for every batch size; by default tuned for each, by successive halving."""
    seeds: Annotated[int, tyro.conf.arg(metavar="N")] = 3
    """Runs of each batch size that enter the table; tuning has a seed of its own."""
    for_: _Time = None
    """Stop after this time, as in 150m, 2h or 90s; `anybatch study resume DIR` goes on."""
    on: _On = "local"
    """local (this process), local:2 (two of them), ray, or ray:8."""
    json: Flag = False
    """Print one JSON document on standard output and nothing else."""

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        from anybatch.commands.study import study_batch_sizes

        return study_batch_sizes(self)


@dataclass(kw_only=True)
class StudyResume:
    """Go on with a study of batch sizes where it stopped, or was killed; or show what it found.

    Example: anybatch study resume runs/digits-batch-size --for 150m
    """

    study: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="DIR")]]
    """Folder of the study."""
    data: Folder = None
    """Folder of data sets, where it has moved."""
    for_: _Time = None
    """Stop after this time, as in 150m, 2h or 90s; 0s trains nothing and shows the table."""
    on: _On = "local"
    """local (this process), local:2 (two of them), ray, or ray:8."""
    json: Flag = False
    """Print one JSON document on standard output and nothing else."""

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        from anybatch.commands.study import resume_study

        return resume_study(self)


_STUDY_COMMANDS: Any = named(StudyBatchSize, "batch-size") | named(StudyResume, "resume")


@dataclass(kw_only=True)
class StudyCommands:
    """Many runs that answer one question: which batch size reaches a target with what.

    Example: anybatch study batch-size digits --target 0.95
    """

    command: _STUDY_COMMANDS = field()

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        return int(self.command.run())
