"""Options of `anybatch recipe`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from anybatch.options.parts import Flag, Folder, Name, Overrides, named

__all__ = ["RecipeCommands", "RecipePreview"]


@dataclass(kw_only=True)
class RecipeList:
    """List the recipes that ship with the package.

    Example: anybatch recipe list
    """

    json: Flag = False
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
    set: Overrides = ()
    """Change a field, as in --set optimizer.lr=0.3; may be repeated."""
    json: Flag = False
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
    set: Overrides = ()
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
    set: Overrides = ()
    """Change a field of the other one, as in --set optimizer.lr=0.3; may be repeated."""
    json: Flag = False
    """Print one JSON document."""

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        from anybatch.commands.recipe import diff_recipes

        return diff_recipes(self.one, self.other, self.set, as_json=self.json)


@dataclass(kw_only=True)
class RecipePreview:
    """Show what a recipe's schedules will do over updates and epochs, before any training.

    Example: anybatch recipe preview mnist --examples 54000 --out preview.png
    """

    recipe: tyro.conf.Positional[str]
    """Shipped name, TOML file, a run's recipe.json, or package.module:function."""
    task: tyro.conf.Positional[Name] = None
    """Task whose training examples are counted; or give --examples."""
    set: Overrides = ()
    """Change a field, as in --set optimizer.lr=0.3; may be repeated."""
    data: Folder = None
    """Folder of the task's data; by default ANYBATCH_DATA, then ./data."""
    examples: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Training examples in an epoch, validation left out."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Draw the picture into this .png or .svg file."""
    json: Flag = False
    """Print every update as one JSON document."""

    def run(self) -> int:
        """Carry the command out and return its exit code."""
        from anybatch.commands.recipe import preview_recipe

        return preview_recipe(self)


_RECIPE_COMMANDS: Any = (
    named(RecipeList, "list")
    | named(RecipeShow, "show")
    | named(RecipeCheck, "check")
    | named(RecipeDiff, "diff")
    | named(RecipePreview, "preview")
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
