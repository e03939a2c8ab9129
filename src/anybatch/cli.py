"""The command line: flat options made from dataclasses, one class a command.

Exits: 0 done, 1 target missed, 2 bad input, 3 diverged, 130 Ctrl-C, 143 SIGTERM. Standard output
carries the result (one JSON document with --json), standard error everything else.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, cast

import tyro

from anybatch.errors import ExitCode, InputError

__all__ = ["main"]

_Flag: TypeAlias = Annotated[bool, tyro.conf.FlagCreatePairsOff]
_Folder: TypeAlias = Annotated[Path | None, tyro.conf.arg(metavar="DIR")]
_Name: TypeAlias = Annotated[str | None, tyro.conf.arg(metavar="NAME")]
_Overrides: TypeAlias = Annotated[
    tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FIELD=VALUE")
]


def _print(text: str = "") -> None:
    print(text)  # noqa: T201


def _print_error(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


@dataclass(kw_only=True)
class Train:
    """Train a network on a task, show its progress, and write a run folder.

    Example: anybatch train mnist --target 0.99
    """

    task: tyro.conf.Positional[_Name] = None
    """Built-in name (see `anybatch tasks`) or package.module:function; not needed with --resume."""
    recipe: _Name = None
    """Shipped name, TOML file or package.module:function; by default the one that fits the task."""
    set: _Overrides = ()
    """Change a field of the recipe, as in --set optimizer.lr=0.3; may be repeated."""
    data: _Folder = None
    """Folder of data sets as torchvision lays them out; by default ANYBATCH_DATA, then ./data."""
    out: _Folder = None
    """New folder for the run; by default one below runs/."""
    target: Annotated[str | None, tyro.conf.arg(metavar="TARGET")] = None
    """Stop when reached: 0.99, 'accuracy>=0.99' or 'loss<=1.6'; exit 1 if it is missed."""
    target_on: Annotated[
        Literal["validation", "test"] | None, tyro.conf.arg(metavar="{validation,test}")
    ] = None
    """Split that the target is judged on; test only for published protocols."""
    seeds: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Train this many seeds, one after another; a study that can be resumed."""
    resume: _Folder = None
    """Go on with this run, or study, where it stopped."""
    extend: Annotated[str | None, tyro.conf.arg(metavar="DURATION")] = None
    """With --resume: train this much longer, as in --extend '5 epochs'."""
    json: _Flag = False
    """Print one JSON document on standard output and nothing else."""

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        from anybatch.commands.train import train

        return train(self)


@dataclass(kw_only=True)
class LRRange:
    """Measure the range of learning rates that a task can be trained with; nothing is trained.

    Example: anybatch lr-range mnist
    """

    task: tyro.conf.Positional[str]
    """Built-in name (see `anybatch tasks`) or package.module:function."""
    recipe: _Name = None
    """Shipped name, TOML file or package.module:function; by default the one that fits the task."""
    set: _Overrides = ()
    """Change a field of the recipe, as in --set batch_size=512; may be repeated."""
    data: _Folder = None
    """Folder of data sets; by default ANYBATCH_DATA, then ./data."""
    out: _Folder = None
    """New folder for the measurement; by default one below runs/."""
    start_lr: Annotated[float, tyro.conf.arg(metavar="LR")] = 1e-7
    """Where the ramp begins."""
    end_lr: Annotated[float, tyro.conf.arg(metavar="LR")] = 10.0
    """Where it ends, if the loss does not blow up before."""
    updates: Annotated[int, tyro.conf.arg(metavar="N")] = 100
    """Updates of a whole ramp."""
    spacing: Annotated[Literal["log", "linear"], tyro.conf.arg(metavar="{log,linear}")] = "log"
    """Whether the ramp multiplies or adds."""
    repeats: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Measure from this many beginnings: other weights, order and draws."""
    json: _Flag = False
    """Print one JSON document on standard output and nothing else."""

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        from anybatch.commands.lr_range import lr_range

        return lr_range(self)


@dataclass(kw_only=True)
class Tasks:
    """List the built-in tasks, where each is looked for, and whether it was found.

    Example: anybatch tasks --download mnist --data ~/data
    """

    download: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME")
    ] = ()
    """First fetch this data set: mnist, fashion-mnist or cifar10; may be repeated."""
    data: _Folder = None
    """Folder of data sets; by default ANYBATCH_DATA, then ./data."""
    json: _Flag = False
    """Print one JSON document."""

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        from anybatch.commands.tasks import list_tasks

        return list_tasks(self.data, download=self.download, as_json=self.json)


@dataclass(kw_only=True)
class RecipeList:
    """List the recipes that ship with the package.

    Example: anybatch recipe list
    """

    json: _Flag = False
    """Print one JSON document."""

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        from anybatch.commands.recipe import list_recipes

        return list_recipes(as_json=self.json)


@dataclass(kw_only=True)
class RecipeShow:
    """Show a recipe with every default written out, and its conventions in words.

    Example: anybatch recipe show mnist --set optimizer.lr=0.3
    """

    recipe: tyro.conf.Positional[str]
    """Shipped name, TOML file, a run's recipe.json, or package.module:function."""
    set: _Overrides = ()
    """Change a field, as in --set optimizer.lr=0.3; may be repeated."""
    json: _Flag = False
    """Print one JSON document."""

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        from anybatch.commands.recipe import show_recipe

        return show_recipe(self.recipe, self.set, as_json=self.json)


