"""Iterable source: a stream of examples without random access.

Example i is the i-th element of a pass. Nothing is read ahead, so that the state of the stream and
the batches yielded always belong together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from anybatch.data.items import refuse_augmentation, split_item, to_device
from anybatch.data.source import Batch
from anybatch.errors import InputError
from anybatch.recipe import Augmentation

__all__ = ["IterableSource"]

_FRESH_HINT = "pass a list or a function that returns a fresh iterator"


class IterableSource:
    """A split read from a stream.

    What the stream draws at random is its own affair: the law that an example is pure in (seed,
    epoch, index) holds only if the stream gives the same elements in each pass.

    Args:
        stream: an iterable of (inputs, target) tuples or dicts, an `IterableDataset`, or a
            function that returns a fresh iterator for each pass.
        num_examples: how many examples one pass has; None when only the end tells.
        target_key: where a dict item holds the target.
        collate_fn: makes a batch of the same form from a list of items; None stacks them.
        split: what the split is called in errors.

    Example:
        >>> stream = [(torch.tensor([float(i)]), i) for i in range(5)]
        >>> source = IterableSource(stream, num_examples=5)
        >>> [batch.targets.tolist() for batch in source.batches(torch.arange(4).split(2))]
        [[0, 1], [2, 3]]
    """

    def __init__(
        self,
        stream: Iterable[Any] | Callable[[], Iterator[Any]],
        *,
        num_examples: int | None = None,
        target_key: str = "target",
        collate_fn: Callable[[list[Any]], Any] | None = None,
        split: str = "train",
    ) -> None:
        if not callable(stream) and not hasattr(stream, "__iter__"):
            raise InputError(f"{split} stream", "must be iterable", type(stream).__name__)
        if num_examples is not None and num_examples < 1:
            raise InputError(f"{split} num_examples", "must be >= 1", num_examples)
        self._stream = _Stream(stream, num_examples, split)
        self._num_examples = num_examples
        self._target_key = target_key
        self._collate_fn = collate_fn or default_collate
        self._positions: Tensor | None = None
        self._device = torch.device("cpu")
        self.split = split

    @property
    def num_examples(self) -> int | None:
        """How many examples one pass has; None when only the end tells."""
        return self._num_examples

    @property
    def random_access(self) -> bool:
        """Always False: indices must be asked for in ascending order."""
        return False

    @property
    def has_state(self) -> bool:
        """Whether the stream can save its place; otherwise resuming skips to it."""
        return self._stream.has_state

    def state_dict(self) -> dict[str, Any]:
        """The place of the pass that yielded last, to go on after its last batch.

        Raises:
            InputError: if the stream has no `state_dict`.
        """
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next pass begin at a place saved by `state_dict`.

        Ask it only for indices from that place on.

        Args:
            state: what `state_dict` returned.

        Raises:
            InputError: if the stream has no `load_state_dict`.
        """
        self._stream.load_state_dict(state)

    def batches(
        self,
        index_batches: Iterable[Tensor],
        *,
        epoch: int = 0,
        seed: int = 0,
        augmentation: Augmentation | None = None,
    ) -> Iterator[Batch]:
        """Yield one `Batch` per index tensor in a new pass over the stream.

        A stream that ends early yields a last batch that is shorter, or just ends.

        Args:
            index_batches: int64 CPU tensors of shape (n,), ascending throughout; elements in
                between are skipped.
            epoch: number of the pass; not used.
            seed: not used.
            augmentation: must ask for nothing.

        Raises:
            InputError: if augmentation is asked for, indices do not ascend, an element cannot be
                read, the stream is empty, or a one-shot stream is asked for a second pass.
        """
        refuse_augmentation(augmentation, thing="a stream", hint="augment in your stream")
        return self._read(index_batches)

    def subset(self, indices: Tensor) -> IterableSource:
        """A source of only these examples, renumbered from 0; each pass skips the others.

        Args:
            indices: int64, shape (n,), n >= 1, ascending.

        Raises:
            InputError: if they do not ascend.
        """
        if not len(indices) or bool((indices.diff() <= 0).any()) or int(indices[0]) < 0:
            raise InputError(f"{self.split} subset of a stream", "must be ascending indices")
        chosen = self._copy()
        chosen._positions = self._positions_of(indices.cpu())
        chosen._num_examples = len(indices)
        return chosen

    def to(self, device: torch.device, *, num_workers: int = 0) -> IterableSource:
        """The same examples delivered on `device`.

        Args:
            device: where to.
            num_workers: not used, a stream is read in this process.
        """
        moved = self._copy()
        moved._device = device
        return moved

    def _copy(self) -> IterableSource:
        copy = object.__new__(IterableSource)
        copy.__dict__.update(self.__dict__)  # the stream itself is shared
        return copy

    def _positions_of(self, indices: Tensor) -> Tensor:
        return indices if self._positions is None else self._positions[indices]

    def _read(self, index_batches: Iterable[Tensor]) -> Iterator[Batch]:
        stream_pass: _Pass | None = None
        last = -1
        for indices in index_batches:
            positions = self._positions_of(indices).tolist()
            if positions != sorted(set(positions)) or positions[0] <= last:
                raise InputError(
                    f"example indices of the {self.split} stream",
                    "must ascend",
                    f"{positions[:4]} after {last}",
                    hint="a stream cannot be shuffled here: shuffle in the stream",
                )
            last = positions[-1]
            if stream_pass is None:
                stream_pass = self._stream.start_pass(positions[0])
            items = stream_pass.read(positions)
            if items:
                inputs, targets = self._collated(items)
                yield Batch(inputs, targets, indices[: len(items)])
            if len(items) < len(positions):
                return

    def _collated(self, items: list[Any]) -> tuple[Any, Any]:
        thing = f"{self.split} batch"
        try:
            batch = self._collate_fn(items)
        except Exception as error:
            raise InputError(
                thing,
                "must be collated",
                f"{type(error).__name__}: {error}",
                hint="give a collate_fn",
            ) from error
        inputs, targets = split_item(batch, target_key=self._target_key, thing=thing)
        return to_device(inputs, self._device), to_device(targets, self._device)


