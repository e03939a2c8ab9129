"""What a throughput measurement noticed, by name, each with what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anybatch.measurement import Finding
from anybatch.measuring.step_time import seconds_per_update
from anybatch.measuring.throughput_reading import Reading, own_pass

__all__ = ["throughput_findings"]

_LOADER_BOUND = 0.10  # by how much loading makes an update longer
_NEARLY_ALL = 0.9  # of the examples per second of the best size
_NOISY = 0.15
_FAR_BEYOND = 2.0
_LEAST_SIZES = 3


def throughput_findings(
    reading: Reading, samples: Mapping[str, Sequence[float]], settings: Mapping[str, Any]
) -> tuple[Finding, ...]:
    """The findings, most important first.

    Args:
        reading: of the samples.
        samples: of the measurement.
        settings: of the measurement.
    """
    sizes = sorted(set(samples["batch_size"]))
    found = [
        _loss_ignores_weights(settings),
        _loader_bound(reading, settings),
        _memory_limits(reading, settings),
        _batch_covers_the_set(settings),
        _few_sizes(sizes, settings),
        _smallest_refused(sizes, settings),
        _noisy_clock(reading),
        _extrapolated(sizes, settings),
        _saturates(reading, sizes),
    ]
    return tuple(finding for finding in found if finding is not None)


def _loss_ignores_weights(settings: Mapping[str, Any]) -> Finding | None:
    if settings["has_gradient"]:
        return None
    sentence = "no update gave any gradient: these may not be the seconds of a training"
    advice = "look for detach(), no_grad() or frozen parameters"
    return Finding(name="loss-ignores-weights", sentence=sentence, advice=advice)


def _loader_bound(reading: Reading, settings: Mapping[str, Any]) -> Finding | None:
    share, workers = reading.loading_share, settings["num_workers"]
    if share is None or share <= _LOADER_BOUND:
        return None
    how = f"with {workers} loader processes, " if workers else ""
    sentence = f"{how}loading makes an update {100 * share:.0f} % longer than computing alone"
    if settings["is_streamed"]:
        advice = f"--set compute.num_workers={2 * workers or 2}"
    else:
        advice = "larger micro-batches, less augmentation, or data that are prepared beforehand"
    return Finding(name="loader-bound", sentence=sentence, advice=advice)


def _memory_limits(reading: Reading, settings: Mapping[str, Any]) -> Finding | None:
    largest, size = reading.estimates["largest_micro_batch"].value, own_pass(settings)
    if largest is None or size is None or size <= largest:
        return None
    ghost = settings["ghost_batch_size"] or 1
    fits = max(ghost, int(largest) // ghost * ghost)
    sentence = f"a pass of {size:,} examples does not fit; about {largest:,.0f} do"
    return Finding(name="memory-limits", sentence=sentence, advice=f"--set micro_batch_size={fits}")


def _batch_covers_the_set(settings: Mapping[str, Any]) -> Finding | None:
    total, size = settings["examples_per_epoch"], settings["batch_size"]
    if total is None or not (size == "full" or int(size) >= total):
        return None
    sentence = f"one update takes all {total:,} training examples: gradient descent without noise"
    advice = f"--set batch_size={max(1, total // 32)}, say, takes 32 updates an epoch"
    return Finding(name="batch-covers-the-set", sentence=sentence, advice=advice)


def _few_sizes(sizes: Sequence[float], settings: Mapping[str, Any]) -> Finding | None:
    if len(sizes) >= _LEAST_SIZES:
        return None
    why = {
        "set": "the training set holds no more examples",
        "memory": "a larger one might not fit into half of the free memory",
        "time": "a larger one would take too long",
        "max_micro_batch_size": "no larger one was asked for",
    }[settings["stopped_by"]]
    shown = ", ".join(f"{size:,.0f}" for size in sizes)
    sentence = f"only passes of {shown} examples were timed: {why}"
    advice = "--seconds 60" if settings["stopped_by"] == "time" else "measure with more examples"
    return Finding(name="too-few-sizes", sentence=sentence, advice=advice)


def _smallest_refused(sizes: Sequence[float], settings: Mapping[str, Any]) -> Finding | None:
    if not settings["refused"]:
        return None
    what = " ".join("; ".join(settings["refused"]).split())
    sentence = f"the model takes no smaller passes than {sizes[0]:,.0f} examples ({what})"
    advice = f"keep batches and the last one of an epoch at {sizes[0]:,.0f} examples or more"
    return Finding(name="smallest-refused", sentence=sentence, advice=advice)


def _noisy_clock(reading: Reading) -> Finding | None:
    if reading.spread <= _NOISY:
        return None
    sentence = f"half of the updates of one size differ by {100 * reading.spread:.0f} % or more"
    advice = "end what else uses this machine, and measure again for longer (--seconds 30)"
    return Finding(name="noisy-clock", sentence=sentence, advice=advice)


def _extrapolated(sizes: Sequence[float], settings: Mapping[str, Any]) -> Finding | None:
    size = own_pass(settings)
    if size is None or size <= _FAR_BEYOND * sizes[-1]:
        return None
    sentence = f"the recipe's pass of {size:,} examples lies beyond {sizes[-1]:,.0f}, the largest"
    advice = "--seconds 60" if settings["stopped_by"] == "time" else "--set micro_batch_size=64"
    return Finding(name="extrapolated", sentence=f"{sentence} timed", advice=advice)


def _saturates(reading: Reading, sizes: Sequence[float]) -> Finding | None:
    """From which size on larger passes gain less than a tenth; or that they still gain."""
    rates = {size: size / seconds_per_update(reading.fit, size) for size in sizes}
    best = max(rates.values())
    enough = next(size for size, rate in rates.items() if rate >= _NEARLY_ALL * best)
    if len(sizes) < _LEAST_SIZES:
        return None
    if enough <= sizes[-1] / _FAR_BEYOND:
        sentence = (
            f"passes of {enough:,.0f} examples reach {rates[enough]:,.0f} examples/s, "
            f"and no larger one more than {best:,.0f}"
        )
        advice = "larger micro-batches save no time"
        return Finding(name="saturates", sentence=sentence, advice=advice)
    sentence = f"examples/s still rise at {sizes[-1]:,.0f} examples a pass, the largest timed"
    return Finding(name="still-rising", sentence=sentence, advice="--seconds 60")
