"""`anybatch loss-oscillation`: measure how much the loss jumps, keep it in a run folder, say it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anybatch.commands.measure import exit_code, measure, summary_of
from anybatch.commands.study import batch_sizes_of
from anybatch.measurement import Estimate, Measurement

if TYPE_CHECKING:
    from anybatch.options.loss_oscillation import LossOscillation

__all__ = ["loss_oscillation", "summary"]


def loss_oscillation(options: LossOscillation) -> int:
    """Carry out `anybatch loss-oscillation`; returns 1 where no oscillation is known.

    Raises:
        InputError: anything given that breaks a rule.
    """
    from anybatch.measuring.loss_oscillation import (
        LossOscillationSettings,
        measure_loss_oscillation,
    )

    settings = LossOscillationSettings(
        batch_sizes=batch_sizes_of(",".join(options.batch_sizes) or None),
        num_updates=options.updates,
        lr=options.lr,
        max_examples=options.max_examples,
    )
    measured = measure(
        options,
        "loss-oscillation",
        lambda task, recipe: measure_loss_oscillation(
            task, recipe, settings=settings, progress=not options.json
        ),
        summary,
    )
    known = (e.value for n, e in measured.estimates.items() if n.startswith("oscillation/"))
    return exit_code(any(value is not None for value in known))


def summary(measured: Measurement) -> str:
    """What was measured as text: a row for each batch size, what was noticed, what it cost."""
    rows = []
    for size in measured.settings["batch_sizes"]:
        exploded = measured.estimates[f"exploded_at/{size}"]
        said = f"update {exploded.value:.0f}" if exploded.value is not None else "no"
        updates = sum(1 for value in measured.samples["batch_size"] if value == size)
        spans = (measured.estimates[f"{name}/{size}"] for name in ("oscillation", "cosine"))
        rows.append([str(size), str(updates), *map(_text, spans), said])
    lr = measured.settings["lr"]
    head = ["batch size", "updates", "oscillation", "gradient cosine", f"exploded (lr {lr:.3g})"]
    return summary_of(measured, head, rows)


def _text(estimate: Estimate) -> str:
    if estimate.value is None:
        return f"don't know: {estimate.reason}"
    return f"{estimate.value:.3g} ({estimate.low:.2g} to {estimate.high:.2g})"
