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
    from anybatch.controllers import ReduceOnPlateau as ReduceOnPlateau
    from anybatch.data.download import download_data as download_data
    from anybatch.data.source import Batch as Batch
    from anybatch.errors import InputError as InputError
    from anybatch.kfac.preconditioner import KFAC as KFAC
    from anybatch.measurement import Estimate as Estimate
    from anybatch.measurement import Finding as Finding
    from anybatch.measurement import Measurement as Measurement
    from anybatch.measuring.doctor import DoctorSettings as DoctorSettings
    from anybatch.measuring.doctor import examine as examine
    from anybatch.measuring.loss_oscillation import (
        LossOscillationSettings as LossOscillationSettings,
    )
    from anybatch.measuring.loss_oscillation import (
        measure_loss_oscillation as measure_loss_oscillation,
    )
    from anybatch.measuring.lr_range import LRRangeSettings as LRRangeSettings
    from anybatch.measuring.lr_range import measure_lr_range as measure_lr_range
    from anybatch.measuring.noise_monitor import NoiseScaleMonitor as NoiseScaleMonitor
    from anybatch.measuring.noise_scale import NoiseScaleSettings as NoiseScaleSettings
    from anybatch.measuring.noise_scale import measure_noise_scale as measure_noise_scale
    from anybatch.measuring.sharpness import SharpnessSettings as SharpnessSettings
    from anybatch.measuring.sharpness import measure_sharpness as measure_sharpness
    from anybatch.measuring.stage_times import StageTimesSettings as StageTimesSettings
    from anybatch.measuring.stage_times import measure_stage_times as measure_stage_times
    from anybatch.measuring.throughput import ThroughputSettings as ThroughputSettings
    from anybatch.measuring.throughput import measure_throughput as measure_throughput
    from anybatch.models.table import ModelShape as ModelShape
    from anybatch.models.table import build_model as build_model
    from anybatch.objectives import Metric as Metric
    from anybatch.optim.lr_scheduler import schedule_as_lr_scheduler as schedule_as_lr_scheduler
    from anybatch.plan import Plan as Plan
    from anybatch.planning.procedure import make_plan as make_plan
    from anybatch.recipe import AdamSettings as AdamSettings
    from anybatch.recipe import AdamWSettings as AdamWSettings
    from anybatch.recipe import AdaptiveBatchSize as AdaptiveBatchSize
    from anybatch.recipe import AdaptiveRefresh as AdaptiveRefresh
    from anybatch.recipe import AdditiveNoise as AdditiveNoise
    from anybatch.recipe import Augmentation as Augmentation
    from anybatch.recipe import BatchNormSettings as BatchNormSettings
    from anybatch.recipe import BlockSettings as BlockSettings
    from anybatch.recipe import ClipGlobalNorm as ClipGlobalNorm
    from anybatch.recipe import ComputeSettings as ComputeSettings
    from anybatch.recipe import ExponentialAverage as ExponentialAverage
    from anybatch.recipe import FisherNormBound as FisherNormBound
    from anybatch.recipe import FixedRefresh as FixedRefresh
    from anybatch.recipe import GradientPenalty as GradientPenalty
    from anybatch.recipe import KFACSettings as KFACSettings
    from anybatch.recipe import KLBound as KLBound
    from anybatch.recipe import LAMBSettings as LAMBSettings
    from anybatch.recipe import LARSSettings as LARSSettings
    from anybatch.recipe import LocalUpdates as LocalUpdates
    from anybatch.recipe import LossSettings as LossSettings
    from anybatch.recipe import Mixup as Mixup
    from anybatch.recipe import ModelSettings as ModelSettings
    from anybatch.recipe import MultiplicativeNoise as MultiplicativeNoise
    from anybatch.recipe import MuonSettings as MuonSettings
    from anybatch.recipe import NoBound as NoBound
    from anybatch.recipe import NormalizeGradient as NormalizeGradient
    from anybatch.recipe import Origin as Origin
    from anybatch.recipe import ParameterKinds as ParameterKinds
    from anybatch.recipe import PolynomialAverage as PolynomialAverage
    from anybatch.recipe import RandomErasing as RandomErasing
    from anybatch.recipe import Recipe as Recipe
    from anybatch.recipe import RecordSettings as RecordSettings
    from anybatch.recipe import ReduceOnPlateauSettings as ReduceOnPlateauSettings
    from anybatch.recipe import RMSpropWarmupSettings as RMSpropWarmupSettings
    from anybatch.recipe import RunningMixup as RunningMixup
    from anybatch.recipe import ScalingRule as ScalingRule
    from anybatch.recipe import Schedules as Schedules
    from anybatch.recipe import SGDSettings as SGDSettings
    from anybatch.recipe import SGDWSettings as SGDWSettings
    from anybatch.recipe import SharpnessAware as SharpnessAware
    from anybatch.recipe import Stopping as Stopping
    from anybatch.recipe import Target as Target
    from anybatch.recipe import WeightRescaling as WeightRescaling
    from anybatch.recipe_file import load_recipe as load_recipe
    from anybatch.records import EvalRecord as EvalRecord
    from anybatch.records import EventRecord as EventRecord
    from anybatch.records import StepRecord as StepRecord
    from anybatch.reporting.comparison import compare_runs as compare_runs
    from anybatch.reporting.page import write_report as write_report
    from anybatch.run import Run as Run
    from anybatch.run import Status as Status
    from anybatch.schedules import SGDR as SGDR
    from anybatch.schedules import Constant as Constant
    from anybatch.schedules import Cosine as Cosine
    from anybatch.schedules import Cyclic as Cyclic
    from anybatch.schedules import DampingWarmup as DampingWarmup
    from anybatch.schedules import DecayingMomentum as DecayingMomentum
    from anybatch.schedules import Duration as Duration
    from anybatch.schedules import Exponential as Exponential
    from anybatch.schedules import InverseSquareRoot as InverseSquareRoot
    from anybatch.schedules import Join as Join
    from anybatch.schedules import Levels as Levels
    from anybatch.schedules import Linear as Linear
    from anybatch.schedules import MultiStep as MultiStep
    from anybatch.schedules import OneCycle as OneCycle
    from anybatch.schedules import Polynomial as Polynomial
    from anybatch.schedules import Step as Step
    from anybatch.schedules import Warmup as Warmup
    from anybatch.schedules import WarmupStableDecay as WarmupStableDecay
    from anybatch.schedules import epochs as epochs
    from anybatch.schedules import examples as examples
    from anybatch.schedules import fraction as fraction
    from anybatch.schedules import inverse_momentum as inverse_momentum
    from anybatch.schedules import updates as updates
    from anybatch.studies.batch_size import resume_batch_size_study as resume_batch_size_study
    from anybatch.studies.batch_size import study_batch_size as study_batch_size
    from anybatch.studies.batch_size_grid import BatchSizeSettings as BatchSizeSettings
    from anybatch.studies.batch_size_table import BatchSizeRow as BatchSizeRow
    from anybatch.studies.batch_size_table import BatchSizeStudy as BatchSizeStudy
    from anybatch.studies.batch_size_table import batch_size_table as batch_size_table
    from anybatch.studies.run_study import run_study as run_study
    from anybatch.study import Study as Study
    from anybatch.task import Task as Task
    from anybatch.task import load_task as load_task
    from anybatch.training.loop import fit as fit
    from anybatch.training.loop import resume as resume
    from anybatch.training.training import Training as Training
    from anybatch.world import World as World