@dataclass(kw_only=True)
class RecipeCheck:
    """Check a recipe; exit 2 and one line if something is wrong.

    Example: anybatch recipe check my.toml
    """

    recipe: tyro.conf.Positional[str]
    """Shipped name, TOML file, a run's recipe.json, or package.module:function."""
    set: _Overrides = ()
    """Change a field, as in --set optimizer.lr=0.3; may be repeated."""

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        from anybatch.commands.recipe import check_recipe

        return check_recipe(self.recipe, self.set)


@dataclass(kw_only=True)
class RecipeDiff:
    """Show every field in which two recipes differ.

    Example: anybatch recipe diff mnist runs/mine/recipe.json
    """

    one: tyro.conf.Positional[str]
    """A recipe, by name, file or function."""
    other: tyro.conf.Positional[str]
    """Another one."""
    json: _Flag = False
    """Print one JSON document."""

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        from anybatch.commands.recipe import diff_recipes

        return diff_recipes(self.one, self.other, as_json=self.json)


@dataclass(kw_only=True)
class Report:
    """Write one page about runs and studies: verdict, curves, measurements, environment, commands.

    Example: anybatch report runs/one runs/other --out both.html
    """

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN...")]]
    """Folders of runs, studies or measurements; several are drawn on the same axes."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Where to; by default report.html in the run's folder, or here for several."""
    format: Annotated[
        Literal["html", "md", "png", "svg"], tyro.conf.arg(metavar="{html,md,png,svg}")
    ] = "html"
    """One page; Markdown with figures beside it; or the figures alone, into a folder."""
    title: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """Of the page; by default the tasks' names."""
    json: _Flag = False
    """Print one JSON document."""

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        from anybatch.commands.report import report

        return report(self)


@dataclass(kw_only=True)
class Compare:
    """Compare two arms: difference, interval, and a verdict only where it is resolved.

    Example: anybatch compare runs/sgd runs/adam
    """

    a: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="A")]]
    """A run, a study of one arm, STUDY:ARM, or a folder of runs."""
    b: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="B")]]
    """The other one."""
    metric: _Name = None
    """The metric's name, or loss; by default the metric, and the time to the target."""
    split: Annotated[
        Literal["validation", "test"] | None, tyro.conf.arg(metavar="{validation,test}")
    ] = None
    """By default test where both have it, else validation."""
    json: _Flag = False
    """Print one JSON document."""

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        from anybatch.commands.compare import compare

        return compare(self)


@dataclass(kw_only=True)
class RecipePreview:
    """Show what a recipe's schedules will do over updates and epochs, before any training.

    Example: anybatch recipe preview mnist --examples 54000 --out preview.png
    """

    recipe: tyro.conf.Positional[str]
    """Shipped name, TOML file, a run's recipe.json, or package.module:function."""
    task: tyro.conf.Positional[_Name] = None
    """Task whose training examples are counted; or give --examples."""
    set: _Overrides = ()
    """Change a field, as in --set optimizer.lr=0.3; may be repeated."""
    data: _Folder = None
    """Folder of the task's data; by default ANYBATCH_DATA, then ./data."""
    examples: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Training examples in an epoch, validation left out."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Draw the picture into this .png or .svg file."""
    json: _Flag = False
    """Print every update as one JSON document."""

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        from anybatch.commands.recipe import preview_recipe

        return preview_recipe(self)


