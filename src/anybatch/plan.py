"""Plan: the recipe to train with, what it will take, how sure that is, and why. Needs no torch.

A plan's folder is the run of its pilot: the pilot's logs and checkpoint, `measurements/` with all
raw samples, and `plan.json`. From these the plan can be computed again without timing anything.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from anybatch.drawing import Span, axes_or_new, html_table
from anybatch.drawings.plan import PlannedTimes, draw_plan
from anybatch.errors import InputError
from anybatch.measurement import Estimate, Finding
from anybatch.recipe import Recipe
from anybatch.recipe_mapping import recipe_from_mapping, recipe_to_mapping
from anybatch.records import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PLAN_FILE", "Plan", "PlanOutcome", "PlanRequest", "Price", "Reason"]

PLAN_FILE = "plan.json"
"""In the folder of a plan, and in that of a run that follows one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanRequest:
    """What a plan is asked for: the task's facts, the target, the present choice.

    Attributes:
        task: how the task is made again, plain values; with its "name" where it has one.
        num_examples: training examples.
        num_validation: validation examples.
        target: as `Target.parse` reads it, with quantity and relation.
        kind: of the task: "classification", "regression" or "language-modelling".
        metric_name: of the task.
        metric_direction: which way it is better.
        recipe: the present choice.
        ranks: processes that will train together.
        device: "cpu" or "cuda".
        budget: share of the present recipe's seconds that measuring may take, in (0, 1].
        seed: of every draw of the arithmetic.
    """

    task: Mapping[str, Any]
    num_examples: int
    num_validation: int
    target: str
    kind: str
    metric_name: str
    metric_direction: Literal["max", "min"]
    recipe: Recipe
    ranks: int = 1
    device: str = "cpu"
    budget: float = 0.05
    seed: int = 0

    @property
    def present_batch_size(self) -> int:
        """Examples per update of the present recipe."""
        size = self.recipe.batch_size
        return self.num_examples if size == "full" else int(size)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """Why a plan says what it says.

    Attributes:
        name: what is decided ("batch-size", "lr", "schedule").
        sentence: with its numbers.
        measurement: kind of the measurement that it rests on; empty for none.
    """

    name: str
    sentence: str
    measurement: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """What a batch size on so many ranks costs to the target.

    Attributes:
        batch_size: global.
        ranks: processes that train together.
        updates: to the target.
        seconds: to the target.
        device_hours: seconds times ranks / 3600.
        near_optimal: within 5 % of the least expected seconds on as many ranks.
        fits: whether a rank can hold it, in micro-batches if need be.
    """

    batch_size: int
    ranks: int
    updates: Estimate
    seconds: Estimate
    device_hours: Estimate
    near_optimal: bool
    fits: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The recipe to train with, predictions, alternatives and reasons.

    Attributes:
        request: what was asked.
        recipe: the answer; trains to the target by itself, also without the pilot.
        predictions: by name, each with an interval: "updates", "examples", "seconds" to the target,
            pilot included; "batch_size"; "lr"; "seconds_of_present", "excess_of_present" (a share);
            "noise_scale", "critical_batch_size", "b_half".
        near_optimal: batch sizes whose expected seconds are within 5 % of the best, ascending.
        prices: batch sizes and ranks with what they cost.
        reasons: for each decision, most important first.
        would_change: what would change the advice, in sentences.
        findings: what stands in the way, from the measurements and from the planning.
        procedure: "full" with branches, or "short".
        cost: seconds by stage of the procedure; the pilot's are part of the training.
        pilot: "updates", "examples", "seconds" and "batch_size" that the pilot trained; empty
            without one.
        partial: why the plan is not whole; empty where it is.
        interval_factor: by which the user's ledger has widened the intervals of the learning curve.
        folder: where it was written; not part of its values.
    """

    request: PlanRequest
    recipe: Recipe
    predictions: Mapping[str, Estimate]
    near_optimal: tuple[int, ...]
    prices: tuple[Price, ...] = ()
    reasons: tuple[Reason, ...] = ()
    would_change: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    procedure: Literal["full", "short"] = "short"
    cost: Mapping[str, float] = field(default_factory=dict)
    pilot: Mapping[str, float] = field(default_factory=dict)
    partial: str = ""
    interval_factor: float = 1.0
    folder: str = field(default="", compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for strict JSON, from which `from_dict` makes the same plan."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["request"] = {
            f.name: getattr(self.request, f.name) for f in dataclasses.fields(self.request)
        } | {"recipe": recipe_to_mapping(self.request.recipe), "task": dict(self.request.task)}
        values["recipe"] = recipe_to_mapping(self.recipe)
        values["predictions"] = {n: dataclasses.asdict(e) for n, e in self.predictions.items()}
        for name in ("prices", "reasons", "findings"):
            values[name] = [dataclasses.asdict(item) for item in values[name]]
        for name in ("near_optimal", "would_change"):
            values[name] = list(values[name])
        del values["folder"]
        plain_values: dict[str, Any] = plain(values | {"cost": dict(self.cost)})
        return plain_values | {"pilot": dict(self.pilot)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """The plan that `to_dict` wrote, also after a way through strict JSON.

        Raises:
            InputError: the values are not those of a plan.
        """
        try:
            return cls._from_values(values)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError("plan", "must be as it was written", _cause(error)) from None

    @classmethod
    def _from_values(cls, values: Mapping[str, Any]) -> Plan:
        given = {name: value for name, value in values.items() if name != "schema"}
        request = dict(given["request"])
        request["recipe"] = recipe_from_mapping(request["recipe"])
        given["request"] = PlanRequest(**request)
        given["recipe"] = recipe_from_mapping(given["recipe"])
        given["predictions"] = {n: _estimate(e) for n, e in given["predictions"].items()}
        given["prices"] = tuple(
            Price(**price | {name: _estimate(price[name]) for name in _PRICED})
            for price in given["prices"]
        )
        given["reasons"] = tuple(Reason(**reason) for reason in given["reasons"])
        given["findings"] = tuple(Finding(**finding) for finding in given["findings"])
        given["near_optimal"] = tuple(int(size) for size in given["near_optimal"])
        given["would_change"] = tuple(given["would_change"])
        for name in _ALWAYS_PREDICTED:
            given["predictions"][name]
        return cls(**given)

    @property
    def batch_size(self) -> int:
        """The recommended batch size, global."""
        size = self.recipe.batch_size
        return self.request.num_examples if size == "full" else int(size)

    def lines(self) -> list[str]:
        """The plan in words: the answer, what it takes, what the present choice would cost."""
        optimizer: Any = self.recipe.optimizer
        lr = f"lr {optimizer.lr:.3g}{_lr_span(self.predictions.get('lr'))} with {optimizer.name}"
        lr += " after K-FAC" if self.recipe.preconditioner is not None else ""
        found = [
            f"batch size {self.batch_size:,}{self._band()}",
            f"{lr}, {_schedule_words(self.recipe)}",
        ]
        seconds, updates = self.predictions.get("seconds"), self.predictions.get("updates")
        if seconds is not None and updates is not None:
            foretold = list(dict.fromkeys([_range(updates), _range(seconds)]))  # a reason once
            if self.partial and not self.pilot and seconds.value is None:
                foretold = ["not known: it ended before a pilot that tells"]
            found.append(f"to {self.request.target}: {', '.join(foretold)}")
        present = self.predictions.get("seconds_of_present")
        if present is not None and self.batch_size != self.request.present_batch_size:
            costs = [_range(present)] if present.value is not None else []
            excess = _excess(self.predictions.get("excess_of_present"))
            costs += [f"{excess} than at {self.batch_size:,}"] if excess else []
            found.append(
                f"your batch size {self.request.present_batch_size:,}, with its own best lr and no "
                f"pilot: {', '.join(costs) or 'not known'}"
            )
        return ([f"partial: {self.partial}"] if self.partial else []) + found

    def _band(self) -> str:
        """The sizes that cost at most 5 % more than the least, in words."""
        near = self.near_optimal
        if not near or near == (self.batch_size,):
            return ""
        sizes = f"{near[0]:,} to {near[-1]:,}" if len(near) > 1 else f"{near[0]:,}"
        if self.batch_size not in near:  # the present one is kept
            return f" (within 5 % of the least time: {sizes}, not worth the move)"
        return f" (any of {sizes} costs at most 5 % more than the least)"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw seconds to the target against batch size: interval, near-optimal sizes, choices.

        Args:
            ax: of matplotlib, to draw on; None makes a new figure.
        """
        axes = axes_or_new(ax)
        draw_plan(axes, self.times())
        return axes

    def times(self) -> PlannedTimes:
        """What the picture is drawn from: the prices on the present number of ranks."""
        ranks, predicted = self.request.ranks, self.predictions.get("seconds")
        own = [price for price in self.prices if price.ranks == ranks and price.fits]
        known = [price for price in own if math.isfinite(price.seconds.low)]
        return PlannedTimes(
            batch_sizes=tuple(price.batch_size for price in known),
            seconds=tuple(
                math.nan if price.seconds.value is None else price.seconds.value for price in known
            ),
            low=tuple(price.seconds.low for price in known),
            high=tuple(price.seconds.high for price in known),
            near_optimal=(self.near_optimal[0], self.near_optimal[-1]) if self.near_optimal else (),
            chosen=self.batch_size,
            present=self.request.present_batch_size,
            predicted=None
            if predicted is None
            else Span(predicted.value, predicted.low, predicted.high),
        )

    def _repr_html_(self) -> str:
        """The answer and its reasons, for notebooks."""
        rows = {f"{number}": line for number, line in enumerate(self.lines(), start=1)}
        return html_table("plan", rows | {r.name: r.sentence for r in self.reasons})


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanOutcome:
    """What a run that follows a plan took, beside what was foretold.

    Attributes:
        seconds: of training to the target, or to the end where it was not reached.
        updates: likewise.
        reached: whether the target was.
        foretold_seconds: with its interval.
        foretold_updates: with its interval.

    Example:
        >>> seconds = Estimate(value=20.0, low=12.0, high=31.0, unit="seconds", level=0.8)
        >>> updates = Estimate(value=900.0, low=500.0, high=1500.0, unit="updates", level=0.8)
        >>> found = PlanOutcome(seconds=25.25, updates=1100, reached=True,
        ...     foretold_seconds=seconds, foretold_updates=updates)
        >>> found.inside
        True
        >>> print(found.sentence())
        predicted 20 seconds (12 to 31, 80 %) and 900 updates (500 to 1,500, 80 %); took 25.2
        seconds and 1,100 updates: inside
    """

    seconds: float
    updates: int
    reached: bool
    foretold_seconds: Estimate
    foretold_updates: Estimate

    @property
    def inside(self) -> bool:
        """Whether the target was reached within the interval of the seconds."""
        foretold = self.foretold_seconds
        return self.reached and foretold.low <= self.seconds <= foretold.high

    def sentence(self) -> str:
        """Predicted against actual, in words."""
        took = f"took {_short(self.seconds)} seconds and {self.updates:,} updates"
        if self.foretold_seconds.value is None:
            missed = "" if self.reached else ", not reached"
            return f"predicted: {self.foretold_seconds}; {took}{missed}"
        verdict = "inside" if self.inside else "outside, in seconds"
        if not self.reached:
            verdict = "not reached, so outside"
        foretold = f"{_range(self.foretold_seconds)} and {_range(self.foretold_updates)}"
        return f"predicted {foretold}; {took}: {verdict}"


