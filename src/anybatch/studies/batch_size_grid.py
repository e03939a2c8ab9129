"""What a study of batch sizes tries: sizes, learning rates, lengths, and the recipe of a trial."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

from anybatch.course import recipe_clock
from anybatch.errors import InputError
from anybatch.recipe import Recipe, SGDSettings, SGDWSettings
from anybatch.scaling import with_lr
from anybatch.schedules import Constant, Interval, examples

__all__ = [
    "LOOK_GROWTH",
    "BatchSizeSettings",
    "Looks",
    "cap_updates",
    "default_batch_sizes",
    "has_constant_schedules",
    "lr_centre",
    "lr_grid",
    "round_lengths",
    "trial_recipe",
]

LOOK_GROWTH = 0.05
"""Two evaluations lie at most this share of the examples seen apart."""

_LOOKS_PER_EPOCH = 100
_LOOKS_AT_EQUAL_DISTANCE = round(1 / LOOK_GROWTH)
_SMALLEST, _BATCH_FACTOR = 8, 4
_LARGEST_LR_FACTOR = 16.0
_GRID = (-2, -1, 0, 1, 2)  # powers of two
_SHORTEST_ROUND = 4  # cap / 2^4
_CHECKPOINTS_PER_CAP = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchSizeSettings:
    """What `study_batch_size` tries.

    Attributes:
        batch_sizes: all different, >= 1; empty: 8, 32, 128, ... up to the set, and the recipe's.
        target: what a trial is to reach, as in "accuracy>=0.98"; None: the recipe's.
        lr: the same for every batch size, > 0; None: tuned for each by halving.
        seeds: of the runs in the table, >= 1. Where lr is tuned, the seed it is tuned with is not
            among them, since the best of several is a lucky one.

    Raises:
        InputError: a value that breaks its rule.
    """

    batch_sizes: tuple[int, ...] = ()
    target: str | None = None
    lr: float | None = None
    seeds: int = 3

    def __post_init__(self) -> None:
        for size in self.batch_sizes:
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise InputError("batch_sizes", "must be whole numbers >= 1", size)
        if len(set(self.batch_sizes)) != len(self.batch_sizes):
            raise InputError("batch_sizes", "must all be different", list(self.batch_sizes))
        if self.lr is not None and not (math.isfinite(self.lr) and self.lr > 0):
            raise InputError("lr", "must be > 0", self.lr)
        if self.seeds < 1:
            raise InputError("seeds", "must be >= 1", self.seeds)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Looks(Interval):
    """Evaluations at a first distance, and then each at 5 % more examples than the one before.

    A target that takes twenty times the first distance or more is so found to 5 %, at every batch
    size alike and at a cost that grows with the logarithm of the length; where an update is larger
    than the distance, each update is looked at.

    Example:
        >>> looks = Looks(length=100, counts="examples")
        >>> [looks.times(updates=1, examples=n) for n in (99, 100, 2000, 2099, 2100, 4000)]
        [0, 1, 20, 20, 21, 34]
    """

    def times(self, *, updates: int, examples: int) -> int:
        """How many evaluations are due after so many examples."""
        linear = _LOOKS_AT_EQUAL_DISTANCE * self.length
        if examples < linear:
            return examples // self.length
        growth = math.log(examples / linear) / math.log1p(LOOK_GROWTH)
        return _LOOKS_AT_EQUAL_DISTANCE + math.floor(growth + 1e-9)


def default_batch_sizes(recipe: Recipe, num_examples: int | None) -> tuple[int, ...]:
    """8, 32, 128, ... up to the set, and the recipe's own size.

    Args:
        recipe: whose batch size is among them.
        num_examples: of the training split; None, for a stream: up to 16 times the recipe's.

    Example:
        >>> default_batch_sizes(Recipe(optimizer=SGDSettings(lr=0.1), batch_size=64), 1000)
        (8, 32, 64, 128, 512)
    """
    own = _own_batch_size(recipe, num_examples)
    limit = num_examples or 16 * own
    sizes = {own}
    size = _SMALLEST
    while size <= limit:
        sizes.add(size)
        size *= _BATCH_FACTOR
    return tuple(sorted(sizes))


def _own_batch_size(recipe: Recipe, num_examples: int | None) -> int:
    if recipe.batch_size != "full":
        return recipe.batch_size
    return recipe_clock(recipe, num_examples).batch_size or 1


def lr_centre(recipe: Recipe, batch_size: int, num_examples: int | None) -> float:
    """The lr around which a batch size is tuned.

    With B_0 and lr_0 of the recipe: lr_0 B / B_0 for SGD and SGDW, lr_0 sqrt(B / B_0) for all
    others, either at most 16 lr_0. Under `loss.reduction = "sum"` SGD's lr acts per example, so
    that the same rule is lr_0 min(1, 16 B_0 / B).

    Example:
        >>> recipe = Recipe(optimizer=SGDSettings(lr=0.1), batch_size=32)
        >>> [lr_centre(recipe, size, 10_000) for size in (8, 128, 8192)]
        [0.025, 0.4, 1.6]
    """
    ratio = batch_size / _own_batch_size(recipe, num_examples)
    is_sgd = isinstance(recipe.optimizer, (SGDSettings, SGDWSettings))
    factor = min(ratio if is_sgd else math.sqrt(ratio), _LARGEST_LR_FACTOR)
    if is_sgd and recipe.loss.reduction == "sum":
        factor /= ratio
    return _rounded(recipe.optimizer.lr * factor)


def lr_grid(centre: float) -> tuple[float, ...]:
    """Five learning rates, a factor of 2 apart.

    Example:
        >>> lr_grid(0.4)
        (0.1, 0.2, 0.4, 0.8, 1.6)
    """
    return tuple(_rounded(centre * 2.0**power) for power in _GRID)


def _rounded(lr: float) -> float:
    return float(f"{lr:.6g}")  # as in the names of folders


def cap_updates(recipe: Recipe, num_examples: int | None) -> int:
    """Updates in the whole duration of a recipe, which is the cap of its trials.

    Example:
        >>> from anybatch.schedules import epochs
        >>> recipe = Recipe(optimizer=SGDSettings(lr=0.1), batch_size=32, duration=epochs(2.5))
        >>> cap_updates(recipe, 100)  # 4 + 4 + 2, the last ones of an epoch smaller
        10
    """
    total = recipe_clock(recipe, num_examples).total_examples or 0
    size = _own_batch_size(recipe, num_examples)
    whole, rest = divmod(total, num_examples) if num_examples else (0, total)
    per_epoch = math.ceil(num_examples / size) if num_examples else 0
    return whole * per_epoch + math.ceil(rest / size)


def round_lengths(recipe: Recipe, num_examples: int | None) -> tuple[int, ...]:
    """Updates after which halving compares: the cap / 16, / 8, / 4, / 2, and the cap.

    The cap alone where a setting is scheduled: a run cannot be cut short and then go on as if its
    schedule had been meant for the longer one.

    Example:
        >>> from anybatch.schedules import updates
        >>> round_lengths(Recipe(optimizer=SGDSettings(lr=0.1), duration=updates(100)), None)
        (7, 13, 25, 50, 100)
    """
    cap = cap_updates(recipe, num_examples)
    if not has_constant_schedules(recipe):
        return (cap,)
    lengths = {math.ceil(cap / 2**power) for power in range(_SHORTEST_ROUND + 1)}
    return tuple(sorted(lengths))


def has_constant_schedules(recipe: Recipe) -> bool:
    """Whether nothing of a run depends on how long it is to be."""
    plans = recipe.schedules
    kinds: Sequence[object] = (plans.lr, plans.momentum, plans.weight_decay, plans.batch_size)
    return all(kind == Constant() for kind in kinds)


def trial_recipe(
    recipe: Recipe, batch_size: int, lr: float, *, num_examples: int | None, smallest: int
) -> Recipe:
    """The recipe of a trial.

    Args:
        recipe: of the study; its duration is the cap, its target what is to be reached.
        batch_size: of the trial.
        lr: of the trial.
        num_examples: of the training split; None for a stream of unknown length.
        smallest: batch size of the study, which sets the first distance between evaluations of a
            stream; of a set it is a hundredth of an epoch.

    Raises:
        InputError: a batch larger than the set, or a duration that cannot be told.
    """
    sized = replace(recipe, batch_size=batch_size, optimizer=with_lr(recipe.optimizer, lr))
    clock = recipe_clock(sized, num_examples)
    first = num_examples // _LOOKS_PER_EPOCH if num_examples else smallest
    cap = clock.total_examples or 1
    every = max(cap // _CHECKPOINTS_PER_CAP, clock.examples(recipe.records.checkpoint_every))
    saving = replace(recipe.records, checkpoint_every=examples(every))
    stopping = replace(recipe.stopping, evaluate_every=examples(max(1, first)), patience=None)
    return replace(sized, stopping=stopping, records=saving)
