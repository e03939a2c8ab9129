"""Updates to a target that were measured before: from a study of batch sizes, or a plan."""

from __future__ import annotations

import math
from pathlib import Path

from anybatch.errors import InputError
from anybatch.plan import PLAN_FILE, Plan
from anybatch.planning.arithmetic.scaling_curve import KnownUpdates, Method
from anybatch.planning.arithmetic.updates_model import fit_updates
from anybatch.recipe import KFACSettings, LARSSettings, Recipe
from anybatch.run import read_json
from anybatch.studies.batch_size_table import BatchSizeStudy

__all__ = ["known_updates", "method_of"]


def known_updates(path: Path) -> tuple[Method, KnownUpdates]:
    """The curve of updates against batch size that a study or a plan holds, and whose it is.

    Of a study the runs that reached the target; of a plan its predicted medians.

    Args:
        path: folder of a study of batch sizes or of a plan, or a plan.json.

    Raises:
        InputError: it is neither, or holds fewer than two batch sizes that reached the target.
    """
    if BatchSizeStudy.is_at(path):
        study = BatchSizeStudy(path)
        found = {
            float(row.batch_size): row.updates.median
            for row in study.table()
            if row.updates is not None and math.isfinite(row.updates.median)
        }
        return method_of(study.recipe), _fitted(found, study.target, path)
    file = path / PLAN_FILE if path.is_dir() else path
    if file.name != PLAN_FILE or not file.is_file():
        rule = "must be the folder of a study of batch sizes, or of a plan"
        raise InputError("--updates-from", rule, str(path))
    plan = Plan.from_dict(read_json(file))
    priced = {
        float(price.batch_size): price.updates.value
        for price in plan.prices
        if price.ranks == plan.request.ranks and price.updates.value is not None
    }
    return method_of(plan.request.recipe), _fitted(priced, plan.request.target, path)


def _fitted(updates: dict[float, float], target: str, path: Path) -> KnownUpdates:
    if len(updates) < 2:
        rule = "must hold updates to the target at two batch sizes or more"
        raise InputError("--updates-from", rule, f"{str(path)!r}: {len(updates)}")
    sizes = sorted(updates)
    fit = fit_updates(sizes, [updates[size] for size in sizes])
    return KnownUpdates(curve=fit.curve, smallest=sizes[0], largest=sizes[-1], target=target)


def method_of(recipe: Recipe) -> Method:
    """What a recipe trains with, among the methods that are predicted.

    Raises:
        InputError: another optimizer, whose updates are none of theirs.
    """
    if isinstance(recipe.preconditioner, KFACSettings):
        return "kfac"
    if recipe.communication is not None:
        return "local-sgd"
    if isinstance(recipe.optimizer, LARSSettings):
        return "lars"
    if recipe.optimizer.name not in ("sgd", "sgdw"):
        rule = "must have been trained with SGD, LARS, local updates or K-FAC"
        raise InputError("--updates-from", rule, recipe.optimizer.name)
    return "sgd"