_PRICED = ("updates", "seconds", "device_hours")
_COUNTED = ("updates", "examples")
_ALWAYS_PREDICTED = ("updates", "examples", "seconds")


def _cause(error: Exception) -> str:
    name = f"{type(error).__name__}: " if not isinstance(error, InputError) else ""
    return name + " ".join(str(error).split())


def _estimate(values: Mapping[str, Any]) -> Estimate:
    numbers = {key: _number(value) for key, value in values.items()}
    return Estimate(**numbers)


def _number(value: Any) -> Any:
    """A number that strict JSON holds as text; anything else as it is."""
    return float(value) if value in ("nan", "inf", "-inf") else value


def _range(estimate: Estimate) -> str:
    """A count or a time with its interval, in words."""
    unit = f" {estimate.unit}" if estimate.unit else ""
    if estimate.value is None:
        return f"{estimate}"
    value, low, high = (
        f"{number:,.0f}" if estimate.unit in _COUNTED and 10 <= number < math.inf
        else _short(number)
        for number in (estimate.value, estimate.low, estimate.high)
    )  # fmt: skip
    return f"{value}{unit} ({low} to {high}, {100 * estimate.level:.0f} %)"


def _lr_span(estimate: Estimate | None) -> str:
    """The interval of the learning rate, in words."""
    if estimate is None or estimate.low <= 0.0:
        return " (not measured)"
    if not math.isfinite(estimate.high):
        return f" ({estimate.low:.3g} or more, {100 * estimate.level:.0f} %)"
    return f" ({estimate.low:.3g} to {estimate.high:.3g}, {100 * estimate.level:.0f} %)"


def _short(value: float) -> str:
    if not math.isfinite(value):
        return "without end" if value > 0 else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _excess(excess: Estimate | None) -> str:
    if excess is None or excess.value is None:
        return ""
    ends = f"{100 * excess.low:+.0f} to {100 * excess.high:+.0f}, {100 * excess.level:.0f} %"
    return f"{100 * excess.value:+.0f} % time ({ends})"


def _schedule_words(recipe: Recipe) -> str:
    lr = recipe.schedules.lr
    into = getattr(lr, "into", None)
    return f"{lr.name} schedule" + (f" into {into.name}" if into is not None else "")
