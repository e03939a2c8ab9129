"""A trial that is one training with a shipped recipe: what the accuracy benchmarks share."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from anybatch import InputError, Recipe, Run, Task, fit, load_recipe, load_task, resume
from anybatch.recipe_file import difference
from anybatch.recipe_mapping import recipe_to_mapping
from benchmarks.harness import TrialSkippedError
from benchmarks.summaries import markdown_table, mean_and_spread

__all__ = ["accuracies", "train_with_recipe", "training_table"]

_ENDED = ("finished", "target-missed", "diverged")


def train_with_recipe(
    task_name: str, recipe_name: str, *, seed: int, folder: Path, overrides: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Train to the end, going on with what an ended session has left.

    Args:
        task_name: as `load_task` knows it.
        recipe_name: of a shipped recipe.
        seed: of the run.
        folder: of the trial.
        overrides: further changes of the recipe, as after --set.

    Returns:
        How the run ended, test accuracy and loss, updates, times, [seconds, accuracy] of each
        validation, and the whole recipe.

    Raises:
        TrialSkippedError: the data or the recipe are not here.
    """
    try:
        recipe = load_recipe(recipe_name, (f"seed={seed}", *overrides))
        task = load_task(task_name, image_size=recipe.image_size)
    except InputError as error:
        raise TrialSkippedError(str(error)) from None
    return _described(_trained(task, recipe, folder / "run"))


def _trained(task: Task, recipe: Recipe, path: Path) -> Run:
    if not (path / "recipe.json").exists():
        shutil.rmtree(path, ignore_errors=True)
        return fit(task, recipe, out=path, progress=False)
    run = Run(path)
    if difference(run.recipe, recipe):  # begun with an older version of the shipped recipe
        shutil.rmtree(path)
        return fit(task, recipe, out=path, progress=False)
    if run.status.name in _ENDED:
        return run
    return resume(path, task=task, progress=False)


def _described(run: Run) -> dict[str, Any]:
    status, test = run.status, run.last_eval("test")
    return {
        "status": status.name,
        "reason": status.reason,
        "test_accuracy": None if test is None else test.metric,
        "test_loss": None if test is None else test.loss,
        "updates": status.update,
        "examples": status.examples,
        "training_seconds": round(status.seconds, 3),
        "evaluation_seconds": round(sum(record.evaluation_seconds for record in run.evals()), 3),
        "sessions": len(run.environments),
        "validation": [
            [round(record.seconds, 3), record.metric]
            for record in run.evals()
            if record.split == "validation"
        ],
        "recipe": recipe_to_mapping(run.recipe),
    }


def accuracies(results: dict[str, dict[str, Any]]) -> list[float]:
    """Test accuracy of every trial; 0 for a run that diverged and was not tested.

    Args:
        results: key -> values of finished trials.
    """
    return [values["test_accuracy"] or 0.0 for values in results.values()]


def training_table(results: dict[str, dict[str, Any]], *, target: float) -> str:
    """One row for each trial, and one for all.

    Args:
        results: key -> values of finished trials.
        target: accuracy in [0, 1] that is counted.
    """
    reached = [accuracy >= target for accuracy in accuracies(results)]
    rows = [
        [key, values["status"], _four(accuracy), str(values["updates"]),
         f"{values['training_seconds']:.1f}", f"{values['evaluation_seconds']:.1f}"]
        for (key, values), accuracy in zip(results.items(), accuracies(results), strict=True)
    ]  # fmt: skip
    seconds = [values["training_seconds"] for values in results.values()]
    everything = [
        f"all, n = {len(rows)}: mean ± standard deviation (range)",
        f"{sum(reached)} of {len(reached)} at >= {target:.4g}",
        mean_and_spread(accuracies(results), 4),
        "",
        mean_and_spread(seconds, 1),
        "",
    ]
    header = ["trial", "ended", "test accuracy", "updates", "training, s", "evaluation, s"]
    return markdown_table(header, [*rows, everything])


def _four(accuracy: float) -> str:
    return f"{accuracy:.4f}"
