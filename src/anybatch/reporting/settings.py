"""What a result depends on: recipe, environment, and the commands that repeat it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anybatch.plan import PLAN_FILE
from anybatch.recipe import Recipe
from anybatch.recipe_file import difference
from anybatch.recipe_mapping import recipe_to_mapping
from anybatch.reporting.sources import Group, Subject
from anybatch.reporting.summary import Table

__all__ = [
    "commands",
    "environment_tables",
    "recipe_differences",
    "recipe_texts",
    "setting_text",
]

_NOT_COMPARED = ("time", "command", "extension")


def recipe_differences(groups: Sequence[Group]) -> Table | None:
    """Every field in which the recipes of the groups differ, seeds aside; None for one group."""
    recipes = [(group.label, group.subjects[0].recipe) for group in groups if group.subjects]
    if len(recipes) < 2:
        return None
    first = recipes[0][1]
    changed = [{path: (a, b) for path, a, b in difference(first, r)} for _, r in recipes]
    paths = dict.fromkeys(path for found in changed for path in found)
    paths.pop("seed", None)
    rows = []
    for path in paths:
        own = next(found[path][0] for found in changed if path in found)
        values = (found[path][1] if path in found else own for found in changed)
        rows.append((path, *map(_json_text, values)))
    return Table(head=("field", *(label for label, _ in recipes)), rows=tuple(rows))


def recipe_texts(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """(label, resolved recipe as indented JSON) of each group's first run."""
    return [
        (group.label, _recipe_text(group.subjects[0].recipe)) for group in groups if group.subjects
    ]


def _recipe_text(recipe: Recipe) -> str:
    return json.dumps(recipe_to_mapping(recipe), indent=1, ensure_ascii=False)


def _json_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def environment_tables(groups: Sequence[Group]) -> tuple[Table | None, Table | None]:
    """What all sessions of all runs agree on, and what they do not, a row a session."""
    sessions = [
        (f"{subject.label}, session {number}", session)
        for group in groups
        for subject in group.subjects
        for number, session in enumerate(subject.environments, start=1)
    ]
    if not sessions:
        return None, None
    names = dict.fromkeys(
        name for _, session in sessions for name in session if name not in _NOT_COMPARED
    )
    texts = {name: [setting_text(session.get(name)) for _, session in sessions] for name in names}
    same = tuple((name, column[0]) for name, column in texts.items() if len(set(column)) == 1)
    differing = [name for name, column in texts.items() if len(set(column)) > 1]
    agreed = Table(head=("what", "value"), rows=same)
    if not differing:
        return agreed, None
    rows = tuple(
        (label, *(texts[name][number] for name in differing))
        for number, (label, _) in enumerate(sessions)
    )
    return agreed, Table(head=("session", *differing), rows=rows)


def setting_text(value: Any) -> str:
    """A plain value in words, or as JSON."""
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _json_text(value)


def commands(subject: Subject) -> list[tuple[str, str]]:
    """(what it does, the command) for each way to have the run again, quoted for a shell."""
    found = []
    folder = subject.task.get("folder")
    for session in subject.environments:
        command = session.get("command")
        if not isinstance(command, list) or not command:
            continue
        where = f"as it was given, in {folder}" if folder else "as it was given"
        entry = (where, shlex.join(_as_typed([str(word) for word in command])))
        if entry not in found:
            found.append(entry)
    if subject.is_plan:
        found += _by_plan(subject)
    elif not subject.is_measurement:
        found.append(_from_recipe(subject))
    return found


def _by_plan(subject: Subject) -> list[tuple[str, str]]:
    """The command that goes on from the pilot of a plan; none for a task made by hand."""
    name, data = subject.task.get("name"), subject.task.get("data")
    if not name:
        return []
    options = ["--data", str(data)] if data else []
    plan = str((subject.path / PLAN_FILE).resolve())
    command = ["anybatch", "train", str(name), *options, "--plan", plan]
    return [("to train as planned, from where the pilot ended", shlex.join(command))]


def _as_typed(command: list[str]) -> list[str]:
    """A command line from a process's arguments: the program by its name."""
    program = Path(command[0])
    if program.name == "anybatch":
        return ["anybatch", *command[1:]]
    if program.name == "__main__.py" and program.parent.name == "anybatch":
        return ["python", "-m", "anybatch", *command[1:]]
    return ["python", *command]


def _from_recipe(subject: Subject) -> tuple[str, str]:
    """The command that trains with the very recipe of the run."""
    recipe = str((subject.path / "recipe.json").resolve())
    name = subject.task.get("name")
    if not name:
        call = f"anybatch.fit(task, anybatch.load_recipe({recipe!r}))"
        return "in Python, since the task was made by hand", call
    data = subject.task.get("data")
    options = ["--data", str(data)] if data else []
    command = ["anybatch", "train", str(name), "--recipe", recipe, *options]
    folder = subject.task.get("folder")
    where = f", in {folder}" if folder and ":" in str(name) else ""
    pilot = "" if subject.plan is None else ", without the plan's pilot"
    return f"with the resolved recipe, seed included{pilot}{where}", shlex.join(command)
