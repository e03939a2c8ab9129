"""`anybatch throughput`: measure seconds per update, memory and loading, and say what they mean."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from anybatch.commands.measure import exit_code, measure, next_command
from anybatch.commands.output import table
from anybatch.measurement import Estimate, Measurement
from anybatch.run import Run

if TYPE_CHECKING:
    from anybatch.options.throughput import Throughput

__all__ = ["summary", "throughput"]

_HEAD = ["batch", "ms/update", "forward", "backward", "optimizer", "loading", "examples/s"]


def throughput(options: Throughput) -> int:
    """Carry out `anybatch throughput` and return its exit code: 1 where no curve can be drawn.

    Raises:
        InputError: anything given that breaks a rule.
    """
    from anybatch.measuring.throughput import ThroughputSettings, measure_throughput

    settings = ThroughputSettings(
        seconds=options.seconds, max_micro_batch_size=options.max_micro_batch_size
    )

    def advised(run: Run, found: Measurement) -> list[str]:
        return [next_command(options, "lr-range", _division(found))]

    measured = measure(
        options,
        "throughput",
        lambda task, recipe: measure_throughput(
            task, recipe, settings=settings, progress=not options.json
        ),
        summary,
        finish=advised,
    )
    return exit_code(measured.estimates["seconds_per_example"].value is not None)


def _division(measured: Measurement) -> str:
    """The change of the recipe without which its pass does not fit."""
    advice = [f.advice for f in measured.findings if f.name == "memory-limits"]
    return advice[0].partition("--set ")[1] + advice[0].partition("--set ")[2] if advice else ""


def summary(measured: Measurement) -> str:
    """What was measured as text: a row a size, the curve in words, an epoch, what was noticed."""
    lines = [table(_HEAD, _rows(measured)), *_sentences(measured)]
    lines += [f"! {finding}" for finding in measured.findings]
    updates = len(measured.samples["round"])
    lines.append(
        f"cost: {updates:,} timed updates, {measured.examples:,} examples, {measured.seconds:.1f} s"
    )
    return "\n".join(lines)


def _rows(measured: Measurement) -> list[list[str]]:
    """Of each size the medians: milliseconds of an update and its parts, examples per second."""
    samples, rows = measured.samples, []
    for size in sorted(set(samples["batch_size"])):
        of_size = [n for n, b in enumerate(samples["batch_size"]) if b == size]

        def median(name: str, chosen: list[int] = of_size) -> float:
            return statistics.median(samples[name][n] for n in chosen)

        update = median("update_seconds")
        parts = [median(f"{part}_seconds") for part in ("forward", "backward", "optimizer")]
        shares = [f"{100.0 * part / sum(parts):.0f} %" for part in parts]
        loading = f"+{100.0 * median('loading_seconds') / update:.0f} %"
        rows.append(
            [f"{size:,.0f}", f"{1e3 * update:.3g}", *shares, loading, f"{size / update:,.0f}"]
        )
    return rows


def _sentences(measured: Measurement) -> list[str]:
    estimates, settings = measured.estimates, measured.settings
    lines = [_curve_in_words(measured)]
    lines.append(
        f"B_half {_amount(estimates['b_half'])}: "
        "where a pass reaches half of the examples/s of a huge one"
    )
    lines.append(f"largest micro-batch: {_largest(estimates['largest_micro_batch'])}")
    computing = estimates["epoch_compute_seconds"].value
    loading = estimates["epoch_loading_seconds"].value
    if computing is not None and loading is not None:
        total = computing + loading
        hidden = ", beside the computing" if settings["num_workers"] else ""
        lines.append(
            f"an epoch at batch {settings['batch_size']} takes {total:.3g} s: "
            f"loading {100 * loading / total:.0f} %{hidden}, "
            f"computing {100 * computing / total:.0f} %"
        )
    exchange = settings["all_reduce"]
    if exchange is not None:
        lines.append(
            f"a sum over {settings['world_size']} ranks takes "
            f"{1e6 * exchange['latency_seconds']:.0f} us and "
            f"{1e9 * exchange['seconds_per_byte']:.3g} ns a byte; "
            f"the gradient has {exchange['bytes']:,} bytes"
        )
    return lines


def _curve_in_words(measured: Measurement) -> str:
    estimates = measured.estimates
    fixed, each = estimates["fixed_seconds"], estimates["seconds_per_example"]
    if fixed.value is None or each.value is None:
        return f"seconds per update: don't know: {fixed.reason or each.reason}"
    kind = measured.settings["fit"]["kind"]
    last = "" if kind == "affine" else " in the end"
    return (
        f"an update takes {_range(fixed, 1e3)} ms, "
        f"and {_range(each, 1e6)} us more for each example{last}"
    )


def _range(estimate: Estimate, scale: float) -> str:
    assert estimate.value is not None
    low, high = scale * estimate.low, scale * estimate.high
    return f"{scale * estimate.value:.3g} ({low:.3g} to {high:.3g})"


def _amount(estimate: Estimate) -> str:
    if estimate.value is None:
        return f"at least {estimate.low:.3g} examples ({estimate.reason})"
    return f"{estimate.value:.3g} examples ({estimate.low:.3g} to {estimate.high:.3g})"


def _largest(estimate: Estimate) -> str:
    """A number to use, or why there is none."""
    if estimate.value is None:
        return f"at least {estimate.low:,.0f} examples: {estimate.reason}"
    low, high = f"{estimate.low:,.0f}", f"{estimate.high:,.0f}"
    return f"about {estimate.value:,.0f} examples ({low} to {high}), {estimate.reason}"