class _Stream:
    """The stream itself, shared by all sources made from it, and the place of its last pass."""

    def __init__(self, stream: Any, num_examples: int | None, split: str) -> None:
        self.split = split
        self._num_examples = num_examples
        # A dataset may be callable too: what can be iterated is iterated.
        self._is_factory = not hasattr(stream, "__iter__")
        self._given = stream
        self._last_pass: _Pass | None = None
        self._first_position = 0

    @property
    def has_state(self) -> bool:
        return all(hasattr(self._given, name) for name in ("state_dict", "load_state_dict"))

    def state_dict(self) -> dict[str, Any]:
        self._require_state()
        position = self._first_position
        if self._last_pass is not None:
            position = 0 if self._last_pass.has_ended else self._last_pass.position
        return {"position": position, "stream": self._given.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._require_state()
        self._given.load_state_dict(state["stream"])
        self._first_position = state["position"]
        self._last_pass = None

    def start_pass(self, position: int) -> _Pass:
        first = self._first_position
        self._first_position = 0
        if self.has_state:
            first = self._let_full_pass_end(first)
        iterator = self._given() if self._is_factory else iter(self._given)
        last = self._last_pass
        if last is not None and iterator is last.iterator:
            # One iterator for all: the pass can only go on where the last one stopped.
            if position < last.position:
                raise InputError(
                    f"{self.split} stream",
                    "must start anew for each pass, but it can be read only once",
                    hint=_FRESH_HINT,
                )
            return last
        if position < first:
            raise InputError(
                f"example index of the {self.split} stream",
                f"must be >= {first}, where the loaded state begins",
                position,
            )
        self._last_pass = _Pass(iterator, first, self.split)
        return self._last_pass

    def _let_full_pass_end(self, first: int) -> int:
        # All examples were taken, but a stream that keeps its place begins anew only after it has
        # been asked for one more. Returns the number of its next element.
        if self._last_pass is not None and self._last_pass.position == self._num_examples:
            next(self._last_pass.iterator, None)
        if first == self._num_examples:
            next(iter(self._given), None)
            return 0
        return first

    def _require_state(self) -> None:
        if not self.has_state:
            raise InputError(
                f"{self.split} stream",
                "must have state_dict and load_state_dict",
                type(self._given).__name__,
                hint="resume by skipping instead",
            )


class _Pass:
    """One pass over the stream; `position` is the number of the next element."""

    def __init__(self, iterator: Iterator[Any], position: int, split: str) -> None:
        self.iterator = iterator
        self.position = position
        self.has_ended = False
        self._split = split

    def read(self, positions: list[int]) -> list[Any]:
        """The elements with these ascending numbers; fewer if the stream ends."""
        items: list[Any] = []
        for position in positions:
            while self.position <= position:
                try:
                    item = next(self.iterator)
                except StopIteration:
                    if self.position == 0:
                        raise InputError(
                            f"{self._split} stream",
                            "must hold at least one example",
                            hint=_FRESH_HINT,
                        ) from None
                    self.has_ended = True
                    return items
                except Exception as error:
                    raise InputError(
                        f"{self._split} stream",
                        f"must give example {self.position}",
                        f"{type(error).__name__}: {error}",
                    ) from error
                self.position += 1
            items.append(item)
        return items