_HOMES = {
    "controllers": ("Patience", "ReduceOnPlateau"),
    "data.download": ("download_data",),
    "data.source": ("Batch",),
    "errors": ("InputError",),
    "kfac.preconditioner": ("KFAC",),
    "measurement": ("Estimate", "Finding", "Measurement"),
    "measuring.doctor": ("DoctorSettings", "examine"),
    "measuring.loss_oscillation": ("LossOscillationSettings", "measure_loss_oscillation"),
    "measuring.lr_range": ("LRRangeSettings", "measure_lr_range"),
    "measuring.noise_monitor": ("NoiseScaleMonitor",),
    "measuring.noise_scale": ("NoiseScaleSettings", "measure_noise_scale"),
    "measuring.sharpness": ("SharpnessSettings", "measure_sharpness"),
    "measuring.stage_times": ("StageTimesSettings", "measure_stage_times"),
    "measuring.throughput": ("ThroughputSettings", "measure_throughput"),
    "models.table": ("ModelShape", "build_model"),
    "objectives": ("Metric",),
    "optim.lr_scheduler": ("schedule_as_lr_scheduler",),
    "plan": ("Plan",),
    "planning.procedure": ("make_plan",),
    "recipe": (
        "AdamSettings",
        "AdamWSettings",
        "AdaptiveBatchSize",
        "AdaptiveRefresh",
        "AdditiveNoise",
        "Augmentation",
        "BatchNormSettings",
        "BlockSettings",
        "ClipGlobalNorm",
        "ComputeSettings",
        "ExponentialAverage",
        "FisherNormBound",
        "FixedRefresh",
        "GradientPenalty",
        "KFACSettings",
        "KLBound",
        "LAMBSettings",
        "LARSSettings",
        "LocalUpdates",
        "LossSettings",
        "Mixup",
        "ModelSettings",
        "MultiplicativeNoise",
        "MuonSettings",
        "NoBound",
        "NormalizeGradient",
        "Origin",
        "ParameterKinds",
        "PolynomialAverage",
        "RMSpropWarmupSettings",
        "RandomErasing",
        "Recipe",
        "RecordSettings",
        "ReduceOnPlateauSettings",
        "RunningMixup",
        "SGDSettings",
        "SGDWSettings",
        "ScalingRule",
        "Schedules",
        "SharpnessAware",
        "Stopping",
        "Target",
        "WeightRescaling",
    ),
    "recipe_file": ("load_recipe",),
    "records": ("EvalRecord", "EventRecord", "StepRecord"),
    "reporting.comparison": ("compare_runs",),
    "reporting.page": ("write_report",),
    "run": ("Run", "Status"),
    "schedules": (
        "SGDR",
        "Constant",
        "Cosine",
        "Cyclic",
        "DampingWarmup",
        "DecayingMomentum",
        "Duration",
        "Exponential",
        "InverseSquareRoot",
        "Join",
        "Levels",
        "Linear",
        "MultiStep",
        "OneCycle",
        "Polynomial",
        "Step",
        "Warmup",
        "WarmupStableDecay",
        "epochs",
        "examples",
        "fraction",
        "inverse_momentum",
        "updates",
    ),
    "studies.batch_size": ("resume_batch_size_study", "study_batch_size"),
    "studies.batch_size_grid": ("BatchSizeSettings",),
    "studies.batch_size_table": ("BatchSizeRow", "BatchSizeStudy", "batch_size_table"),
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