def _named(command: Any, name: str) -> Any:
    summary = re.sub(r"\s*\n\s*", "\n", (command.__doc__ or "").strip())
    return Annotated[command, tyro.conf.subcommand(name, description=summary)]


_RECIPE_COMMANDS: Any = (
    _named(RecipeList, "list")
    | _named(RecipeShow, "show")
    | _named(RecipeCheck, "check")
    | _named(RecipeDiff, "diff")
    | _named(RecipePreview, "preview")
)


@dataclass(kw_only=True)
class RecipeCommands:
    """List, show, check, compare and preview recipes.

    Example: anybatch recipe show mnist
    """

    command: _RECIPE_COMMANDS = field()

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        return int(self.command.run())


_COMMANDS: Any = (
    _named(Train, "train")
    | _named(LRRange, "lr-range")
    | _named(Report, "report")
    | _named(Compare, "compare")
    | _named(Tasks, "tasks")
    | _named(RecipeCommands, "recipe")
)

_DESCRIPTION = """Measure a model, its data and a machine, and train at any batch size.

Example: anybatch train digits
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: without the program's name; None takes the process's.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given in (["--version"], ["-V"]):
        import importlib.metadata

        _print(f"anybatch {importlib.metadata.version('anybatch')}")
        return ExitCode.OK
    try:
        return int(_parsed(given).run())
    except SystemExit as end:  # help (0); a signal that a study's trial has dealt with (143)
        return end.code if isinstance(end.code, int) else ExitCode.OK
    except InputError as error:
        return _refused(str(error), given)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone; say nothing more
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except Exception as error:  # raised by a model or data set of the user's, or by a mistake here
        if sys.flags.dev_mode:
            raise
        return _refused(_described(error), given)


def _parsed(given: list[str]) -> Train:
    """The command that the arguments ask for.

    Raises:
        InputError: they break a rule; tyro draws a box, of which the text is kept.
        SystemExit: they asked for help, which has been printed.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            command = tyro.cli(
                tyro.conf.configure(tyro.conf.OmitSubcommandPrefixes)(_COMMANDS),
                prog="anybatch",
                description=_DESCRIPTION,
                args=given or ["--help"],
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise InputError("arguments", f"must be understood: {_unboxed(complaint)}") from None
    return cast("Train", command)


def _unboxed(complaint: io.StringIO) -> str:
    """The text in tyro's box, without its frame and its advice, as one line."""
    sections: list[list[str]] = [[]]
    for line in complaint.getvalue().splitlines()[1:-1]:
        text = line.strip("│| ")
        if set(text) <= {"─", "-"}:  # a rule across the box, or an empty line
            sections.append([])
        else:
            sections[-1].append(text)
    return "; ".join(filter(None, map(_section, sections)))


def _section(lines: list[str]) -> str:
    """A part of tyro's complaint as text; of suggestions the first one alone."""
    if not lines or lines[0].startswith(("For full helptext", "Argument helptext")):
        return ""
    if lines[0].startswith(("Arguments similar", "Perhaps you meant")):
        return f"did you mean {lines[1].split()[0]}?"
    return " ".join(lines)


def _refused(reason: str, given: list[str]) -> int:
    _print_error(f"anybatch: {reason}")
    if "--json" in given:
        _print(json.dumps({"error": reason}))
    return ExitCode.BAD_INPUT


def _described(error: Exception) -> str:
    """One line about an error that nobody foresaw."""
    if isinstance(error, OSError) and error.filename is not None:
        return str(InputError(str(error.filename), "must be usable", error.strerror))
    from anybatch.recipe_file import place_of

    what = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{what} ({place_of(error)}; python -X dev -m anybatch shows the whole way there)"


def script() -> None:
    """Entry point of the `anybatch` program."""
    code = main()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # A thread of gloo may still be letting go of a tensor, for which it needs Python: met by
        # the interpreter's end, it aborts the process ("terminate called", now and then).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
