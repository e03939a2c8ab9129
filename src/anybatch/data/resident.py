"""Resident source: the whole split as tensors on the device.

Batches are gathered some way ahead: several index tensors are joined, their examples are gathered
and augmented in one go, and the batches are views of the result. So a small batch costs a few
microseconds. A batch that is kept keeps its neighbours' memory (at most about 8 MiB) too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from anybatch.data.arrays import as_tensors, check_finite, check_lengths
from anybatch.data.augmentation import Normalization, augment_images
from anybatch.data.items import augments, map_tensors, refuse_augmentation, tensors_of
from anybatch.data.source import Batch
from anybatch.errors import InputError
from anybatch.recipe import Augmentation

__all__ = ["Normalization", "ResidentSource", "groups_of"]

_EXAMPLES_AHEAD: Final = 2048
_BYTES_AHEAD: Final = 8 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ResidentSource:
    """A split held as tensors; made by `from_arrays`.

    Attributes:
        inputs: a tensor, or a tuple or dict of tensors; first dimension = examples.
        targets: likewise.
        normalization: set if `inputs` are uint8 images of shape (n, H, W, C), which are then
            delivered as normalized float32 of shape (n, C, H, W); None delivers `inputs` as is.
        split: what the split is called in errors.
    """

    inputs: Any
    targets: Any
    normalization: Normalization | None = None
    split: str = "train"

    @classmethod
    def from_arrays(
        cls,
        inputs: Any,
        targets: Any,
        *,
        normalization: Normalization | None = None,
        split: str = "train",
    ) -> ResidentSource:
        """Check arrays and hold them.

        Torch tensors are taken as they are. Numpy arrays share their memory, but float64 becomes
        torch's default dtype, and whole-number targets become int64, as losses want them.

        Args:
            inputs: a torch tensor or numpy array, or a tuple or dict of them.
            targets: likewise.
            normalization: if `inputs` are uint8 images of shape (n, H, W, C).
            split: what the split is called in errors.

        Raises:
            InputError: if lengths differ, nothing is there, floats are not finite, or
                `normalization` does not fit the inputs.

        Example:
            >>> source = ResidentSource.from_arrays(torch.eye(3), torch.tensor([0, 1, 2]))
            >>> next(source.batches([torch.tensor([2, 0])])).targets
            tensor([2, 0])
        """
        inputs = as_tensors(inputs, f"{split} inputs", is_target=False)
        targets = as_tensors(targets, f"{split} targets", is_target=True)
        check_lengths(inputs, targets, split)
        check_finite(inputs, f"{split} inputs")
        check_finite(targets, f"{split} targets")
        if normalization is not None:
            _check_images(inputs, normalization, split)
        return cls(inputs=inputs, targets=targets, normalization=normalization, split=split)

    @property
    def num_examples(self) -> int:
        """How many examples the split has."""
        return len(tensors_of(self.inputs)[0])

    @property
    def random_access(self) -> bool:
        """Always True: any example can be had at any time."""
        return True

    @property
    def device(self) -> torch.device:
        """Where the tensors lie and the batches are delivered."""
        return tensors_of(self.inputs)[0].device

    def batches(
        self,
        index_batches: Iterable[Tensor],
        *,
        epoch: int = 0,
        seed: int = 0,
        augmentation: Augmentation | None = None,
    ) -> Iterator[Batch]:
        """Yield one `Batch` per index tensor; see `Source.batches`.

        Args:
            index_batches: int64 CPU tensors of shape (n,); read up to 2,048 examples or 8 MiB
                ahead.
            epoch: number of the pass over the data.
            seed: the run's seed.
            augmentation: training-time augmentation; None for evaluation.

        Raises:
            InputError: if augmentation is asked for on anything but uint8 images with a
                normalization, or an index lies outside of the split.
        """
        if self.normalization is None:
            refuse_augmentation(
                augmentation, thing=f"{self.split} data", hint="only uint8 images can be augmented"
            )
        if augmentation is not None and augmentation.random_resized_crop:
            raise InputError(
                "augmentation.random_resized_crop",
                "must be false for images in memory",
                hint="use crop_padding, or give an image_size to stream the image folder",
            )
        active = augmentation if augments(augmentation) else None
        return self._gathered_ahead(index_batches, epoch, seed, active)

    def subset(self, indices: Tensor) -> ResidentSource:
        """A source of only these examples, renumbered from 0 in the order given.

        A run of consecutive indices shares the memory; anything else is copied.

        Args:
            indices: int64, shape (n,), n >= 1.

        Raises:
            InputError: if there are none or one lies outside of the split.
        """
        if not len(indices):
            raise InputError(f"{self.split} subset", "must hold at least one example")
        self._check_indices(indices)
        first, count = int(indices[0]), len(indices)
        if torch.equal(indices.cpu(), torch.arange(first, first + count)):
            return self._with_tensors(lambda tensor: tensor.narrow(0, first, count))
        on_device = indices.to(self.device)
        return self._with_tensors(lambda tensor: tensor.index_select(0, on_device))

    def to(self, device: torch.device, *, num_workers: int = 0) -> ResidentSource:
        """The same examples on `device`.

        Args:
            device: where to.
            num_workers: not needed, as nothing is loaded.
        """
        return self._with_tensors(lambda tensor: tensor.to(device))

    def _with_tensors(self, function: Any) -> ResidentSource:
        return replace(
            self,
            inputs=map_tensors(function, self.inputs),
            targets=map_tensors(function, self.targets),
        )

    def _gathered_ahead(
        self,
        index_batches: Iterable[Tensor],
        epoch: int,
        seed: int,
        augmentation: Augmentation | None,
    ) -> Iterator[Batch]:
        device = self.device
        for group in groups_of(index_batches, self.examples_ahead):
            joined = group[0] if len(group) == 1 else torch.cat(group)
            self._check_indices(joined)
            on_device = _moved(joined, device)
            inputs = _gathered(self.inputs, on_device)
            if self.normalization is not None:
                inputs = augment_images(
                    inputs,
                    on_device,
                    normalization=self.normalization,
                    augmentation=augmentation,
                    seed=seed,
                    epoch=epoch,
                )
            targets = _gathered(self.targets, on_device)
            lengths = [len(indices) for indices in group]
            yield from map(Batch, _parts(inputs, lengths), _parts(targets, lengths), group)

    @property
    def examples_ahead(self) -> int:
        """Examples that are gathered in one go: 2,048, or what 8 MiB hold."""
        inputs, targets = tensors_of(self.inputs), tensors_of(self.targets)
        bytes_per_example = sum(map(_bytes_per_row, targets))
        if self.normalization is None:
            bytes_per_example += sum(map(_bytes_per_row, inputs))
        else:
            bytes_per_example += 4 * inputs[0][0].numel()  # they become float32
        return max(1, min(_EXAMPLES_AHEAD, _BYTES_AHEAD // max(1, bytes_per_example)))

    def _check_indices(self, indices: Tensor) -> None:
        lowest, highest = (int(value) for value in indices.aminmax())
        if lowest < 0 or highest >= self.num_examples:
            raise InputError(
                f"example index of {self.split}",
                f"must lie in [0, {self.num_examples})",
                lowest if lowest < 0 else highest,
            )


def _moved(indices: Tensor, device: torch.device) -> Tensor:
    """Indices on the device; from pinned memory, so that the host does not wait for a GPU."""
    if device.type == "cuda":
        return indices.pin_memory().to(device, non_blocking=True)
    return indices.to(device)


def groups_of(index_batches: Iterable[Tensor], examples_ahead: int) -> Iterator[list[Tensor]]:
    """Index batches joined until a group holds at least so many examples.

    Args:
        index_batches: consumed as groups are asked for.
        examples_ahead: >= 1.
    """
    group: list[Tensor] = []
    examples = 0
    for indices in index_batches:
        group.append(indices)
        examples += len(indices)
        if examples >= examples_ahead:
            yield group
            group, examples = [], 0
    if group:
        yield group


def _gathered(nest: Any, indices: Tensor) -> Any:
    return map_tensors(lambda tensor: tensor.index_select(0, indices), nest)


def _parts(nest: Any, lengths: list[int]) -> Iterable[Any]:
    """Views of consecutive examples, one nest for each length."""
    if isinstance(nest, Tensor):
        return torch.split(nest, lengths)
    if isinstance(nest, Mapping):
        columns = zip(*(_parts(value, lengths) for value in nest.values()), strict=True)
        return (dict(zip(nest, column, strict=True)) for column in columns)
    return zip(*(_parts(value, lengths) for value in nest), strict=True)


def _bytes_per_row(tensor: Tensor) -> int:
    return tensor.element_size() * tensor[0].numel()


def _check_images(inputs: Any, normalization: Normalization, split: str) -> None:
    if not isinstance(inputs, Tensor) or inputs.dtype != torch.uint8 or inputs.ndim != 4:
        shown = (
            f"{inputs.dtype} {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs)
        )
        raise InputError(
            f"{split} inputs", "must be uint8 images of shape (n, H, W, C) to be normalized", shown
        )
    if inputs.shape[3] != len(normalization.mean):
        raise InputError(
            f"{split} inputs",
            f"must have {len(normalization.mean)} channels like the normalization",
            f"shape {tuple(inputs.shape)}",
        )
