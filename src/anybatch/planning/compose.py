"""Composing a plan from what was measured: no timing, no training, the same again from disk."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray

from anybatch.errors import InputError
from anybatch.measurement import Estimate, Finding, Measurement
from anybatch.plan import Plan, PlanRequest, Price
from anybatch.planning.arithmetic.branches import BranchLosses, log_ratio_of_updates
from anybatch.planning.arithmetic.calibration import Calibration, calibration_for
from anybatch.planning.arithmetic.decision import Decision, decide
from anybatch.planning.arithmetic.learning_curve import LearningCurve, remaining
from anybatch.planning.arithmetic.lr_rules import carried_lr, default_alpha
from anybatch.planning.arithmetic.posterior import (
    Posterior,
    RatioObservation,
    make_posterior,
    weighted_quantile,
)
from anybatch.planning.arithmetic.prices import price_list, summary
from anybatch.planning.arithmetic.sizes import friendly
from anybatch.planning.arithmetic.time_model import TimeModel
from anybatch.planning.recipe import planned_recipe
from anybatch.planning.stages import pilot_batch_size
from anybatch.planning.wording import reasons_of, would_change
from anybatch.recipe import Target

__all__ = ["Composer"]

_Array = NDArray[np.float64]

_NUM_DRAWS = 2000
_PRICED_RANKS = (2, 8, 64)
_DOMAINS = {
    "classification": "classification",
    "regression": "regression",
    "language-modelling": "language",
}
_ADAM_LIKE = ("adam", "adamw", "muon")


@final
class Composer:
    """What follows from the measurements so far: a pure function of them, the request and a seed.

    Args:
        request: what is asked.
        measurements: by name: "throughput", "lr-range", "pilot", "noise-scale-1" ..., "branches";
            whatever there is.
        interval_factor: by which earlier planned runs tell to widen the learning curve's intervals.

    Raises:
        InputError: no throughput among the measurements.
    """

    def __init__(
        self,
        request: PlanRequest,
        measurements: Mapping[str, Measurement],
        *,
        interval_factor: float = 1.0,
    ) -> None:
        if "throughput" not in measurements:
            raise InputError("measurements", "must hold a throughput", sorted(measurements))
        self.request, self.measurements = request, measurements
        self._interval_factor = interval_factor
        self.time_model = TimeModel.from_measurement(measurements["throughput"])

    # --- before the pilot ------------------------------------------------------------------------

    @functools.cached_property
    def sizes(self) -> list[int]:
        """Batch sizes that suit the hardware, the present one among them, ascending."""
        request = self.request
        sizes = friendly(
            np.unique(np.round(np.geomspace(1, request.num_examples, 400))),
            device=request.device,
            ranks=request.ranks,
            set_size=request.num_examples,
        )
        return sorted({*map(int, sizes), request.present_batch_size})

    @functools.cached_property
    def calibration(self) -> Calibration:
        """What is believed of critical batch sizes before this task speaks."""
        name = self.request.recipe.optimizer.name
        kind: Literal["sgd", "adam"] = "adam" if name in _ADAM_LIKE else "sgd"
        return calibration_for(kind, _DOMAINS.get(self.request.kind))

    def pilot_batch_size(self) -> int:
        """Where the pilot trains: the least time under what is believed of tasks in general."""
        usual = self.calibration.unmeasured_median
        most = max(1, self.request.num_examples // 8)
        sizes = [size for size in self.sizes if size <= most] or self.sizes[:1]
        return pilot_batch_size(self.time_model, sizes, usual, ranks=self.request.ranks)

    def pilot_lr(self, batch_size: int) -> float:
        """The range test's lr, or where it does not know, the present one carried.

        Args:
            batch_size: of the pilot.
        """
        found = self._measured_lr
        if found is not None and found.value is not None:
            return found.value
        return self._carried(
            float(self.request.recipe.optimizer.lr), self.request.present_batch_size, batch_size
        )

    @property
    def _measured_lr(self) -> Estimate | None:
        measured = self.measurements.get("lr-range")
        return None if measured is None else measured.estimates.get("max_lr")

    def _carried(self, lr: float, batch_size: int, new_batch_size: int) -> float:
        """By the rule of the noise scale, with what is known of the critical batch size by now."""
        critical = self.calibration.unmeasured_median
        if "pilot" in self.measurements:
            posterior = self.posterior
            critical = weighted_quantile(posterior.critical_batch_size, posterior.weights, [0.5])[0]
        return carried_lr(
            "noise-scale",
            lr,
            batch_size,
            new_batch_size,
            noise_scale=critical,
            alpha=default_alpha(self.request.recipe.optimizer.name),
        )

    # --- after the pilot -------------------------------------------------------------------------

    @property
    def pilot(self) -> Measurement | None:
        """The pilot's looks, where there are any."""
        measured = self.measurements.get("pilot")
        return measured if measured is not None and measured.samples["update"] else None

    @functools.cached_property
    def pilot_size(self) -> int:
        """The batch size that range test and pilot were taken at."""
        for name in ("pilot", "lr-range"):
            if name in self.measurements:
                return int(self.measurements[name].settings["batch_size"])
        return self.pilot_batch_size()

    @functools.cached_property
    def updates_at_pilot(self) -> _Array:
        """Draws of the updates to the target at the pilot's batch size; inf: not reached."""
        curve = self._curve()
        if curve is None:
            return np.full(_NUM_DRAWS, np.inf)
        target = Target.parse(self.request.target)
        draws = remaining(curve, target, num_draws=_NUM_DRAWS, seed=self.request.seed)
        finite = np.isfinite(draws)
        if not finite.any():
            return draws
        middle = float(np.median(draws[finite]))
        wider = middle * (draws / middle) ** self._interval_factor
        return np.asarray(np.where(finite, wider, draws))

    def _curve(self) -> LearningCurve | None:
        pilot = self.pilot
        if pilot is None:
            return None
        columns = pilot.samples
        sound = [
            place
            for place, update in enumerate(columns["update"])
            if update > 0 and math.isfinite(columns["loss"][place])
        ]
        if not sound:
            return None
        is_share = self.request.metric_name == "accuracy"
        return LearningCurve(
            updates=tuple(columns["update"][place] for place in sound),
            metric=tuple(columns["metric"][place] for place in sound),
            loss=tuple(columns["loss"][place] for place in sound),
            direction=self.request.metric_direction,
            num_examples=int(pilot.settings["watched_examples"]) if is_share else None,
        )

    @functools.cached_property
    def posterior(self) -> Posterior:
        """What is believed of updates and seconds at any batch size."""
        noises = [
            measured
            for name, measured in sorted(self.measurements.items())
            if name.startswith("noise-scale")
        ]
        made = make_posterior(
            noises or None,
            self.time_model,
            self.calibration,
            self.updates_at_pilot,
            self.pilot_size,
            num_draws=_NUM_DRAWS,
            seed=self.request.seed,
        )
        return made.reweighted(self.ratios)

    @functools.cached_property
    def ratios(self) -> list[RatioObservation]:
        """Measured ratios of updates between branches of different batch sizes, each at its lr."""
        arms = self._arms()
        best: dict[int, tuple[float, BranchLosses]] = {}
        for (size, _), losses in arms.items():
            last = max(1, len(losses.losses[0]) // 3)
            end = float(np.mean([series[-last:] for series in losses.losses]))
            if size not in best or end < best[size][0]:
                best[size] = (end, losses)
        sizes = sorted(best)
        found = []
        for size in sizes[1:]:
            ratio, error = log_ratio_of_updates(best[size][1], best[sizes[0]][1])
            if math.isfinite(error):
                found.append(
                    RatioObservation(
                        batch_size=size,
                        reference_batch_size=sizes[0],
                        log_ratio=ratio,
                        standard_error=error,
                    )
                )
        return found

    def _arms(self) -> dict[tuple[int, float], BranchLosses]:
        """The branches by batch size and lr; diverged ones are left out."""
        measured = self.measurements.get("branches")
        if measured is None:
            return {}
        series: dict[tuple[int, float], dict[float, list[float]]] = {}
        names = ("batch_size", "lr", "seed", "loss")
        for size, lr, seed, loss in zip(*(measured.samples[n] for n in names), strict=True):
            series.setdefault((int(size), lr), {}).setdefault(seed, []).append(loss)
        arms = {}
        for (size, lr), by_seed in series.items():
            length = min(map(len, by_seed.values()))
            losses = tuple(tuple(values[:length]) for values in by_seed.values())
            if length >= _FEWEST_BRANCH_UPDATES and np.isfinite(losses).all():
                arms[size, lr] = BranchLosses(batch_size=size, losses=losses)
        return arms

    @functools.cached_property
    def decision(self) -> Decision:
        """Which batch size, and why."""
        request = self.request
        return decide(
            self.posterior,
            request.present_batch_size,
            self.sizes,
            device=request.device,
            ranks=request.ranks,
            set_size=request.num_examples,
        )

    def lr_at(self, batch_size: int) -> float:
        """The lr to train with: that of the best branch at this size, or the pilot's carried.

        Args:
            batch_size: global.
        """
        arms = {lr: losses for (size, lr), losses in self._arms().items() if size == batch_size}
        if arms:
            return min(arms, key=lambda lr: float(np.mean([s[-1] for s in arms[lr].losses])))
        return self._carried(self.pilot_lr(self.pilot_size), self.pilot_size, batch_size)

    def branch_arms(self) -> list[tuple[int, float]]:
        """(batch size, lr) of the branches: present, best with three lrs, a neighbour."""
        decision = self.decision
        best, present = decision.choice.batch_size, self.request.present_batch_size
        carried = self._carried(self.pilot_lr(self.pilot_size), self.pilot_size, best)
        arms = [(best, carried * factor) for factor in (0.5, 1.0, 2.0)]
        above, below = best * 4, best // 4
        neighbour = above if above <= self.request.num_examples // 4 else below
        for size in (present, neighbour):
            if size >= 1 and size not in {known for known, _ in arms}:
                lr = self._carried(self.pilot_lr(self.pilot_size), self.pilot_size, size)
                arms.append((size, lr))
        return arms

    # --- the plan --------------------------------------------------------------------------------

    def plan(
        self,
        *,
        procedure: Literal["full", "short"],
        cost: Mapping[str, float],
        partial: str = "",
    ) -> Plan:
        """The plan that follows.

        Args:
            procedure: that was carried out.
            cost: seconds by stage.
            partial: why it is not whole; empty where it is.
        """
        request, decision = self.request, self.decision
        size = decision.batch_size
        lr = self.lr_at(size)
        predictions = self.predictions
        recipe = planned_recipe(
            request, size, lr, predictions, self.pilot, self.time_model.best.largest_micro_batch
        )
        ranks = self._priced_ranks()
        listed = sorted({*self.sizes, size})
        return Plan(
            request=request,
            recipe=recipe,
            predictions=predictions,
            near_optimal=decision.near_optimal,
            prices=tuple(self._prices(listed, ranks)),
            reasons=tuple(reasons_of(self, decision, recipe)),
            would_change=tuple(would_change(self, decision)),
            findings=tuple(self._findings(predictions)),
            procedure=procedure,
            cost=dict(cost),
            pilot=self._pilot_values(),
            partial=partial,
            interval_factor=self._interval_factor,
        )

    def _prices(self, sizes: list[int], ranks: list[int]) -> list[Price]:
        return price_list(self.posterior, sizes, ranks)

    def _priced_ranks(self) -> list[int]:
        own = self.request.ranks
        if self.time_model.best.all_reduce is None:
            return [own]
        return sorted({1, own, *_PRICED_RANKS})

    def _pilot_values(self) -> dict[str, float]:
        if self.pilot is None:
            return {}
        last = {name: column[-1] for name, column in self.pilot.samples.items()}
        values = {name: float(last[name]) for name in ("update", "examples", "seconds")}
        return {"updates": values.pop("update"), **values, "batch_size": float(self.pilot_size)}

    @functools.cached_property
    def predictions(self) -> dict[str, Estimate]:
        """What the run will take, its pilot included, and what it rests on."""
        size = self.decision.batch_size
        lr = self.lr_at(size)
        posterior, weights = self.posterior, self.posterior.weights
        ranks = self.request.ranks
        pilot = self._pilot_values()
        done, spent = pilot.get("updates", 0.0), pilot.get("seconds", 0.0)
        seen = pilot.get("examples", 0.0)
        at_pilot = posterior.updates_at_pilot
        left = np.maximum(0.0, 1.0 - done / at_pilot)
        left = np.where(np.isfinite(at_pilot), left, np.inf)
        own = posterior.relative_updates([size])[:, 0]
        rest = left * np.where(np.isfinite(at_pilot), at_pilot, np.inf) * own
        seconds = posterior.time.seconds_per_update([size], ranks=ranks)[:, 0]
        found = {
            "updates": summary(done + rest, weights, "updates"),
            "examples": summary(seen + rest * size, weights, "examples"),
            "seconds": summary(spent + rest * seconds, weights, "seconds"),
        }
        present = self.request.present_batch_size
        there = posterior.seconds_to_target([present], ranks)[:, 0]
        found["seconds_of_present"] = summary(there, weights, "seconds")
        found["excess_of_present"] = self.decision.present_excess
        critical = posterior.critical_batch_size
        found["critical_batch_size"] = summary(critical, weights, "examples")
        found["noise_scale"] = summary(posterior.noise_scale, weights, "examples")
        near = self.decision.near_optimal
        low, high = min((*near, size)), max((*near, size))
        reason = "the interval holds the sizes that cost at most 5 % more"
        found["batch_size"] = Estimate(
            value=float(size), low=float(low), high=float(high), unit="examples", level=0.8,
            reason=reason,
        )  # fmt: skip
        found["lr"] = self._lr_estimate(lr)
        return found

    def _lr_estimate(self, lr: float) -> Estimate:
        """The range test's interval, carried along."""
        measured = self._measured_lr
        if measured is None or measured.value is None:
            reason = "the range test does not know; the present lr was carried"
            return Estimate(value=lr, low=0.0, high=math.inf, level=0.8, reason=reason)
        carried = lr / measured.value
        low, high = measured.low * carried, measured.high * carried
        return Estimate(value=lr, low=min(low, lr), high=max(high, lr), level=measured.level)

    def _findings(self, predictions: Mapping[str, Estimate]) -> list[Finding]:
        found = [f for m in self.measurements.values() for f in m.findings]
        seconds = predictions["seconds"]
        if seconds.value is None:
            found.insert(0, Finding(
                name="target-far",
                sentence=f"the target {self.request.target} may not be reached: {seconds.reason}",
                advice="ask for less, or train a larger model; anybatch doctor looks for faults",
            ))  # fmt: skip
        unique: dict[str, Finding] = {}
        for finding in found:
            unique.setdefault(finding.name, finding)
        return list(unique.values())


_FEWEST_BRANCH_UPDATES = 12
