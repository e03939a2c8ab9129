"""The critical batch size foretold from the gradient noise scale alone, before any target is met.

    a short training at batch size 128; the noise scale of its weights after 0, 60, 200, 600 updates
    B_simple's mean over those updates / kappa, kappa as the package ships it  ->  B_crit, a band

No updates to a target and no tuned lr enter.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from anybatch import Measurement, Recipe, Task, Training, updates
from anybatch.measuring.noise_probes import NoiseScaleSettings
from anybatch.measuring.noise_scale import measure_noise_scale
from anybatch.planning.arithmetic.calibration import calibration_for
from anybatch.planning.arithmetic.noise_draws import draw_run_average

__all__ = ["foretell", "foretold"]

_AFTER_UPDATES = (0, 60, 200, 600)
_EXAMPLES_PER_PROBE = 2048
_LEVELS = (0.1, 0.5, 0.9)
_DRAWS = 4000


def foretell(task: Task, recipe: Recipe) -> dict[str, Any]:
    """Measure the noise scale along a short training, and what follows from it.

    Args:
        task: what is learned.
        recipe: of the short training.

    Returns:
        `measured`: [updates before, B_simple, low, high] of each; `probes`: their raw samples;
        `b_simple` averaged, `b_crit`: each as the 10 %, 50 % and 90 % quantiles; `kappa` likewise.
    """
    settings = NoiseScaleSettings(examples_per_probe=_EXAMPLES_PER_PROBE)
    taken: list[Measurement] = []
    recipe = dataclasses.replace(recipe, duration=updates(10 * _AFTER_UPDATES[-1]))
    with Training(task, recipe) as training:
        for place in _AFTER_UPDATES:
            while training.updates < place:
                training.one_step.train_mode()
                training.step()
            taken.append(measure_noise_scale(training, settings=settings))
        lr = training.one_step.hyperparameters.current()["lr"]
    scales = [measurement.estimates["b_simple"] for measurement in taken]
    return foretold(taken) | {
        "measured": [
            [place, scale.value, scale.low, scale.high]
            for place, scale in zip(_AFTER_UPDATES, scales, strict=True)
        ],
        "probes": [
            {
                name: list(measurement.samples[name])
                for name in ("squared_gradient_norm", "covariance_trace")
            }
            for measurement in taken
        ],
        "lr": lr,
        "batch_size": recipe.batch_size,
    }


def foretold(measurements: list[Measurement]) -> dict[str, Any]:
    """Quantiles of the run's average noise scale, of kappa and of the critical batch size.

    Args:
        measurements: of kind "noise-scale", along a training whose length the last one stands for.
    """
    rng = np.random.default_rng(0)
    length = np.full(_DRAWS, float(_AFTER_UPDATES[-1]))
    average = draw_run_average(measurements, length, rng).values
    calibration = calibration_for("sgd", "classification")
    kappa = calibration.kappa_median * np.exp(calibration.log_spread * rng.standard_normal(_DRAWS))
    columns = {"b_simple": average, "kappa": kappa, "b_crit": average / kappa}
    quantiles = {
        name: [float(value) for value in np.quantile(draws, _LEVELS)]
        for name, draws in columns.items()
    }
    return quantiles | {"calibration": calibration.source}
