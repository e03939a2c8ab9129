"""`anybatch noise-scale`: measure the gradient noise scale, keep it in a run folder, say it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from anybatch.commands.measure import estimate_rows, exit_code, measure, summary_of
from anybatch.errors import InputError
from anybatch.measurement import Measurement

if TYPE_CHECKING:
    from anybatch.options.noise_scale import NoiseScale

__all__ = ["noise_scale", "summary"]

_FEWEST_PROBES = 4  # of which an interval can be told

_MEANING = {
    "b_simple": "batch whose gradient is half noise",
    "b_simple_jackknife": "the same, its interval by the jackknife",
    "squared_gradient_norm": "|G|^2, of the true gradient",
    "covariance_trace": "tr Sigma, noise of one example's gradient",
    "b_simple_preconditioned": "after Adam's scaling: a trend, not a batch size",
}


def noise_scale(options: NoiseScale) -> int:
    """Carry out `anybatch noise-scale` and return its exit code: 1 where it is not resolved.

    Raises:
        InputError: anything given that breaks a rule.
    """
    from anybatch.measuring.noise_scale import NoiseScaleSettings, measure_noise_scale

    if options.max_probes < _FEWEST_PROBES:
        raise InputError("--max-probes", f"must be >= {_FEWEST_PROBES}", options.max_probes)
    settings = NoiseScaleSettings(
        examples_per_probe=options.examples_per_probe,
        precision=options.precision,
        min_probes=min(12, options.max_probes),
        max_probes=options.max_probes,
        train_updates=options.after,
    )
    measured = measure(
        options,
        "noise-scale",
        lambda task, recipe: measure_noise_scale(
            task, recipe, settings=settings, progress=not options.json
        ),
        summary,
        finish=lambda run, _: [f"next: anybatch report {shlex.quote(str(run.path))}"],
    )
    return exit_code(measured.estimates["b_simple"].value is not None)


def summary(measured: Measurement) -> str:
    """What was measured as text: the estimates, what they say of the batch, what was noticed.

    Args:
        measured: of kind "noise-scale".
    """
    names = [name for name in measured.estimates if "/" in name]
    meaning = _MEANING | dict.fromkeys(names, "of this layer alone")
    head = ["quantity", "value", "95 % interval", "unit", ""]
    rows, sizes = estimate_rows(measured, meaning), measured.settings
    told = [
        f"after {sizes['after_updates']} updates at lr {sizes['lr']:.3g}; unit: {sizes['unit']}",
        f"{len(measured.samples['probe'])} probes of {sizes['examples_per_probe']} examples, in "
        f"parts of {sizes['part_examples']}; stopped by {sizes['stopped_by']}",
        of_batch(measured),
    ]
    return "\n".join([*told, summary_of(measured, head, rows)])


def of_batch(measured: Measurement) -> str:
    """A sentence on the training's own batch.

    Args:
        measured: of kind "noise-scale".
    """
    size, found = measured.settings["update_examples"], measured.estimates["b_simple"]
    if found.value is None:
        bound = f"at most {size / found.low:.2g} x" if found.low > 0.0 else "an unknown share of"
        return f"your batch of {size} is {bound} B_simple: {found.reason}"
    if found.value == 0.0:
        return f"your batch of {size} has no noise at all"
    share = 1.0 / (1.0 + size / found.value)
    return (
        f"your batch of {size} is {size / found.value:.2g} x B_simple: {100 * share:.0f} % of its "
        f"squared gradient is noise; {2 * size} would halve the noise, {found.value:.0f} makes it "
        "half of the whole"
    )
