"""Statistics' flow: from the raw sums of every rank to damped inverses where they are needed.

    sums, scaled -> the owner of each factor -> normalized -> running average -> inverse
    -> of distribution "inverses": every rank

What must be known everywhere (mean eigenvalues for the damping of the other factor, whether a
statistic is like its last two) is filled in by the owners and summed over ranks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from anybatch.errors import InputError
from anybatch.kfac.applying import matrix_shape
from anybatch.kfac.blocks import FactorShape, FisherBlock
from anybatch.kfac.capture import Capture
from anybatch.kfac.damping import damping_by_means
from anybatch.kfac.exchange import StatisticsExchange
from anybatch.kfac.factors import Factors
from anybatch.kfac.ladder import EventCounts
from anybatch.kfac.loss_weight import LossReduction, LossWeight
from anybatch.kfac.overlap import Departures, OrderedBuckets, buckets_of, scaled_sum
from anybatch.kfac.packing import PackedEntry
from anybatch.kfac.placement import block_costs, block_of, factor_costs, factor_owners, place
from anybatch.kfac.refresh import refresh_plan
from anybatch.kfac.refresh_counts import Due
from anybatch.kfac.shared_knowledge import inverted_names, means_and_changes
from anybatch.kfac.stages import Stages
from anybatch.kfac.statistics import accumulation_dtype, normalized
from anybatch.kfac.wire import wire_dtype
from anybatch.recipe_preconditioner import AdaptiveRefresh, FixedRefresh, KFACSettings
from anybatch.world import World

__all__ = ["LossReduction", "LossWeight", "StatisticsFlow"]


@final
class StatisticsFlow:
    """Factors of all blocks, divided among the ranks of a world.

    Args:
        blocks: of the model.
        settings: refresh, distribution, wire, and what `Factors` needs.
        world: ranks that measure together.
        stages: takes the seconds.

    Attributes:
        factors: that this rank owns.
        owner: rank by factor name.
        inverses: damped, that this rank preconditions with, by factor name.
    """

    def __init__(
        self,
        blocks: Sequence[FisherBlock],
        settings: KFACSettings,
        world: World,
        stages: Stages,
    ) -> None:
        self._blocks, self._settings, self._world, self._stages = blocks, settings, world, stages
        self._shapes = [shape for block in blocks for shape in block.factors]
        self.owner = _owners(self._shapes, settings, world.size)
        mine = [shape for shape in self._shapes if self.owner[shape.name] == world.rank]
        self.factors = Factors(mine, settings)
        self._dtype = _sum_dtype(blocks)
        self._exchange = StatisticsExchange(
            world, self._shapes, self.owner, wire=settings.wire, dtype=self._dtype
        )
        self._shares_inverses = settings.distribution == "inverses" and world.size > 1
        self.inverses = {} if self._shares_inverses else self.factors.inverses
        self._refresh = refresh_plan(settings.refresh, [shape.name for shape in self._shapes])
        self._due = Due()
        self._means: dict[str, Tensor] = {}  # mean eigenvalues of A and G, (groups,), everywhere
        self._inverted: set[str] = set()  # factors that have an inverse, on whichever rank
        # Of the last measurement, over all ranks: measured, passed, and terms of a loss by tokens.
        self._examples = self._passed = self._passed_terms = 0.0

    # --- what is due -------------------------------------------------------------------------

    def due(self, update: int, refresh_factor: float) -> frozenset[str]:
        """Names of the factors that the passes of an update are to measure.

        Args:
            update: its number, from 0.
            refresh_factor: on the intervals of a fixed refresh.
        """
        self._due = self._refresh.due(update, refresh_factor)
        return self._due.statistics

    def is_ready(self, block: FisherBlock) -> bool:
        """Whether a block's gradient can be preconditioned: all of its factors have an inverse."""
        return all(shape.name in self._inverted for shape in block.factors)

    def preconditions(self, block: FisherBlock) -> bool:
        """Whether it is this rank that preconditions a block's gradient, for all or for itself."""
        return self._shares_inverses or self.owner[block.factors[0].name] == self._world.rank

    # --- statistics --------------------------------------------------------------------------

    def take(self, capture: Capture, weight: LossWeight, update: int, damping: float) -> None:
        """Make of an update's raw sums what is due.

        Args:
            capture: that has seen this rank's passes.
            weight: of the losses.
            update: its number, from 0.
            damping: at present.

        Raises:
            InputError: no pass was seen on any rank, or in the first update not by every layer.

        Collectives:
            A reduce-scatter of the packed statistics, sums of small vectors, and under distribution
            "inverses" an all-gather of the inverses that were made.
        """
        due = self._due
        changes: dict[str, tuple[float, float]] = {}
        if due.statistics:
            with self._stages.of("exchange"):
                statistics, measured = self._global_statistics(capture, weight)
            if update == 0:  # known to all ranks alike: none waits for one that has raised
                self._refuse_silent(due.statistics - measured)
            own_changes = self.factors.changes(statistics)
            self.factors.take(statistics, update)
            with self._stages.of("exchange"):
                changes = self._known_everywhere(measured, own_changes)
            due = dataclasses.replace(due, statistics=measured)
        if due.inverses:
            with self._stages.of("inversion"):
                self.factors.invert(self._dampings(due.inverses, damping))
            with self._stages.of("share"):
                self._share(due.inverses)
        self._refresh.observe(update, self._done(due), changes)

    def _done(self, due: Due) -> Due:
        """What counts as done, the same everywhere: an inverse that failed at first stays due."""
        failed = due.inverses - self._inverted
        if isinstance(self._settings.refresh, AdaptiveRefresh):
            return Due(due.statistics - failed, due.inverses & due.statistics - failed)
        return Due() if failed else due

    def _global_statistics(
        self, capture: Capture, weight: LossWeight
    ) -> tuple[dict[str, Tensor], frozenset[str]]:
        """The due statistics that this rank owns, over all ranks; names of those that any has.

        A layer that took part in no rank's passes leaves what was known as it is.
        """
        passed = [float(capture.examples), float(capture.passed), float(self._terms(capture))]
        rows = [float(capture.rows.get(block.name, 0)) for block in self._blocks]
        present = [float(shape.name in capture.sums) for shape in self._shapes]
        counts = torch.tensor([*passed, *rows, *present], dtype=torch.float64)
        counts = counts.to(self._world.device)
        owned = self._summed(capture, weight, counts)
        # A synchronization, where statistics are due.
        self._examples, self._passed, self._passed_terms, *known = counts.tolist()
        if not self._examples > 0:
            raise InputError("the update", "must have a backward pass before kfac.step()")
        rows, present = known[: len(rows)], known[len(rows) :]
        by_block = dict(zip((block.name for block in self._blocks), rows, strict=True))
        measured = frozenset(
            shape.name
            for shape, ranks in zip(self._shapes, present, strict=True)
            if ranks and shape.name in self._due.statistics and by_block[block_of(shape.name)]
        )
        by_token = weight.reduction in ("token-mean", "token-sum")
        found = {}
        for name, total in owned.items():
            if name not in measured:
                continue
            block, _, role = name.rpartition(".")
            examples = by_block[block] if by_token else self._examples
            found[name] = normalized(
                total, role, examples=examples, rows=by_block[block], divisor=1.0  # type: ignore[arg-type]
            )  # fmt: skip
        return found, measured

    def _refuse_silent(self, factors: frozenset[str]) -> None:
        """Name the first block that lacks a statistic in the first update."""
        names = [b.name for b in self._blocks if any(f.name in factors for f in b.factors)]
        if names:
            rule = "must take part in the first update"
            hint = "KFAC(..) before the forward pass; left_out = [...] in its settings excepts it"
            if self._settings.fisher != "empirical":
                hint = "kfac.observe_outputs(outputs) before backward, for this Fisher"
            value = f"{len(names)} without a gradient"
            raise InputError(f"layer {names[0]}", rule, value, hint=hint)

    def departures(self, weight: LossWeight) -> Departures | None:
        """What lets sums leave while the last backward pass goes on; None: nothing does.

        Args:
            weight: of the losses; must be known before the passes end.
        """
        known = weight.num_examples is not None or weight.reduction in ("sum", "token-sum")
        # Half precision agrees on scales, which waits for all ranks: one without examples would
        # wait in turn for the gradients of those that wait for it.
        apart = self._settings.overlap and self._settings.wire == "fp32"
        if not (apart and known and self._due and self._world.size > 1):
            return None
        divisor = weight.divisor(0, 0) if self._settings.fisher == "empirical" else 1.0
        # Gradients come in about the reverse of the modules' order.
        due = [s for s in reversed(self._shapes) if s.name in self._due.statistics]
        return Departures(OrderedBuckets(self._exchange, buckets_of(due)), divisor)

    def _summed(self, capture: Capture, weight: LossWeight, counts: Tensor) -> dict[str, Tensor]:
        """Sums over ranks of the owned factors that are due; `counts` become sums, too."""
        if capture.departures is not None:
            return capture.departures.finish(counts)
        divisor = 1.0
        if self._settings.fisher == "empirical":
            divisor = weight.divisor(capture.passed, self._terms(capture))
        # Scaled here: ranks may have divided their losses by their own counts.
        sums = {
            name: scaled_sum(name, total, divisor)
            for name, total in capture.sums.items()
            if name in self._due.statistics
        }
        return self._exchange.reduce_to_owners(sums, counts, names=self._due.statistics)

    def _terms(self, capture: Capture) -> int:
        """Rows of the last layer that was seen: the tokens of a loss by tokens."""
        rows = [capture.rows[block.name] for block in self._blocks if block.name in capture.rows]
        return round(rows[-1] * capture.passed / capture.examples) if rows else 0

    def _known_everywhere(
        self, names: frozenset[str], changes: Mapping[str, tuple[Tensor, Tensor]]
    ) -> dict[str, tuple[float, float]]:
        """Changes of the measured factors, from their owners to all; mean eigenvalues are kept.

        Only an adaptive refresh, which decides on the host, reads its numbers there.
        """
        ordered = [shape for shape in self._shapes if shape.name in names]
        asked = changes if isinstance(self._settings.refresh, AdaptiveRefresh) else None
        means, found = means_and_changes(ordered, self.factors.running, asked, self._world)
        self._means |= means
        return found

    def _dampings(self, names: frozenset[str], damping: float) -> dict[str, Tensor]:
        """What is added to the diagonal of each owned factor that is to be inverted, (groups,)."""
        found = {}
        for block in self._blocks:
            if len(block.factors) == 1:
                (shape,) = block.factors
                whole = torch.full((), damping, dtype=torch.float64, device=self._world.device)
                added = [whole.expand(shape.groups)]
            else:
                a, g = (self._means[shape.name] for shape in block.factors)
                added = list(damping_by_means(a, g, damping))
            for shape, one in zip(block.factors, added, strict=True):
                if shape.name in names and shape.name in self.factors.running:
                    found[shape.name] = one
        return found

    def _share(self, names: frozenset[str]) -> None:
        """Make known which factors have an inverse, and where each rank needs them, send them."""
        ordered = [shape for shape in self._shapes if shape.name in names]
        own = self.factors.inverses
        present = inverted_names(ordered, own, self._world)
        self._inverted |= set(present)
        if self._shares_inverses:
            mine = {name: own[name] for name in present if name in own}
            entries = [PackedEntry.of(shape) for shape in ordered if shape.name in present]
            self.inverses |= self._exchange.gather_from_owners(
                mine, entries, self.owner, self._dtype
            )

    # --- gradients ---------------------------------------------------------------------------

    def gathered(
        self, blocks: Sequence[FisherBlock], own: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Preconditioned gradients of all blocks, from the ranks that made them.

        Args:
            blocks: of this update, the same on every rank.
            own: this rank's, by block name.

        Collectives:
            One all-gather of their size, unless every rank has made them all.
        """
        if self._shares_inverses or self._world.size == 1:
            return own
        entries = [
            PackedEntry(block.name, matrix_shape(block), symmetric=False) for block in blocks
        ]
        owners = {block.name: self.owner[block.factors[0].name] for block in blocks}
        return self._exchange.gather_from_owners(own, entries, owners, self._dtype)

    def gradient_unit(self, weight: LossWeight) -> float:
        """What a gradient is to be multiplied by to be that of the mean loss."""
        if weight.reduction in ("mean", "token-mean"):
            return 1.0
        passed = self._passed_terms if weight.reduction == "token-sum" else self._passed
        return 1.0 / (weight.num_examples or passed)

    def count_dropped(self, dropped: Tensor | bool) -> None:
        """Count a step that is not taken; 0-dim, the same on every rank."""
        if self._world.is_first:  # counts are summed over ranks
            happened = torch.as_tensor(dropped, device=self._world.device)
            self.factors.events.add_if("step", "dropped", happened)

    def close(self) -> None:
        """Leave the process group of the exchanges."""
        self._exchange.close()

    # --- what is known -----------------------------------------------------------------------

    def counts(self) -> dict[str, Any]:
        """Refreshes, inversions, what both saved, bytes, and failures by factor and rung.

        Bytes are those of this rank, failures those of the factors that it owns.
        """
        counts, sent = self._refresh.counts, self._exchange.sent
        return {
            "refreshes": sum(counts.statistics.values()),
            "inversions": sum(counts.inverses.values()),
            "refreshes_saved": sum(counts.saved_statistics().values()),
            "inversions_saved": sum(counts.saved_inverses().values()),
            "payload_bytes_saved": self._payload_bytes_saved(),
            "payload_bytes": sent.payload_bytes,
            "padding_bytes": sent.padding_bytes,
            "link_bytes": sent.link_bytes,
            "events": self.factors.events.state_dict(),
        }

    def _payload_bytes_saved(self) -> int:
        """Of statistics that did not travel, since they were not measured in every update."""
        if self._world.size == 1:
            return 0
        saved = self._refresh.counts.saved_statistics()
        elements = sum(PackedEntry.of(s).count * saved[s.name] for s in self._shapes)
        return elements * wire_dtype(self._settings.wire, self._dtype).itemsize

    # --- state -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Of all ranks together, the same on each; this rank's tensors are not copied.

        Collectives:
            One gather of all factors and inverses; every rank must call.
        """
        factors: dict[str, Any] = {}
        events = EventCounts()
        for part, counted in self._world.all_values(
            (self.factors.state_dict(), self.factors.events.state_dict())
        ):
            factors |= part
            events.merge(counted)
        return {
            "factors": factors,
            "events": events.state_dict(),
            "refresh": self._refresh.state_dict(),
            "means": dict(self._means),
            "inverted": sorted(self._inverted),
            "counted": [self._examples, self._passed, self._passed_terms],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned, whichever ranks own what now.

        Raises:
            InputError: the state has other factors.

        Collectives:
            None, but under distribution "inverses" every rank takes all inverses from the state.
        """
        strange = sorted(set(state["factors"]) ^ {shape.name for shape in self._shapes})
        if strange:
            rule = "must be a factor of the model and of the state"
            raise InputError(f"factor {strange[0]}", rule, hint="is the state another model's?")
        device = self._world.device
        self.factors.load_state_dict(state["factors"], device=device, dtype=self._dtype)
        # Rank 0 keeps what all have met so far, so that a sum over ranks counts it once.
        self.factors.events.load_state_dict(state["events"] if self._world.is_first else {})
        is_adaptive = isinstance(self._settings.refresh, AdaptiveRefresh)
        if ("intervals" in state["refresh"]) != is_adaptive:
            rule = "must be of the state's kind"
            raise InputError("preconditioner.refresh", rule, self._settings.refresh.name)
        self._refresh.load_state_dict(state["refresh"])
        self._means = {name: one.to(device) for name, one in state["means"].items()}
        self._inverted = set(state["inverted"])
        self._examples, self._passed, self._passed_terms = state["counted"]
        self.inverses = self.factors.inverses
        if self._shares_inverses:
            found = {name: one["inverse"] for name, one in state["factors"].items()}
            self.inverses = {
                name: inverse.to(device, self._dtype, copy=True)
                for name, inverse in found.items()
                if inverse is not None
            }


def _owners(shapes: Sequence[FactorShape], settings: KFACSettings, ranks: int) -> dict[str, int]:
    """The rank of each factor: factors apart, or whole blocks where owners precondition."""
    if settings.distribution == "inverses":
        return factor_owners(shapes, place(factor_costs(shapes), ranks))
    refresh = settings.refresh
    every = refresh.inverse_every if isinstance(refresh, FixedRefresh) else 1
    return factor_owners(shapes, place(block_costs(shapes, inverse_every=every), ranks))


def _sum_dtype(blocks: Sequence[FisherBlock]) -> torch.dtype:
    """float64 where the parameters are, else float32."""
    return accumulation_dtype(blocks[0].parameters[0].dtype)
