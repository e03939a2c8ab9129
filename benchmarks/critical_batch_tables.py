"""Table and verdict of the critical batch size, from stored results alone."""

from __future__ import annotations

import math
import statistics
from typing import Any

from anybatch.measurement import Estimate
from anybatch.planning.arithmetic.updates_model import UpdatesFit, fit_updates
from benchmarks.summaries import markdown_table

__all__ = ["critical_table", "critical_verdict"]

_PUBLISHED = "170 (2 % error) to 230 (1 %), a larger network with lr decay; 200 on another"
_WANTED_CRITICAL, _WANTED_FEWEST, _WANTED_FACTOR = (100.0, 400.0), (40.0, 150.0), 3.2


def _batches(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Finished batch sizes, ascending."""
    found = [values for key, values in results.items() if key.startswith("batch-")]
    return sorted(found, key=lambda values: values["batch_size"])


def _needed(values: dict[str, Any]) -> list[int]:
    """Updates of the trainings that reached the target."""
    return [run["updates"] for run in values["runs"] if run["updates"]]


def _fit(results: dict[str, dict[str, Any]], elbow: float | None) -> UpdatesFit | None:
    pairs = [
        (values["batch_size"], count) for values in _batches(results) for count in _needed(values)
    ]
    if len({size for size, _ in pairs}) < 3:
        return None
    return fit_updates([size for size, _ in pairs], [count for _, count in pairs], elbow=elbow)


def critical_table(results: dict[str, dict[str, Any]]) -> str:
    """A row a batch size, then what the rows say together.

    Args:
        results: key -> values of finished trials.
    """
    fit = _fit(results, None)
    rows = [_row(values, fit) for values in _batches(results)]
    header = ["batch size", "best lr", "reached", "updates, median (each)", "examples, median",
              "updates of the fit"]  # fmt: skip
    note = (
        "2 % of 6,000 validation examples wrong; lr from a grid of factor 2, chosen with other "
        "seeds (two, one from batch size 2,048); evaluations 5 % of the updates apart."
    )
    parts = [markdown_table(header, rows), note] if rows else []
    parts += [_fit_table(results)] if fit is not None else []
    parts += _foretold(results) + _precision(results)
    return "\n\n".join(parts)


def _row(values: dict[str, Any], fit: UpdatesFit | None) -> list[str]:
    size, counts = values["batch_size"], _needed(values)
    reached = f"{len(counts)} of {len(values['runs'])}"
    fitted = "" if fit is None else f"{fit.curve.updates(size).item():,.0f}"
    if not counts:
        return [f"{size:,}", _power(values["lr"]), reached, "not within the cap", "", fitted]
    median = statistics.median(counts)
    each = ", ".join(f"{count:,}" for count in sorted(counts))
    return [f"{size:,}", _power(values["lr"]), reached, f"{median:,.0f} ({each})",
            f"{median * size:,.0f}", fitted]  # fmt: skip


def _power(lr: float) -> str:
    return f"2^{round(math.log2(lr))} = {lr:.3g}"


def _fit_table(results: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, elbow in (("elbow fitted", None), ("hyperbola, p = 1", 1.0)):
        fit = _fit(results, elbow)
        assert fit is not None
        estimates = (fit.critical_batch_size, fit.fewest_updates, fit.fewest_examples)
        p = _shown(fit.elbow) if fit.elbow.value is not None else f"{fit.curve.elbow:.2g}"
        rows.append([name, *map(_shown, estimates), p, f"{fit.log_spread:.3f}"])
    header = ["S = S_min (1 + (B_crit / B)^p)^(1/p)", "B_crit", "S_min, updates",
              "E_min, examples", "p", "rms of log"]  # fmt: skip
    return markdown_table(header, rows) + (
        "\n\nIntervals (95 %) from refits of redrawn seeds and misfits. "
        f"Published B_crit: {_PUBLISHED}."
    )


def _shown(estimate: Estimate) -> str:
    """Value and interval; what is known where there is no value."""
    ends = f"{_three(estimate.low)} to {_three(estimate.high)}"
    return f"not told ({ends})" if estimate.value is None else f"{_three(estimate.value)} ({ends})"


def _three(value: float) -> str:
    if not math.isfinite(value):
        return "any"
    return f"{value:.2g}" if value < 10 else f"{float(f'{value:.3g}'):,.0f}"


def _foretold(results: dict[str, dict[str, Any]]) -> list[str]:
    told = results.get("prediction")
    if told is None:
        return []
    scales = ", ".join(f"{_three(row[1])} after {row[0]}" for row in told["measured"] if row[1])
    low, middle, high = (_three(value) for value in told["b_crit"])
    return [
        "Foretold from the noise scale alone, without any of these trainings and stored before a "
        "batch size was finished: "
        f"B_crit {middle}, 80 % band {low} to {high} (B_simple {scales} updates at batch size "
        f"{told['batch_size']} and lr {told['lr']:g}; mean over them "
        f"{_three(told['b_simple'][1])}; kappa {told['kappa'][1]:.2g} from {told['calibration']})."
    ]


def _precision(results: dict[str, dict[str, Any]]) -> list[str]:
    told = results.get("precision")
    if told is None:
        return []
    said = [
        f"{name}: {', '.join(str(run['updates'] or 'not reached') for run in told[name])}"
        for name in ("bf16", "fp32")
    ]
    return [
        f"Trained in bfloat16 autocast. The same three seeds at batch size {told['batch_size']} "
        f"and lr {told['lr']:.3g}, updates in {'; in '.join(said)}."
    ]


def critical_verdict(results: dict[str, dict[str, Any]]) -> str:
    """The critical batch size and whether the prediction held.

    Args:
        results: key -> values of finished trials.
    """
    fit = _fit(results, None)
    if fit is None:
        return "too few batch sizes yet"
    critical, fewest = fit.curve.critical_batch_size, fit.curve.fewest_updates
    said = (
        f"B_crit {_shown(fit.critical_batch_size)}, S_min {_shown(fit.fewest_updates)}, "
        f"E_min {_shown(fit.fewest_examples)}"
    )
    good = [
        _WANTED_CRITICAL[0] <= critical <= _WANTED_CRITICAL[1],
        _WANTED_FEWEST[0] <= fewest <= _WANTED_FEWEST[1],
    ]
    told = results.get("prediction")
    if told is not None:
        factor = told["b_simple"][1] / 3.0 / critical
        good.append(1.0 / _WANTED_FACTOR <= factor <= _WANTED_FACTOR)
        said += f", B_simple / 3 is {factor:.2g} times B_crit"
    which = ["B_crit", "S_min", "B_simple / 3"]
    missed = [name for name, is_good in zip(which, good, strict=False) if not is_good]
    held = "holds" if not missed else f"does not hold for {', '.join(missed)}"
    return f"{held}: {said}"
