"""Composing a plan from what was measured: no timing, no training, the same again from disk."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray

from anybatch.errors import InputError
from anybatch.measurement import Estimate, Measurement
from anybatch.plan import Plan, PlanRequest
from anybatch.planning.arithmetic.calibration import Calibration, calibration_for
from anybatch.planning.arithmetic.decision import Decision, decide
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
from anybatch.planning.arithmetic.prices import price_list
from anybatch.planning.arithmetic.time_model import TimeModel
from anybatch.planning.arms import Arms, arms_of, best_lr, diverged_lrs, neighbour, ratios_of
from anybatch.planning.curve import foretold_updates
from anybatch.planning.plan_findings import findings_of
from anybatch.planning.preconditioning import TRIED, preconditioned_lrs, trial_of
from anybatch.planning.predicting import predictions_of
from anybatch.planning.recipe import carried_of, planned_recipe, written_lr
from anybatch.planning.stages import allowed_sizes, pilot_batch_size
from anybatch.planning.wording import reasons_of, would_change

__all__ = ["Composer"]

_Array = NDArray[np.float64]

_NUM_DRAWS = 2000
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
        found = self.measured_lr
        if found is not None and found.value is not None:
            return found.value
        request, critical = self.request, self.calibration.unmeasured_median
        present = float(request.recipe.optimizer.lr)
        return carried_of(
            request.recipe, present, request.present_batch_size, batch_size, critical=critical
        )

    @property
    def measured_lr(self) -> Estimate | None:
        """The range test's, at the pilot's batch size; None before it was taken."""
        measured = self.measurements.get("lr-range")
        return None if measured is None else measured.estimates.get("max_lr")

    def _carried(self, lr: float, batch_size: int, new_batch_size: int) -> float:
        """By the rule of the noise scale, with what is known of the critical batch size by now."""
        critical = self.calibration.unmeasured_median
        if "pilot" in self.measurements:
            posterior = self.posterior
            critical = weighted_quantile(posterior.critical_batch_size, posterior.weights, [0.5])[0]
        return carried_of(self.request.recipe, lr, batch_size, new_batch_size, critical=critical)

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
        moved = self.ratio_of_times(trial.batch_size, self.decision.batch_size)
        return choose_preconditioner(trial, moved, self.posterior.weights, seed=self.request.seed)

    def ratio_of_times(self, batch_size: int, other: int) -> _Array:
        """(draws,) time to the target at one size over that at another, the optimizer the same.

        Args:
            batch_size: global.
            other: likewise.
        """
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
            prices=tuple(price_list(self.posterior, listed, ranks)),
            reasons=tuple(reasons_of(self, decision, recipe)),
            would_change=tuple(would_change(self, decision)),
            findings=tuple(findings_of(self, predictions)),
            procedure=procedure,
            cost=dict(cost),
            pilot=self.pilot_values(),
            partial=partial,
            interval_factor=self._interval_factor,
        )

    def _priced_ranks(self) -> list[int]:
        own = self.request.ranks
        if self.time_model.best.all_reduce is None:
            return [own]
        return sorted({1, own, *_PRICED_RANKS})

    def pilot_values(self) -> dict[str, float]:
        """Updates, examples, seconds and batch size of the pilot; empty where there is none."""
        if self.pilot is None:
            return {}
        last = {name: column[-1] for name, column in self.pilot.samples.items()}
        values = {name: float(last[name]) for name in ("update", "examples", "seconds")}
        return {"updates": values.pop("update"), **values, "batch_size": float(self.pilot_size)}

    @functools.cached_property
    def predictions(self) -> dict[str, Estimate]:
        """What the run will take, its pilot included, and what it rests on."""
        return predictions_of(self)
