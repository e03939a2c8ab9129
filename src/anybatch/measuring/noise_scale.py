"""Gradient noise scale: at which batch size the noise of the gradient equals its size.

    for each probe: n fresh training examples, in m parts, at weights that stand still
        |g_j|^2 of each part's gradient, before it is added to the others'
        |mean of them|^2, of the added gradient
        -> one unbiased pair: squared gradient norm and covariance trace
    after 12, 17, 24, ... probes: is the interval narrow enough?
    B_simple = mean trace / mean squared norm, with Fieller's interval

The probes go on in the training's own data order, with its augmentation, dropout, precision and
loss. No update is taken; clipping, weight decay and momentum play no part.

Reference: McCandlish, Kaplan, Amodei et al. 2018, "An Empirical Model of Large-Batch Training".
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from anybatch.curvature.noise_arithmetic import noise_estimates, running_estimates
from anybatch.measurement import Estimate, Finding, Measurement
from anybatch.measuring.noise_probes import NoiseScaleSettings, Probes
from anybatch.measuring.subjects import opened_training, recipe_settings
from anybatch.progress import Activity
from anybatch.recipe import Recipe
from anybatch.task import Task
from anybatch.training.training import Training

__all__ = ["NoiseScaleSettings", "measure_noise_scale", "noise_findings"]


def measure_noise_scale(
    task: Task | Training,
    recipe: Recipe | None = None,
    *,
    settings: NoiseScaleSettings | None = None,
    progress: bool = False,
) -> Measurement:
    """Measure the gradient noise scale B_simple = tr Sigma / |G|^2 of a training.

    G is the gradient of the mean loss, Sigma the covariance of single examples' gradients. The
    squared gradient of a batch of B is |G|^2 (1 + B_simple / B): mostly noise below B_simple,
    mostly signal above it. It is no best batch size (on images it is 2 to 8 times the critical
    batch), it rises during a training, and it doubles about where the lr is halved.

    Args:
        task: what is to be learned, measured after `settings.train_updates` updates; or a
            Training, measured from where it stands.
        recipe: with a task.
        settings: of the probes and of when to stop.
        progress: show what is being done.

    Returns:
        A measurement of kind "noise-scale", one sample row a probe. Estimates: "b_simple"
        (Fieller's interval; "at least low" where the signal is not resolved),
        "b_simple_jackknife", "squared_gradient_norm" |G|^2, "covariance_trace" tr Sigma;
        "b_simple/LAYER" for each module that owns parameters; under Adam with state,
        "b_simple_preconditioned", a trend. Under BatchNorm the unit of noise is a ghost batch of b
        examples, and tr Sigma stands for b tr Cov(g_b): settings["unit_examples"] is b. Findings:
        "signal-not-resolved", "not-precise", "loss-ignores-weights", "non-finite-gradient",
        "ghost-unit".

    Raises:
        InputError: task and recipe do not fit together; the training data hold less than two parts;
            the recipe has blocks, or ranks that update on their own.

    Cost:
        12 to `settings.max_probes` probes of about 4 batches, forward and backward; one copy of
        the training's state.

    Collectives:
        Those of a gradient, and a few numbers, for each probe; every rank must call.

    Example:
        >>> import torch
        >>> from anybatch.recipe import SGDSettings
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> inputs = torch.randn(300, 3)
        >>> task = Task(build_model=lambda: nn.Linear(3, 2), train=(inputs, 1 * (inputs[:, 0] > 0)))
        >>> found = measure_noise_scale(task, Recipe(optimizer=SGDSettings(lr=0.1), batch_size=16))
        >>> 1.0 < found.estimates["b_simple"].value < 10.0
        True
    """
    settings = settings or NoiseScaleSettings()
    started = time.perf_counter()
    with opened_training(task, recipe) as training:
        for _ in range(settings.train_updates):
            training.one_step.train_mode()
            training.step()
        shown = progress and training.world.is_first
        with Activity("noise-scale", shown=shown) as activity:
            probes = Probes(training, settings, activity)
            probes.take()
        described = dataclasses.asdict(settings) | _described(training, probes)
    estimates = noise_estimates(probes.columns)
    return Measurement(
        kind="noise-scale",
        settings=described,
        samples=probes.columns,
        estimates=estimates,
        seconds=time.perf_counter() - started,
        examples=probes.examples + settings.train_updates * described["update_examples"],
        findings=tuple(noise_findings(probes.columns, estimates, described)),
        fitted=running_estimates(probes.columns),
    )


def _described(training: Training, probes: Probes) -> dict[str, Any]:
    """What the probes were taken with: plain values."""
    layout = probes.layout
    return recipe_settings(training.task, training.recipe) | {
        "after_updates": training.updates,
        "lr": training.one_step.hyperparameters.current()["lr"],
        "update_examples": probes.update_examples,
        "examples_per_probe": layout.examples,
        "part_examples": layout.part,
        "unit": layout.unit_name,
        "unit_examples": layout.unit,
        "set_examples": int(probes.set_size) if math.isfinite(probes.set_size) else None,
        "stopped_by": probes.stopped_by,
    }


def noise_findings(
    samples: Mapping[str, Sequence[float]],
    estimates: Mapping[str, Estimate],
    settings: Mapping[str, Any],
) -> list[Finding]:
    """What was noticed, most important first.

    Args:
        samples: columns of the measurement.
        estimates: that follow from them.
        settings: that it was taken with.
    """
    norms, found = samples["squared_gradient_norm"], []
    bad = sum(not math.isfinite(norm) for norm in norms)
    total, estimate = estimates["b_simple"], estimates["squared_gradient_norm"]
    if bad:
        sentence = f"{bad} of {len(norms)} probes had a gradient that is not finite, left out"
        advice = "lower the lr, set compute.precision=fp32, or look for nan in the data"
        found.append(Finding(name="non-finite-gradient", sentence=sentence, advice=advice))
    if bad < len(norms) and not any(norms) and not any(samples["covariance_trace"]):
        sentence = "every gradient is zero: the loss does not depend on the weights"
        advice = "look for detach(), no_grad() or frozen parameters"
        found.append(Finding(name="loss-ignores-weights", sentence=sentence, advice=advice))
    elif total.value is None and estimate.value is not None:
        sentence = f"after {len(norms)} probes |G|^2 is {estimate}: B_simple is {total}"
        found.append(
            Finding(name="signal-not-resolved", sentence=sentence, advice=_larger(settings))
        )
    elif total.value is not None and total.high > settings.get("precision", math.inf) * total.low:
        sentence = f"the interval spans a factor {_ratio(total)} after {len(norms)} probes"
        found.append(Finding(name="not-precise", sentence=sentence, advice=_larger(settings)))
    if settings.get("unit_examples", 1) > 1:
        sentence = (
            f"measured in {settings['unit']}: trace and noise scale are those of such units, "
            "times their examples"
        )
        advice = "compare only with values of the same unit"
        found.append(Finding(name="ghost-unit", sentence=sentence, advice=advice))
    return found


def _ratio(estimate: Estimate) -> str:
    return f"{estimate.high / estimate.low:.1f}" if estimate.low > 0.0 else "without end"


def _larger(settings: Mapping[str, Any]) -> str:
    """Fewer and larger probes need fewer examples in all, until the set is used up."""
    wanted, size = 4 * settings.get("examples_per_probe", 0), settings.get("set_examples")
    if not wanted:
        return "let the monitor see more updates, or larger ones"
    if size is not None and wanted > size:
        return f"--max-probes {4 * settings['max_probes']}"
    return f"--examples-per-probe {wanted}"
