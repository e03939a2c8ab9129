"""`anybatch sharpness`: measure the sharpest curvature, keep it in a run folder, say it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anybatch.commands.measure import estimate_rows, exit_code, measure, summary_of
from anybatch.measurement import Measurement

if TYPE_CHECKING:
    from anybatch.options.sharpness import Sharpness

__all__ = ["sharpness", "summary"]


def sharpness(options: Sharpness) -> int:
    """Carry out `anybatch sharpness` and return its exit code: 1 where no edge is known.

    Raises:
        InputError: anything given that breaks a rule.
    """
    from anybatch.measuring.sharpness import SharpnessSettings, measure_sharpness

    settings = SharpnessSettings(
        num_examples=options.examples,
        repeats=options.repeats,
        max_iterations=options.iterations,
        num_updates=options.updates,
    )
    measured = measure(
        options,
        "sharpness",
        lambda task, recipe: measure_sharpness(
            task, recipe, settings=settings, progress=not options.json
        ),
        summary,
    )
    return exit_code(measured.estimates["edge_lr"].value is not None)


def summary(measured: Measurement) -> str:
    """What was measured as text: curvature, edge, what was noticed, what it cost."""
    limit, lr = measured.settings["stability_limit"], measured.settings["lr"]
    known = "" if limit is None else f"; the edge is at {limit:.3g}"
    meaning = {
        "sharpness": "largest eigenvalue of the loss's Hessian",
        "preconditioned_sharpness": "the same as Adam's second moments scale it",
        "lr_times_sharpness": f"at lr {lr:.3g}{known}",
        "edge_lr": "above it the whole gradient would diverge",
    }
    rows = [[n, value, span, text] for n, value, span, _, text in estimate_rows(measured, meaning)]
    return "\n".join(
        [
            _on_what(measured),
            summary_of(measured, ["sharpness", "value", "95 % interval", ""], rows),
        ]
    )


def _on_what(measured: Measurement) -> str:
    """At which point of the training, and on which examples, in words."""
    given = measured.settings
    sets = f"{given['repeats']} x about {given['num_examples']:,} training examples"
    if given["is_whole_set"]:
        sets = f"all {given['examples_per_repeat']:,} training examples"
    return f"after {given['after_updates']:,} updates, on {sets}"
