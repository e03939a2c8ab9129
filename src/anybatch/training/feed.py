"""Feed: the training examples of one rank, update after update, from any position on."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from anybatch.course import Course, recipe_clock
from anybatch.data.copies import CopiedSource, copied
from anybatch.data.iterable import IterableSource
from anybatch.data.order import epoch_order
from anybatch.data.resident import ResidentSource
from anybatch.data.source import Batch, Source
from anybatch.errors import InputError
from anybatch.recipe import Recipe
from anybatch.schedules import Clock, Constant, Position, updates
from anybatch.training.checks import refuse_not_finite
from anybatch.training.portion import Portion, Reading
from anybatch.training.sampling import rank_share, share_unit
from anybatch.world import World

__all__ = ["Feed"]

_WITHOUT_END = 10**9  # updates


@final
class Feed:
    """The training examples of one rank.

    Everything it hands out is a function of the position and the settings, so it can begin
    anywhere; only a stream without random access is read on from where it stands.

    Args:
        source: training split, on the rank's device.
        recipe: batch size and its schedule, ghost, seed, augmentation.
        clock: of the run.
        world: ranks to share each update with.

    Attributes:
        source: training split, as given; an epoch of fixed copies passes over it several times.
        examples: seen so far, over all ranks.
        epoch: number of the pass in progress.
        offset: examples of that pass seen so far.
        last_size: examples of the last update.
    """

    def __init__(self, source: Source, recipe: Recipe, clock: Clock, world: World) -> None:
        self.source, self._source = source, copied(source, recipe.augmentation)
        self._clock, self._world = clock, world
        self._recipe = recipe
        self._seed, self._augmentation = recipe.seed, recipe.augmentation
        self._unit = share_unit(recipe)
        self._course = Course.of(recipe, clock)
        self.examples = self.epoch = self.offset = 0
        self.last_size = 0
        self._batches: Iterator[Batch] | None = None
        self._kept_order: tuple[tuple[int, int], Tensor] | None = None
        self._portion: Portion | None = None  # handed out, not yet advanced past
        if source.num_examples is None and world.size > 1:
            rule = "must have a known length to be shared by several ranks"
            raise InputError("train", rule, hint="give num_examples")

    @property
    def total_examples(self) -> int:
        """Examples in the whole run."""
        return self._course.total_examples

    @property
    def progress(self) -> float:
        """Examples seen / examples of the whole run."""
        return self.examples / self.total_examples

    def position(self, num_examples: int | None = None) -> Position:
        """Where the next update stands in the run.

        Args:
            num_examples: of its global batch; None: as the recipe has it.
        """
        size = (
            self._course.size(self.examples, self.offset) if num_examples is None else num_examples
        )
        return self._course.position(self.examples, size)

    def set_batch_size(self, batch_size: int) -> None:
        """Another batch size from the next update on, in the place of the recipe's.

        Args:
            batch_size: of the global batch; no part of `state_dict`, as a controller's has it.
        """
        if batch_size == self._course.batch_size:
            return
        self._course = replace(self._course, batch_size=float(batch_size))
        if self._source.random_access:  # what was read ahead has the old size; a stream reads none
            self.close()
            self._portion = None

    def standing_still(self, *, batch_size: int | None = None) -> Feed:
        """A feed from here on without an end, its batch size as it is now: for a measurement.

        This feed stays where it is.

        Args:
            batch_size: another one, of the global batch; None: as it is now.
        """
        progress = min(self.progress, 1.0)
        scheduled = max(1, round(self._course.batch_size * self._course.factor(progress)))
        size = scheduled if batch_size is None else batch_size
        is_whole = batch_size is None and size == self._clock.examples_per_epoch
        recipe = replace(
            self._recipe,
            batch_size="full" if is_whole and self._recipe.batch_size == "full" else size,
            duration=updates(_WITHOUT_END),
            schedules=replace(self._recipe.schedules, batch_size=Constant()),
            batch_control=None,
        )
        clock = recipe_clock(recipe, self.source.num_examples)
        feed = Feed(self.source, recipe, clock, self._world)
        feed.load_state_dict(self.state_dict() | {"examples": 0})
        return feed

    @property
    def epochs(self) -> float:
        """Passes over the data as a decimal; whole passes for a stream of unknown length."""
        size = self._clock.examples_per_epoch
        return self.epoch + (self.offset / size if size else 0.0)

    def next(self) -> Portion:
        """The next update's portion, the same one until `advance` is called.

        Raises:
            InputError: the whole duration was trained, or the stream ended before its stated
                length.
        """
        if self._portion is None:
            self._portion = self._read()
        return self._portion

    def _read(self) -> Portion:
        if self.examples >= self.total_examples:
            rule = "must last for another update"
            raise InputError("duration", rule, f"{self.total_examples} examples, all seen")
        size = self._course.size(self.examples, self.offset)
        if self._reads_parts:
            return self._read_later(size)
        if self._batches is None:
            self._batches = self._open()
        batch = next(self._batches, None)
        if batch is None and self._clock.examples_per_epoch is None and self.offset > 0:
            self._start_epoch()  # the stream's length shows only at its end
            return self._read()
        if batch is not None and self._clock.examples_per_epoch is None:
            size = len(batch.indices)
        start, stop = self._share(size)
        if batch is None or len(batch.indices) < stop - start:
            rule = f"must hold the stated {self._clock.examples_per_epoch} examples"
            raise InputError("train", rule, f"an end within the update after {self.offset}")
        return Portion(batch, size, counted=stop > start)

    @property
    def _reads_parts(self) -> bool:
        """Whether an update is read micro-batch by micro-batch: a whole set would fill the memory.

        Of a source without random access, and by loader processes, updates are read as a whole.
        """
        divided = self._recipe.micro_batch_size is not None
        resident = isinstance(self._source, (ResidentSource, CopiedSource))
        whole_set = self._recipe.batch_size == "full"
        return self._source.random_access and (whole_set or (divided and resident))

    def _read_later(self, size: int) -> Portion:
        start, stop = self._share(size)
        order = self._order()
        first = min(self.offset + start, len(order) - 1)
        indices = order[first : first + max(stop - start, 1)]  # a placeholder in an empty share
        reading = Reading(self._source, indices, self.epoch, self._seed, self._augmentation)
        return Portion(reading, size, counted=stop > start)

    def advance(self, num_examples: int) -> None:
        """Move past an update that was taken.

        Args:
            num_examples: of its global batch, which may also have been made by hand.
        """
        if self._portion is None or self._portion.num_examples != num_examples:
            self._batches = None  # another batch than the one read: read on from the new position
        self._portion = None
        self.examples += num_examples
        self.last_size = num_examples
        self.offset += num_examples
        length = self._clock.examples_per_epoch
        while length is not None and self.offset >= length:
            self._start_epoch(self.offset - length)

    def _start_epoch(self, offset: int = 0) -> None:
        self.epoch, self.offset, self._batches = self.epoch + 1, offset, None

    def _share(self, num_examples: int) -> tuple[int, int]:
        world = self._world
        return rank_share(num_examples, rank=world.rank, world_size=world.size, ghost=self._unit)

    def _open(self) -> Iterator[Batch]:
        """This rank's batches from the present position to the end of the epoch."""
        return self._source.batches(
            self._index_batches(),
            epoch=self.epoch,
            seed=self._seed,
            augmentation=self._augmentation,
        )

    def _index_batches(self) -> Iterator[Tensor]:
        examples, offset, length = self.examples, self.offset, self._clock.examples_per_epoch
        order = None if length is None else self._order()
        while examples < self.total_examples and (length is None or offset < length):
            size = self._course.size(examples, offset)
            start, stop = self._share(size)
            stop = max(stop, start + 1)  # a placeholder where the share is empty
            if order is None:
                yield torch.arange(offset + start, offset + stop)
            else:
                first = min(offset + start, len(order) - 1)
                yield order[first : first + stop - start]
            examples, offset = examples + size, offset + size

    def _order(self) -> Tensor:
        """Of the epoch's examples; kept, as a divided update asks for it often."""
        key = (self._seed, self.epoch)
        if self._kept_order is None or self._kept_order[0] != key:
            self._kept_order = key, self._order_of(self.epoch)
        return self._kept_order[1]

    def _order_of(self, epoch: int) -> Tensor:
        return epoch_order(self._source, seed=self._seed, epoch=epoch, order=self._recipe.order)

    def close(self) -> None:
        """Let go of the batches read ahead, and with them of loader processes."""
        if isinstance(self._batches, Generator):
            self._batches.close()
        self._batches = None

    def refuse_bad_data(self, epoch: int, offset: int, num_examples: int) -> None:
        """Look whether a past update's loss was not finite because its data were not.

        Args:
            epoch: of the update.
            offset: examples of the epoch before it.
            num_examples: of its global batch.

        Raises:
            InputError: they were; the example is named. A stream cannot be looked at again.
        """
        if not self._source.random_access:
            return
        order = self._order_of(epoch)
        indices = [order[offset : offset + num_examples]]
        batches = self._source.batches(
            indices, epoch=epoch, seed=self._seed, augmentation=self._augmentation
        )
        refuse_not_finite(batches, self._source, "train")

    def state_dict(self) -> dict[str, Any]:
        """The position, and the stream's own state where it has one."""
        state: dict[str, Any] = {
            "examples": self.examples, "epoch": self.epoch, "offset": self.offset,
            "last_size": self.last_size,
        }  # fmt: skip
        if isinstance(self._source, IterableSource) and self._source.has_state:
            state["stream"] = self._source.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position."""
        self.examples, self.epoch = state["examples"], state["epoch"]
        self.offset, self._batches, self._portion = state["offset"], None, None
        self.last_size = state["last_size"]
        if "stream" in state and isinstance(self._source, IterableSource):
            self._source.load_state_dict(state["stream"])
