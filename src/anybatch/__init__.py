"""anybatch: measure a model, its data and a machine; train at any batch size.

A `Task` and a `Recipe` go in, a `Run` comes out:

    import anybatch as ab
    run = ab.fit(ab.load_task("digits"), ab.load_recipe("digits"))

Names are loaded when first used, so that reading a Run never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anybatch.controllers import Patience as Patience
    from anybatch.data.source import Batch as Batch
    from anybatch.errors import InputError as InputError
    from anybatch.measurement import Estimate as Estimate
    from anybatch.measurement import Finding as Finding
    from anybatch.measurement import Measurement as Measurement
    from anybatch.models.table import ModelShape as ModelShape
    from anybatch.models.table import build_model as build_model
    from anybatch.objectives import Metric as Metric
    from anybatch.recipe import AdamSettings as AdamSettings
    from anybatch.recipe import AdamWSettings as AdamWSettings
    from anybatch.recipe import Augmentation as Augmentation
    from anybatch.recipe import ClipGlobalNorm as ClipGlobalNorm
    from anybatch.recipe import ComputeSettings as ComputeSettings
    from anybatch.recipe import ExponentialAverage as ExponentialAverage
    from anybatch.recipe import LossSettings as LossSettings
    from anybatch.recipe import ModelSettings as ModelSettings
    from anybatch.recipe import MuonSettings as MuonSettings
    from anybatch.recipe import Recipe as Recipe
    from anybatch.recipe import RecordSettings as RecordSettings
    from anybatch.recipe import Schedules as Schedules
    from anybatch.recipe import SGDSettings as SGDSettings
    from anybatch.recipe import Stopping as Stopping
    from anybatch.recipe import Target as Target
    from anybatch.recipe_file import load_recipe as load_recipe
    from anybatch.records import EvalRecord as EvalRecord
    from anybatch.records import StepRecord as StepRecord
    from anybatch.run import Run as Run
    from anybatch.run import Status as Status
    from anybatch.schedules import Constant as Constant
    from anybatch.schedules import Cosine as Cosine
    from anybatch.schedules import Duration as Duration
    from anybatch.schedules import Linear as Linear
    from anybatch.schedules import OneCycle as OneCycle
    from anybatch.schedules import Warmup as Warmup
    from anybatch.schedules import epochs as epochs
    from anybatch.schedules import examples as examples
    from anybatch.schedules import fraction as fraction
    from anybatch.schedules import updates as updates
    from anybatch.studies.run_study import run_study as run_study
    from anybatch.study import Study as Study
    from anybatch.task import Task as Task
    from anybatch.task import load_task as load_task
    from anybatch.training.loop import fit as fit
    from anybatch.training.loop import resume as resume
    from anybatch.training.training import Training as Training
    from anybatch.world import World as World

_HOMES = {
    "controllers": ("Patience",),
    "data.source": ("Batch",),
    "errors": ("InputError",),
    "measurement": ("Estimate", "Finding", "Measurement"),
    "models.table": ("ModelShape", "build_model"),
    "objectives": ("Metric",),
    "recipe": (
        "AdamSettings",
        "AdamWSettings",
        "Augmentation",
        "ClipGlobalNorm",
        "ComputeSettings",
        "ExponentialAverage",
        "LossSettings",
        "ModelSettings",
        "MuonSettings",
        "Recipe",
        "RecordSettings",
        "SGDSettings",
        "Schedules",
        "Stopping",
        "Target",
    ),
    "recipe_file": ("load_recipe",),
    "records": ("EvalRecord", "StepRecord"),
    "run": ("Run", "Status"),
    "schedules": (
        "Constant",
        "Cosine",
        "Duration",
        "Linear",
        "OneCycle",
        "Warmup",
        "epochs",
        "examples",
        "fraction",
        "updates",
    ),
    "studies.run_study": ("run_study",),
    "study": ("Study",),
    "task": ("Task", "load_task"),
    "training.loop": ("fit", "resume"),
    "training.training": ("Training",),
    "world": ("World",),
}
_HOME_OF = {name: f"anybatch.{home}" for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'anybatch' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
