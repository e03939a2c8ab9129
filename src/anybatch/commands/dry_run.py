"""`anybatch train --dry-run`: build all, take two updates on made-up data, say what they need.

Nothing is read of the data set but its shape, and nothing is written unless --out asks for it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anybatch.commands.output import show, table
from anybatch.errors import ExitCode, InputError
from anybatch.recipe import Recipe
from anybatch.records import plain

if TYPE_CHECKING:
    from anybatch.measuring.dry_run import DryRun
    from anybatch.options.train import Train
    from anybatch.task import Task

__all__ = ["dry_run", "launch_command"]

_RANKS_OF_A_MACHINE = 8
_MOST_UNCOVERED = 5


def dry_run(options: Train, recipe: Recipe) -> int:
    """Carry out `anybatch train --dry-run` and return its exit code.

    Args:
        options: of `anybatch train`.
        recipe: that they ask for.

    Raises:
        InputError: anything given that breaks a rule, as a training would refuse it too.
    """
    from anybatch.measuring.dry_run import dry_run as rehearse

    if options.ranks < 1:
        raise InputError("--ranks", "must be >= 1", options.ranks)
    task, small, changes = _prepared(options, recipe)
    found = rehearse(task, small, ranks=options.ranks)
    command = launch_command(options)
    document = {"task": options.task, "cut_down": changes, "command": command}
    document |= plain(dataclasses.asdict(found))
    if options.out is not None:
        _write(options.out, document)
    if options.json:
        show(json.dumps(document))
    else:
        show(_text(found, recipe, changes, command))
    return ExitCode.OK


def _prepared(options: Train, recipe: Recipe) -> tuple[Task, Recipe, list[str]]:
    """The task, its data made up; the recipe with a smaller update; what is not as it will be."""
    from anybatch.data.catalog import is_builtin
    from anybatch.measuring import dry_run_task as made
    from anybatch.task import load_task

    name, ranks = options.task or "", options.ranks
    if _is_elsewhere(options):
        shape = made.imagenet_shape(recipe.image_size)
        of_set = {"numbers": math.prod(shape.input_shape), "num_examples": made.IMAGENET_EXAMPLES}
        small, changes = made.made_small(recipe, ranks=ranks, **of_set)
        size = "x".join(map(str, shape.input_shape))
        here = f"{size} noise in 1,000 classes, as of ImageNet: {name} is not here"
        task = made.synthetic_task(name, shape, "classification", num_examples=_needed(small))
        return task, small, [here, *changes]
    task = load_task(name, data=options.data, image_size=recipe.image_size)
    count = task.source("train").num_examples
    numbers = made.numbers_of(task)
    small, changes = made.made_small(recipe, ranks=ranks, numbers=numbers, num_examples=count)
    if not is_builtin(name) or task.shape is None:
        return task, small, ["the task's own data", *changes]
    task = made.synthetic_task(name, task.shape, task.kind, num_examples=_needed(small))
    return task, small, ["noise in the place of the data", *changes]


def _needed(small: Recipe) -> int:
    """Examples of two updates."""
    return 2 * small.batch_size if isinstance(small.batch_size, int) else 2


def _is_elsewhere(options: Train) -> bool:
    """Whether the images are those of a folder that is on another machine."""
    from anybatch.data.catalog import data_root

    base, _, path = (options.task or "").partition(":")
    if base != "image-folder" or not path:
        return False
    given = Path(path).expanduser()
    return not given.exists() and not (data_root(options.data) / given).exists()


def launch_command(options: Train) -> str:
    """The line that begins the training on so many ranks, 8 on each machine.

    Args:
        options: of `anybatch train`.
    """
    ranks = options.ranks
    words = ["train", options.task or ""]
    words += [] if options.recipe is None else ["--recipe", options.recipe]
    words += [word for change in options.set for word in ("--set", change)]
    words += [] if options.data is None else ["--data", str(options.data)]
    line = shlex.join(words)
    if ranks == 1:
        return f"anybatch {line}"
    if ranks <= _RANKS_OF_A_MACHINE:
        return f"torchrun --nproc-per-node={ranks} -m anybatch {line}"
    machines = -(-ranks // _RANKS_OF_A_MACHINE)
    meeting = "--rdzv-backend=c10d --rdzv-endpoint=HOST:29500"
    several = f"--nnodes={machines} --nproc-per-node={_RANKS_OF_A_MACHINE} {meeting}"
    return f"torchrun {several} -m anybatch {line}"


def _write(folder: Path, document: dict[str, Any]) -> None:
    path = folder / "dry-run.json"
    if path.exists():
        raise InputError("--out", "must be a folder without a dry-run.json", str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


# --- what is printed -------------------------------------------------------------------------


def _text(found: DryRun, recipe: Recipe, changes: list[str], command: str) -> str:
    sections = [
        "\n".join([*_parameters(found, recipe), *(f"here: {change}" for change in changes)]),
        _memory_table(found),
        _travel_table(found),
        _stage_table(found),
        "\n".join(_inversions(found)),
        f"to train: {command}",
    ]
    return "\n\n".join(section for section in sections if section)


def _parameters(found: DryRun, recipe: Recipe) -> list[str]:
    lines = [f"{found.parameters:,} parameters, on {found.device}"]
    if recipe.preconditioner is None:
        return lines
    lines[0] += f"; {found.covered_parameters:,} of them under K-FAC"
    shown = found.uncovered[:_MOST_UNCOVERED]
    lines += [f"not covered: {name}: {reason}" for name, reason in shown]
    more = len(found.uncovered) - len(shown)
    return [*lines, f"not covered: {more} more"] if more else lines


def _memory_table(found: DryRun) -> str:
    known = {name: size for name, size in found.memory_bytes.items() if size > 0}
    rows = [[name, _mebibytes(size)] for name, size in known.items()]
    return table(["memory of one rank alone", "MiB"], rows)


def _travel_table(found: DryRun) -> str:
    if found.ranks == 1:
        return "nothing travels on one rank (--ranks N says what would on N)"
    head = [f"sent by each of {found.ranks:,} ranks", "every", "payload MiB", "over its link MiB"]
    rows = [
        [
            travel.what,
            f"{travel.every} updates" if travel.every else "as found due",
            _mebibytes(travel.payload_bytes),
            _mebibytes(travel.link_bytes),
        ]
        for travel in found.travels
    ]
    return table(head, rows)


def _stage_table(found: DryRun) -> str:
    stages = list(dict.fromkeys(stage for update in found.seconds for stage in update))
    rows = [[stage, *(_seconds(u.get(stage)) for u in found.seconds)] for stage in stages]
    rows.append(["all", *(_seconds(sum(update.values())) for update in found.seconds)])
    heads = [f"update {number}, s" for number in range(1, len(found.seconds) + 1)]
    return table(["stage of an update made small, here", *heads], rows)


def _inversions(found: DryRun) -> list[str]:
    """What placement makes of the inversions that were timed."""
    seconds = max((update.get("inversion", 0.0) for update in found.seconds), default=0.0)
    if found.ranks == 1 or not seconds:
        return []
    busiest = seconds * found.busiest_share
    return [
        f"inversions over {found.ranks:,} ranks: {busiest:.3g} s on the busiest, "
        f"{100 * found.busiest_share:.3g} % of them all"
    ]


def _mebibytes(size: float) -> str:
    return f"{size / 2**20:,.4g}" if size < 2**33 else f"{size / 2**20:,.0f}"


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:,.3g}"
