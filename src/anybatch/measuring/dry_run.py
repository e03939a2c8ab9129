"""Dry run: a whole training built, two small updates of it taken, nothing kept.

What one process cannot show is computed: bytes between ranks from the sizes of what travels, and
the busiest rank's part of the inversions from the placement of the factors.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.kfac.blocks import Coverage, FactorShape
from anybatch.kfac.placement import block_costs, factor_costs, factor_owners, place
from anybatch.measuring.memory import MemoryMeter
from anybatch.recipe import FixedRefresh, KFACSettings, Recipe
from anybatch.task import Task
from anybatch.training.training import Training

__all__ = ["DryRun", "Travel", "dry_run", "travels"]

_UPDATES = 2
_WIRE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Travel:
    """What ranks send each other for one purpose.

    Attributes:
        what: is sent.
        every: updates from one time to the next; 0: as the adaptive refresh finds it due.
        payload_bytes: that are needed, each counted once.
        link_bytes: that a rank sends each time, in a ring, with padding.
    """

    what: str
    every: int
    payload_bytes: int
    link_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRun:
    """What a dry run found.

    Attributes:
        parameters: that are trained.
        covered_parameters: of them, those that K-FAC covers.
        uncovered: names of the others and why, with K-FAC.
        memory_bytes: by what fills it, on one rank alone.
        ranks: that the rest is computed for.
        travels: between the ranks.
        busiest_share: of all inversions, what the busiest rank has to do.
        seconds: by stage, of each update on one rank.
        losses: mean over the examples of each update.
        device: where it ran.
    """

    parameters: int
    covered_parameters: int
    uncovered: tuple[tuple[str, str], ...]
    memory_bytes: dict[str, float]
    ranks: int
    travels: tuple[Travel, ...]
    busiest_share: float
    seconds: tuple[dict[str, float], ...]
    losses: tuple[float, ...]
    device: str


def dry_run(task: Task, recipe: Recipe, *, ranks: int = 1) -> DryRun:
    """Build a training, take two updates of it in this process, and say what they need.

    Args:
        task: whose data are read for two updates; `dry_run_task.synthetic_task` makes them up.
        recipe: of the run, best with smaller updates (`dry_run_task.made_small`).
        ranks: that would share an update, >= 1.

    Raises:
        InputError: task, recipe and machine do not fit together.

    Cost:
        Two updates; the device is waited for between stages.
    """
    with Training(task, recipe) as training:
        if training.world.size > 1:
            raise InputError("--dry-run", "must run in one process", f"{training.world.size}")
        meter = MemoryMeter(training.world.device)
        meter.begin()
        seconds = tuple(_timed_update(training) for _ in range(_UPDATES))
        added = meter.added_bytes()
        trained = [p for p in training.model.parameters() if p.requires_grad]
        preconditioning = training.one_step.preconditioning
        coverage = None if preconditioning is None else preconditioning.kfac.coverage
        factors = _factors(coverage)
        memory = _memory_bytes(training, trained, factors)
        fixed = sum(memory[name] for name in ("gradients", "optimizer", "factors", "inverses"))
        memory["passes and work space"] = max(0.0, added - fixed)
        return DryRun(
            parameters=_count(trained),
            covered_parameters=_count(_covered(coverage)),
            uncovered=_uncovered(coverage),
            memory_bytes=memory,
            ranks=ranks,
            travels=tuple(travels(trained, coverage, recipe, ranks)),
            busiest_share=_busiest_share(factors, recipe.preconditioner, ranks),
            seconds=seconds,
            losses=tuple(update.pop("loss") for update in seconds),
            device=str(training.world.device),
        )


def _timed_update(training: Training) -> dict[str, float]:
    """Seconds of an update by stage, and its mean loss."""
    step, device = training.one_step, training.world.device
    step.train_mode()
    kfac = None if step.preconditioning is None else step.preconditioning.kfac
    if kfac is not None:
        kfac.stages.timed = True
    portion = training.feed.next()
    times = [_now(device)]
    training.gradient(portion)
    times.append(_now(device))
    stages: dict[str, float] = {} if kfac is None else dict(kfac.stages.seconds.items())
    training.update(portion.num_examples)
    times.append(_now(device))
    passes = times[1] - times[0] - sum(stages.values())
    loss = float(torch.cat([losses.detach().flatten() for losses in step.losses]).mean())
    return {"passes": passes, **stages, "optimizer": times[2] - times[1], "loss": loss}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


# --- memory ----------------------------------------------------------------------------------


def _memory_bytes(
    training: Training, trained: Sequence[nn.Parameter], factors: Sequence[FactorShape]
) -> dict[str, float]:
    model = training.model
    side = _factor_bytes(factors, trained)
    return {
        "weights and buffers": _bytes([*model.parameters(), *model.buffers()]),
        "gradients": _bytes(trained),
        "optimizer": _bytes(_tensors_in(training.optimizer.state_dict()["state"])),
        "factors": side,
        "inverses": side,
    }


def _bytes(tensors: Sequence[Tensor]) -> float:
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def _tensors_in(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else ()
    return [tensor for value in values for tensor in _tensors_in(value)]


def _factor_bytes(factors: Sequence[FactorShape], trained: Sequence[nn.Parameter]) -> float:
    """Of all factors, unpacked: in float64 where the model is, else in float32."""
    size = 8 if any(p.dtype == torch.float64 for p in trained) else 4
    each = (f.groups * f.side * (1 if f.diagonal else f.side) for f in factors)
    return float(size * sum(each))


# --- K-FAC's parts ---------------------------------------------------------------------------


def _factors(coverage: Coverage | None) -> list[FactorShape]:
    return [] if coverage is None else [f for block in coverage.blocks for f in block.factors]


def _covered(coverage: Coverage | None) -> list[nn.Parameter]:
    blocks = () if coverage is None else coverage.blocks
    return [p for block in blocks for p in (block.weight, block.bias) if p is not None]


def _uncovered(coverage: Coverage | None) -> tuple[tuple[str, str], ...]:
    return () if coverage is None else tuple((n, reason) for n, _, reason in coverage.uncovered)


def _count(parameters: Sequence[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _owners(
    factors: Sequence[FactorShape], settings: KFACSettings, ranks: int
) -> tuple[dict[str, int], float]:
    """The owner of each factor, and what the busiest one does of all inversions."""
    inversions = factor_costs(factors)
    costs = inversions
    if settings.distribution == "gradients":  # the owner of a layer needs both of its inverses
        refresh = settings.refresh
        every = refresh.inverse_every if isinstance(refresh, FixedRefresh) else 1
        costs = block_costs(factors, inverse_every=every)
    owner = factor_owners(factors, place(costs, ranks))
    loads = [0.0] * ranks
    for name, cost in inversions.items():
        loads[owner[name]] += cost
    return owner, max(loads) / sum(loads)


def _busiest_share(
    factors: Sequence[FactorShape], settings: KFACSettings | None, ranks: int
) -> float:
    return 1.0 if settings is None or not factors else _owners(factors, settings, ranks)[1]


def travels(
    trained: Sequence[nn.Parameter], coverage: Coverage | None, recipe: Recipe, ranks: int
) -> list[Travel]:
    """What would travel between so many ranks.

    An all-reduce of n bytes sends 2 (R - 1) / R n over each link of a ring. Shares of unequal size
    are filled up to the largest, s: (R - 1) s; where an all-reduce is less, it is taken.

    Args:
        trained: parameters.
        coverage: by K-FAC; None without it.
        recipe: whose refresh, distribution and wire count.
        ranks: R, >= 1.
    """
    gradient = int(_bytes(trained))
    local = recipe.communication
    found = [
        Travel(
            what="gradients" if local is None else "weights",
            every=1 if local is None else local.every,
            payload_bytes=gradient,
            link_bytes=2 * (ranks - 1) * gradient // ranks,
        )
    ]
    settings, factors = recipe.preconditioner, _factors(coverage)
    if settings is None or coverage is None:
        return found
    owner, _ = _owners(factors, settings, ranks)
    packed = {f.name: _packed(f) for f in factors}
    refresh = settings.refresh
    every = refresh.statistics_every if isinstance(refresh, FixedRefresh) else 0
    wire = _WIRE_BYTES[settings.wire]
    sizes = {name: wire * count for name, count in packed.items()}
    found.append(_shared("statistics (packed)", every, sizes, owner, ranks))
    if settings.distribution == "inverses":
        every = refresh.inverse_every if isinstance(refresh, FixedRefresh) else 0
        sizes = {name: 4 * count for name, count in packed.items()}
        found.append(_shared("inverses (packed)", every, sizes, owner, ranks))
    else:
        sizes = {
            block.factors[0].name: int(
                _bytes([p for p in (block.weight, block.bias) if p is not None])
            )
            for block in coverage.blocks
        }
        found.append(_shared("preconditioned gradients", 1, sizes, owner, ranks))
    return found


def _packed(factor: FactorShape) -> int:
    side = factor.side
    return factor.groups * (side if factor.diagonal else side * (side + 1) // 2)


def _shared(
    what: str, every: int, sizes: dict[str, int], owner: dict[str, int], ranks: int
) -> Travel:
    shares = [0] * ranks
    for name, size in sizes.items():
        shares[owner[name]] += size
    payload = sum(shares)
    link = min((ranks - 1) * max(shares), 2 * (ranks - 1) * payload // ranks)
    return Travel(what=what, every=every, payload_bytes=payload, link_bytes=link)
