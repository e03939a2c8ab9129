"""Composing a plan from what was measured: no timing, no training, the same again from disk."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray

from anybatch.errors import InputError
from anybatch.measurement import Estimate, Finding, Measurement
from anybatch.plan import Plan, PlanRequest, Price
from anybatch.planning.arithmetic.calibration import Calibration, calibration_for
from anybatch.planning.arithmetic.decision import Decision, decide
from anybatch.planning.arithmetic.lr_rules import carried_lr, default_alpha
from anybatch.planning.arithmetic.posterior import (
    Posterior,
    RatioObservation,
    make_posterior,
    weighted_quantile,
)
from anybatch.planning.arithmetic.preconditioner_choice import (
    PreconditionerChoice,
    choose_preconditioner,
)
from anybatch.planning.arithmetic.prices import price_list, summary
from anybatch.planning.arithmetic.time_model import TimeModel
from anybatch.planning.arms import Arms, arms_of, best_lr, diverged_lrs, neighbour, ratios_of
from anybatch.planning.curve import foretold_updates
from anybatch.planning.preconditioning import TRIED, preconditioned_lrs, trial_of
from anybatch.planning.recipe import LOOKS, planned_recipe, written_lr
from anybatch.planning.stages import allowed_sizes, pilot_batch_size
from anybatch.planning.wording import reasons_of, would_change

__all__ = ["Composer"]

_Array = NDArray[np.float64]

_NUM_DRAWS = 2000
_CLOCK_SPREAD = 0.08  # of the natural log: what a machine's speed changes within minutes
_STARTING_SECONDS = 0.03  # at most: the first updates after a checkpoint are slower
_PASSAGE_SPREAD = 0.12  # of the natural log of all updates: when a noisy evaluation meets a target
_LEAST_PILOT = 16  # examples an update, unless the present recipe has fewer
_AFTER_DIVERGENCE = 0.25  # of the lr, for the next pilot
_PRICED_RANKS = (2, 8, 64)
_DOMAINS = {
    "classification": "classification",
    "regression": "regression",
    "language-modelling": "language",
}
_ADAM_LIKE = ("adam", "adamw", "lamb", "muon")


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
        """Batch sizes that suit the hardware, the present one among them, ascending.

        Whole ghosts on each rank; on one rank also fewer examples than a ghost, which then share
        their statistics.
        """
        request = self.request
        return sorted({*allowed_sizes(request), request.present_batch_size})

    @functools.cached_property
    def calibration(self) -> Calibration:
        """What is believed of critical batch sizes before this task speaks."""
        name = self.request.recipe.optimizer.name
        kind: Literal["sgd", "adam"] = "adam" if name in _ADAM_LIKE else "sgd"
        return calibration_for(kind, _DOMAINS.get(self.request.kind))

    def pilot_batch_size(self) -> int:
        """Where the pilot trains: the least time under what is believed of tasks in general.

        Not far below the present size: a noisy clock must not send the pilot to tiny batches.
        """
        usual, present = self.calibration.unmeasured_median, self.request.present_batch_size
        least = min(present, max(_LEAST_PILOT, present // 8))
        timed = 2 * int(self.time_model.sizes.max()) * self.request.ranks  # no leap into the dark
        most = max(least, min(timed, self.request.num_examples // 8))
        sizes = [size for size in self.sizes if least <= size <= most] or self.sizes[:1]
        return pilot_batch_size(self.time_model, sizes, usual, ranks=self.request.ranks)

    def pilot_lr(self, batch_size: int) -> float:
        """The lr that a pilot has learned with; before it the range test's, or the present one.

        After a pilot that diverged a quarter of its lr; where the range test does not know, the
        present lr carried.

        Args:
            batch_size: of the pilot.
        """
        trained = self.measurements.get("pilot")
        if trained is not None:
            lr = float(trained.settings["lr"])
            return _AFTER_DIVERGENCE * lr if trained.settings["diverged"] else lr
        return self.untried_lr(batch_size)

    def untried_lr(self, batch_size: int) -> float:
        """The range test's lr, or where it does not know, the present one carried.

        Args:
            batch_size: of the pilot.
        """
        found = self._measured_lr
        if found is not None and found.value is not None:
            return found.value
        present = float(self.request.recipe.optimizer.lr)
        critical = self.calibration.unmeasured_median
        return self._carried_at(critical, present, self.request.present_batch_size, batch_size)

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
        return self._carried_at(critical, lr, batch_size, new_batch_size)

    def _carried_at(
        self, critical: float, lr: float, batch_size: int, new_batch_size: int
    ) -> float:
        recipe = self.request.recipe
        if recipe.loss.reduction == "sum" and recipe.optimizer.name in ("sgd", "sgdw"):
            lr *= batch_size / new_batch_size  # lr_sum = lr_mean / B
        return carried_lr(
            "noise-scale",
            lr,
            batch_size,
            new_batch_size,
            noise_scale=critical,
            alpha=default_alpha(recipe.optimizer.name),
        )

    # --- after the pilot -------------------------------------------------------------------------

    @property
    def pilot(self) -> Measurement | None:
        """The pilot's looks, where there are any; None also where it diverged in the end."""
        measured = self.measurements.get("pilot")
        if measured is None or measured.settings["diverged"] or not measured.samples["update"]:
            return None
        return measured

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
        return foretold_updates(
            self.pilot,
            self.request,
            num_draws=_NUM_DRAWS,
            interval_factor=self._interval_factor,
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
        return ratios_of(self._arms)

    @functools.cached_property
    def _arms(self) -> Arms:
        return arms_of(self.measurements.get("branches"))

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
            preferred=self.pilot_size,
        )

    @functools.cached_property
    def preconditioner(self) -> PreconditionerChoice | None:
        """What the branches say of a preconditioner; None where none was tried, or nothing said."""
        trial = trial_of(self.measurements.get("branches"))
        if trial is None:
            return None
        moved = self._ratio_of_times(trial.batch_size, self.decision.batch_size)
        return choose_preconditioner(trial, moved, self.posterior.weights, seed=self.request.seed)

    def _ratio_of_times(self, batch_size: int, other: int) -> _Array:
        """(draws,) time to the target at one size over that at another, the optimizer the same."""
        sizes, posterior = [batch_size, other], self.posterior
        per_update = posterior.time.seconds_per_update(sizes, ranks=self.request.ranks)
        seconds = posterior.relative_updates(sizes) * per_update
        return np.asarray(seconds[:, 0] / seconds[:, 1])

    @property
    def recommended(self) -> PreconditionerChoice | None:
        """The preconditioner that is worth it; None: none."""
        found = self.preconditioner
        return found if found is not None and found.recommended else None

    @property
    def batch_size(self) -> int:
        """To train with: the decision's, or that at which a preconditioner is worth it."""
        found = self.recommended
        return self.decision.batch_size if found is None else found.trial.batch_size

    @property
    def lr(self) -> float:
        """To train with."""
        found = self.recommended
        return self.lr_at(self.batch_size) if found is None else found.trial.lr

    def lr_at(self, batch_size: int) -> float:
        """The lr to train with: that of the best branch at this size, or the pilot's carried.

        Args:
            batch_size: global.
        """
        if self.has_branch(batch_size):
            return best_lr(self._arms, batch_size)
        carried = self._carried(self.pilot_lr(self.pilot_size), self.pilot_size, batch_size)
        lost = diverged_lrs(self.measurements.get("branches"), batch_size)
        return min([carried, *(0.5 * lr for lr in lost)])

    def has_branch(self, batch_size: int) -> bool:
        """Whether a branch at this size has learned.

        Args:
            batch_size: global.
        """
        return any(size == batch_size for size, _ in self._arms)

    def branch_arms(self) -> list[tuple[int, float]]:
        """(batch size, lr) of the branches: present, best with three lrs, a neighbour.

        Learning rates as the planned recipe writes them, so that a branch can be its beginning.
        """
        best, present = self.decision.choice.batch_size, self.request.present_batch_size
        wanted = [(best, factor) for factor in (0.5, 1.0, 2.0)]
        others = [present, neighbour(self.sizes, best, self.request.num_examples)]
        wanted += [(size, 1.0) for size in dict.fromkeys(others) if size and size != best]
        pilot_lr = self.pilot_lr(self.pilot_size)
        return [
            (size, written_lr(factor * self._carried(pilot_lr, self.pilot_size, size)))
            for size, factor in wanted
        ]

    def preconditioned_arms(self) -> list[tuple[int, float]]:
        """(batch size, lr) of the branches that try a preconditioner, at the best batch size."""
        best = self.decision.choice.batch_size
        return [(best, lr) for lr in preconditioned_lrs(self.request.recipe, best)]

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
        size, predictions = self.batch_size, self.predictions
        recipe = planned_recipe(
            request, size, self.lr, predictions, self.pilot,
            self.time_model.best.largest_micro_batch,
            TRIED if self.recommended else request.recipe.preconditioner,
        )  # fmt: skip
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
        size, gained = self.batch_size, self.recommended
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
        rest = rest if gained is None else rest * gained.updates
        # The target is met at an evaluation, half of their distance late on average.
        rng = np.random.default_rng((self.request.seed, 3))
        late = 1.0 + rng.uniform(size=len(rest)) / LOOKS
        passage = np.exp(_PASSAGE_SPREAD * rng.standard_normal(len(rest)))
        rest = np.maximum(0.0, (done + rest) * late * passage - done)
        starting = _STARTING_SECONDS * rng.uniform(size=len(rest)) ** 3
        clock = np.exp(_CLOCK_SPREAD * rng.standard_normal(len(rest)))
        seconds = clock * posterior.time.seconds_per_update([size], ranks=ranks)[:, 0]
        seconds = seconds if gained is None else seconds * gained.seconds
        found = {
            "updates": summary(done + rest, weights, "updates"),
            "examples": summary(seen + rest * size, weights, "examples"),
            "seconds": summary(spent + starting + rest * seconds, weights, "seconds"),
        }
        present = self.request.present_batch_size
        there = posterior.seconds_to_target([present], ranks)[:, 0]
        found["seconds_of_present"] = summary(there, weights, "seconds")
        found["excess_of_present"] = self._present_excess()
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
        found["lr"] = self._lr_estimate(self.lr)
        return found

    def _present_excess(self) -> Estimate:
        """Seconds at the present choice over those of the plan, less 1."""
        gained = self.recommended
        if gained is None:
            return self.decision.present_excess
        ratio = self._ratio_of_times(self.request.present_batch_size, self.batch_size)
        ratio = ratio / (gained.seconds * gained.updates)
        return summary(ratio - 1.0, self.posterior.weights, "of the seconds")

    def _lr_estimate(self, lr: float) -> Estimate:
        """The range test's interval, carried along."""
        if self.recommended:
            reason = "the best that was tried; with K-FAC they are on a scale of their own"
            return Estimate(value=lr, low=0.0, high=math.inf, level=0.8, reason=reason)
        measured = self._measured_lr
        if measured is None or measured.value is None:
            reason = "the range test does not know; the present lr was carried"
            return Estimate(value=lr, low=0.0, high=math.inf, level=0.8, reason=reason)
        carried = lr / measured.value
        low, high = measured.low * carried, measured.high * carried
        return Estimate(value=lr, low=min(low, lr), high=max(high, lr), level=measured.level)

    def _findings(self, predictions: Mapping[str, Estimate]) -> list[Finding]:
        names = sorted(self.measurements, key=_stage_of)  # the same order from disk
        found = [f for name in names for f in self._own_findings(self.measurements[name])]
        found[:0] = self._divergence()
        seconds = predictions["seconds"]
        if self.pilot is not None and (seconds.value is None or math.isinf(seconds.high)):
            why = seconds.reason or "more than a tenth of the draws never get there"
            found.insert(0, Finding(
                name="target-far",
                sentence=f"the target {self.request.target} may not be reached: {why}",
                advice="ask for less, or train a larger model; anybatch doctor looks for faults",
            ))  # fmt: skip
        if "pilot" not in self.measurements:
            found.insert(0, Finding(
                name="no-pilot",
                sentence="no pilot was trained, so nobody knows how far the target is",
                advice="let anybatch plan come to its end",
            ))  # fmt: skip
        unique: dict[str, Finding] = {}
        for finding in found:
            unique.setdefault(finding.name, finding)
        return list(unique.values())

    def _own_findings(self, measured: Measurement) -> list[Finding]:
        """Of a measurement; what its own command can do better is told as that command."""
        command = f"anybatch {measured.kind} {self.request.task.get('name') or 'TASK'} "
        return [
            dataclasses.replace(finding, advice=command + finding.advice)
            if finding.advice.startswith("--")
            else finding
            for finding in measured.findings
        ]

    def _divergence(self) -> list[Finding]:
        """That a pilot diverged at the lr of the range test, where one did."""
        trained = self.measurements.get("pilot")
        if trained is None:
            return []
        lr, is_lost = float(trained.settings["lr"]), bool(trained.settings["diverged"])
        first = self.untried_lr(self.pilot_size)
        if not is_lost and not lr < 0.99 * first:
            return []
        last = f"and down to {lr:.3g}" if is_lost and lr < 0.99 * first else ""
        then = last if is_lost else f"and learned at {lr:.3g}"
        sentence = f"the pilot diverged at lr {first:.3g} {then}".rstrip()
        return [Finding(name="pilot-diverged", sentence=sentence, advice="anybatch doctor")]


_STAGES = ("throughput", "lr-range", "pilot", "noise-scale", "branches")


def _stage_of(name: str) -> tuple[int, str]:
    """Where a measurement stands in the procedure."""
    places = [place for place, stage in enumerate(_STAGES) if name.startswith(stage)]
    return (places[0] if places else len(_STAGES), name)
