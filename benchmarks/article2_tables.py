"""Tables and sentences of article 2, from stored results alone."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping
from typing import Any

from benchmarks.article2_blow_up import Event, name_event
from benchmarks.summaries import markdown_table

__all__ = [
    "BATCH_SIZES",
    "article_table",
    "events",
    "fixed_table",
    "seconds_of",
    "tuned_table",
    "verdict_of",
]

BATCH_SIZES = (1, 6, 60, 600, 6_000, 60_000)

_WAYS = {
    "computing": ("compute",),
    "resident set": ("compute", "resident"),
    "DataLoader": ("compute", "DataLoader"),
    "DataLoader, 2 workers": ("compute", "DataLoader, 2 workers"),
}
_OVERLAPPED = ("DataLoader, 2 workers",)

_Results = dict[str, dict[str, Any]]


def seconds_of(step: Mapping[str, float], way: str) -> float:
    """Seconds of an update with one way of loading, from times of its parts.

    Loader processes work beside the computing, so that the slower of the two counts; loading in
    the training's own process is added.

    Args:
        step: part -> seconds an update.
        way: "computing" (no loading), "resident set", "DataLoader" or "DataLoader, 2 workers".

    Example:
        >>> step = {"compute": 2.0, "resident": 0.5, "DataLoader": 3.0}
        >>> [seconds_of(step, way) for way in ("computing", "resident set", "DataLoader")]
        [2.0, 2.5, 5.0]
        >>> seconds_of({"compute": 2.0, "DataLoader, 2 workers": 1.5}, "DataLoader, 2 workers")
        2.0
    """
    parts = [step[name] for name in _WAYS[way]]
    return max(parts) if way in _OVERLAPPED else sum(parts)


def _steps(results: _Results) -> dict[str, dict[str, float]]:
    """Batch size, as text -> times of its parts; empty where they were not taken."""
    told: dict[str, dict[str, float]] = results.get("step-times", {}).get("seconds", {})
    return told


def _fixed(results: _Results, size: int) -> list[dict[str, Any]]:
    return [values for key, values in results.items() if key.startswith(f"fixed-{size}-")]


def _needed(runs: list[dict[str, Any]]) -> list[int]:
    return sorted(run["updates"] for run in runs if run["updates"])


def _median_updates(runs: list[dict[str, Any]]) -> float | None:
    """Median over seeds, those that missed counting as the longest; None where most missed."""
    counts = _needed(runs)
    if 2 * len(counts) <= len(runs):
        return None
    padded = [*counts, *[float("inf")] * (len(runs) - len(counts))]
    return statistics.median_low(padded)


def _measures(
    size: int, runs: list[dict[str, Any]], steps: dict[str, dict[str, float]]
) -> list[str]:
    """Reached, updates, epochs, and seconds by way of loading."""
    counts, median = _needed(runs), _median_updates(runs)
    reached = f"{len(counts)} of {len(runs)}"
    if median is None:
        best = max(1.0 - run["evaluations"][-1][2] for run in runs)
        most = max(run["taken"] for run in runs)
        missed = f"not within {most:,} (accuracy {best:.2%} there)"
        return [reached, missed, "", *[""] * len(_WAYS)]
    each = ", ".join(f"{count:,}" for count in counts)
    shown = f"{median:,.0f} ({each})" if len(runs) > 1 else f"{median:,.0f}"
    step = steps.get(str(size))
    seconds = ["" if step is None else f"{median * seconds_of(step, way):,.1f}" for way in _WAYS]
    return [reached, shown, f"{median * size / 60_000:.1f}", *seconds]


_COLUMNS = ["reached 98 %", "updates, median (each)", "epochs", *(f"s, {way}" for way in _WAYS)]


def fixed_table(results: _Results) -> str:
    """The article's table: lr 0.02, momentum 0.5.

    Args:
        results: key -> values of finished trials.
    """
    steps = _steps(results)
    rows = [
        [f"{size:,}", *_measures(size, runs, steps)]
        for size in BATCH_SIZES
        if (runs := _fixed(results, size))
    ]
    return markdown_table(["batch size", *_COLUMNS], rows) if rows else "Not measured yet."


def tuned_table(results: _Results) -> str:
    """The same with the best lr of each batch size.

    Args:
        results: key -> values of finished trials.
    """
    steps = _steps(results)
    rows = [
        [f"{size:,}", f"{told['lr']:.3g}", *_measures(size, told["runs"], steps)]
        for size in BATCH_SIZES
        if (told := results.get(f"tuned-{size}"))
    ]
    return markdown_table(["batch size", "lr", *_COLUMNS], rows) if rows else "Not measured yet."


def events(results: _Results) -> str:
    """What became of the loss at batch size 1, by network, one row each.

    Args:
        results: key -> values of finished trials.
    """
    networks: dict[str, list[dict[str, Any]]] = {}
    for key, values in results.items():
        kind, _, rest = key.partition("-")
        if key.startswith("fixed-1-"):
            networks.setdefault("lenet", []).append(values)
        elif kind == "alone":
            networks.setdefault(rest.rpartition("-")[0], []).append(values)
    rows = [[name, *_event_row(runs)] for name, runs in networks.items()]
    header = ["network", "n", "updates of each", "events", "at update", "worst hundred, mean loss",
              "best test accuracy", "test accuracy at the end"]  # fmt: skip
    return markdown_table(header, rows) if rows else "Not measured yet."


def _event_row(runs: list[dict[str, Any]]) -> list[str]:
    told = [_event(run) for run in runs]
    counts = Counter(event.name for event in told)
    places = [event.update for event in told if event.update is not None]
    worst = [event.worst for event in told if event.worst is not None]
    best = [1.0 - min(e[2] for e in run["evaluations"]) for run in runs if run["evaluations"]]
    last = [1.0 - run["evaluations"][-1][2] for run in runs if run["evaluations"]]
    return [
        str(len(runs)),
        ", ".join(f"{run['taken']:,}" for run in runs) if len({run["taken"] for run in runs}) > 1
        else f"{runs[0]['taken']:,}",
        ", ".join(f"{count} {name}" for name, count in counts.items()),
        ", ".join(f"{place:,}" for place in sorted(places)) or "none",
        f"{max(worst):.3g}" if worst else "never learnt",
        _range(best),
        _range(last),
    ]  # fmt: skip


def _event(run: dict[str, Any]) -> Event:
    """The named event; a training that diverged did so after its last full hundred."""
    return name_event([*run["hundreds"], *([None] if run["status"] == "diverged" else [])])


def _range(shares: list[float]) -> str:
    if not shares:
        return ""
    return f"{min(shares):.2%} to {max(shares):.2%}" if len(shares) > 1 else f"{shares[0]:.2%}"


def article_table(results: _Results) -> str:
    """Both tables and what became of batch size 1.

    Args:
        results: key -> values of finished trials.
    """
    return "\n\n".join(
        [
            "Lr 0.02 and momentum 0.5; LeNet-5, 60,000 training examples, 98 % of the test set:",
            fixed_table(results),
            "The same with the lr of a grid of factor 2 that needs fewest updates to 98 % of 6,000 "
            "examples held out of training, on another seed:",
            tuned_table(results),
            "Batch size 1 at lr 0.02:",
            events(results),
        ]
    )


def verdict_of(results: _Results) -> str:
    """What is quickest with and without loading, and what became of both ends.

    Args:
        results: key -> values of finished trials.
    """
    said = [*_quickest(results)]
    ones = _fixed(results, 1)
    if ones:
        counts = Counter(_event(run).name for run in ones)
        named = ", ".join(f"{count} {name}" for name, count in counts.items())
        said.append(
            f"batch size 1 reaches 98 % with {len(_needed(ones))} of {len(ones)} seeds (events: "
            f"{named})"
        )
    full = _fixed(results, 60_000)
    if full:
        said.append(
            f"60,000 reaches 98 % with {len(_needed(full))} of {len(full)} within "
            f"{full[0]['cap']:,} updates"
        )
    return "; ".join(said) or "too little yet"


def _quickest(results: _Results) -> list[str]:
    steps, told = _steps(results), []
    medians = {
        size: _median_updates(runs) for size in BATCH_SIZES if (runs := _fixed(results, size))
    }
    for way in ("DataLoader", "computing") if steps else ():
        seconds = {
            size: count * seconds_of(steps[str(size)], way)
            for size, count in medians.items()
            if count is not None
        }
        if seconds:
            best = min(seconds, key=lambda size: seconds[size])
            name = "with the DataLoader" if way == "DataLoader" else "by computing alone"
            told.append(f"{name} batch size {best:,} is quickest ({seconds[best]:,.1f} s)")
    return told
