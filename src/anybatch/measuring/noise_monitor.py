"""A monitor of the gradient noise scale for any training loop, on gradients that are taken anyway.

It sees the parts that an update's gradient is added up from (micro-batches, ranks), never the
gradients of two updates: see `noise_arithmetic` for why.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from anybatch.curvature.gradient_parts import GradientParts, squared_norms
from anybatch.curvature.noise_arithmetic import (
    noise_estimates,
    pair_of_parts,
    running_estimates,
)
from anybatch.data.items import map_tensors, tensors_of
from anybatch.errors import InputError
from anybatch.measurement import Estimate, Measurement
from anybatch.measuring.noise_scale import noise_findings
from anybatch.recipe_checks import require
from anybatch.world import World

__all__ = ["NoiseScaleMonitor"]

_SPLIT = (
    "divide it: for (inputs, targets), share in monitor.split(batch): (share * loss).backward()"
)


class _Seen(NamedTuple):
    """What one update has left, on the device: nothing has waited for it."""

    update: int
    sizes: tuple[int, ...]
    sums: Tensor  # sum_j norm_j^2 / b_j; squared norm of the added gradient; before the first part
    scale: float


@final
class NoiseScaleMonitor:
    """Measures the gradient noise scale B_simple within the updates of a loop of your own.

    Each update's gradient must be added up from two parts or more: micro-batches, one backward
    pass each, or the ranks of DistributedDataParallel. Parts are announced, and so is the end of
    the gradient, before clipping, unscaling and the optimizer:

        monitor = NoiseScaleMonitor(model)
        for batch in loader:
            optimizer.zero_grad()
            for inputs, targets in halves(batch):
                with monitor.part(len(targets)):
                    (0.5 * loss(model(inputs), targets)).backward()
            monitor.update()
            optimizer.step()

    A loop without micro-batches lets the monitor divide every k-th batch: `split`. The loss of a
    part must weigh b_j / n, so that the added gradient is that of the update's mean loss; any other
    common factor changes |G|^2 and the trace alike, and leaves their ratio.

    In the updates that are not measured there are no hooks. Weights, gradients and generators are
    bitwise those without the monitor, except where `split` divides what was one sum.

    Args:
        model: whose trainable parameters count; may be wrapped in DistributedDataParallel, whose
            gradient is the mean over ranks.
        every: measure each k-th update, from the first one on, >= 1.
        capacity: pairs that are kept, the latest ones, >= 4: a long memory lags behind a
            noise scale that rises.
        scaler: torch.amp.GradScaler that multiplies the loss; None: nothing does.

    Attributes:
        updates: announced so far.

    Raises:
        InputError: the model has no trainable parameter, or shards them over ranks.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Linear(4, 1)
        >>> monitor = NoiseScaleMonitor(model, every=1)
        >>> for _ in range(8):
        ...     model.zero_grad()
        ...     for inputs, share in monitor.split(torch.randn(16, 4), num_parts=4):
        ...         (share * (model(inputs) - inputs[:, :1]).square().mean()).backward()
        ...     monitor.update()
        >>> 1.0 < monitor.estimate().value < 20.0
        True
    """

    def __init__(
        self, model: nn.Module, *, every: int = 10, capacity: int = 100, scaler: Any = None
    ) -> None:
        require("every", every, "must be >= 1", every >= 1)
        require("capacity", capacity, "must be >= 4", capacity >= 4)
        self._model, self._every, self._scaler = model, every, scaler
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        if not self._parameters:
            raise InputError("model", "must have a parameter that requires a gradient")
        if any(hasattr(p, "placements") for p in self._parameters):
            hint = "its local gradient exists only within the backward pass"
            raise InputError(
                "model", "must hold whole parameters, not shards", "DTensor", hint=hint
            )
        self._world = World.of_group(self._parameters[0].device)
        if self._world.size > 1 and any(isinstance(m, nn.SyncBatchNorm) for m in model.modules()):
            rule = "must not hold SyncBatchNorm, which couples the parts of different ranks"
            raise InputError("model", rule)
        if self._world.size > 1 and not hasattr(model, "no_sync"):
            rule = f"must be wrapped in DistributedDataParallel in a group of {self._world.size}"
            raise InputError("model", rule, type(model).__name__)
        self._parts = GradientParts(self._parameters)
        self._sizes: list[int] = []
        self._before: Tensor | None = None
        self._versions: list[int] = []
        self._pairs: deque[_Seen] = deque(maxlen=capacity)
        self._started = time.perf_counter()
        self._unit = self._left_out = 0
        self.updates = self._examples = 0

    @property
    def is_measuring(self) -> bool:
        """Whether the update under way is one that is measured."""
        return self.updates % self._every == 0

    @contextmanager
    def part(self, num_examples: int) -> Iterator[None]:
        """Around the forward and backward pass of one part of an update.

        Args:
            num_examples: of the part, on this rank, >= 1.

        Raises:
            InputError: not exactly one backward pass was seen.
        """
        require("num_examples", num_examples, "must be >= 1", num_examples >= 1)
        if not self.is_measuring:
            yield
            return
        if not self._sizes:
            self._parts.forget()
            left = [p for p in self._parameters if p.grad is not None]
            self._before = squared_norms(left).sum() if left else None
        try:
            with self._parts:
                yield
        except BaseException:  # an update that breaks off leaves nothing behind
            self._sizes = []
            raise
        self._sizes.append(num_examples)
        if self._parts.num_parts != len(self._sizes):
            seen = self._parts.num_parts - len(self._sizes) + 1
            self._sizes = []
            rule = "must hold one backward pass that reaches the model's parameters"
            raise InputError("monitor.part", rule, seen)
        self._versions = self._gradient_versions()

    def split(self, batch: Any, num_parts: int = 2) -> Iterator[tuple[Any, float]]:
        """A batch in parts where the update is measured, whole where it is not.

        Args:
            batch: a tensor, or a tuple, list or dict of them, first dimension = examples.
            num_parts: of a measured update, >= 2; 4 are nearly as good as single examples.

        Returns:
            Pairs (part, share): multiply the part's mean loss by the share.

        Raises:
            InputError: fewer examples than parts; BatchNorm in training mode, which would see
                other batches than without the monitor.
        """
        sizes = {len(tensor) for tensor in tensors_of(batch)}
        if len(sizes) != 1:
            raise InputError("batch", "must hold tensors of the same length", sorted(sizes))
        (count,) = sizes
        if not self.is_measuring:
            yield batch, 1.0
            return
        require("num_parts", num_parts, "must be >= 2", num_parts >= 2)
        require("examples of a batch", count, f"must be >= {num_parts} parts", count >= num_parts)
        if self._has_batch_norm():
            rule = "must be undivided under BatchNorm in training mode"
            hint = "measure_noise_scale measures it beside the training, in its own unit"
            raise InputError("a batch for monitor.split", rule, hint=hint)
        ends = [count * number // num_parts for number in range(num_parts + 1)]
        for number, (start, stop) in enumerate(itertools.pairwise(ends)):
            last = number == num_parts - 1
            apart = contextlib.nullcontext() if last else self._without_communication()
            with apart, self.part(stop - start):
                yield _cut(batch, slice(start, stop)), (stop - start) / count

    def update(self) -> None:
        """Once an update, when its gradient is complete: before clipping, unscaling and stepping.

        Raises:
            InputError: the update had one part only, or its gradient was changed after it.
        """
        measuring, sizes, self._sizes = self.is_measuring, tuple(self._sizes), []
        self.updates += 1
        if not measuring:
            return
        if len(sizes) * self._world.size < 2:
            seen = "one backward pass" if sizes else "no part"
            raise InputError("an update", "must have two parts at least", seen, hint=_SPLIT)
        if self._has_batch_norm():
            if len(set(sizes)) > 1:
                rule = "must be of one size under BatchNorm in training mode, as they are its unit"
                raise InputError("parts of an update", rule, sizes)
            self._unit = self._unit or sizes[0]
            if sizes[0] != self._unit:  # the end of an epoch, say: noise of another unit
                self._left_out += 1
                return
        if self._versions != self._gradient_versions():
            rule = "must come before the gradient is clipped, unscaled or set to zero"
            raise InputError("monitor.update", rule)
        by_part = self._parts.squared_norms().sum(dim=1)
        over = by_part.new_tensor([1.0 / size for size in sizes])
        before = self._before if self._before is not None else by_part.new_zeros(())
        added = squared_norms(self._parameters).sum()
        sums = torch.stack([over @ by_part, added, before]).double()
        scale = float(self._scaler.get_scale()) if self._scaler is not None else 1.0
        self._pairs.append(_Seen(self.updates, sizes, sums, scale))
        self._examples += sum(sizes)

    def estimate(self) -> Estimate:
        """B_simple of the pairs that are kept, with Fieller's 95 % interval.

        Raises:
            InputError: gradients were not zero before an update's first part, or ranks took
                different numbers of examples.

        Collectives:
            One all-gather of a few numbers for each pair; every rank must call.
        """
        return self.measurement().estimates["b_simple"]

    def measurement(self) -> Measurement:
        """The same as a measurement of kind "noise-scale": one row an update that is kept.

        Raises:
            InputError: as `estimate`.

        Collectives:
            One all-gather of a few numbers for each pair; every rank must call.
        """
        rows = self._rows()
        columns = ("probe", "examples", "parts", "squared_gradient_norm", "covariance_trace")
        samples = {name: tuple(row[n] for row in rows) for n, name in enumerate(columns)}
        settings = self._described()
        estimates = noise_estimates(samples)
        return Measurement(
            kind="noise-scale",
            settings=settings,
            samples=samples,
            estimates=estimates,
            seconds=time.perf_counter() - self._started,
            examples=self._examples * self._world.size,
            findings=tuple(noise_findings(samples, estimates, settings)),
            fitted=running_estimates(samples),
        )

    def _rows(self) -> list[tuple[float, float, float, float, float]]:
        """Update, examples, parts, Q and S of each pair that is kept."""
        own = [(seen.update, seen.sizes, *seen.sums.tolist(), seen.scale) for seen in self._pairs]
        rows = []
        for ranks in zip(*self._world.all_values(own), strict=True):
            counts = [sum(sizes) for _, sizes, *_ in ranks]
            if len(set(counts)) > 1:
                rule = "must take as many examples as each other in an update"
                raise InputError("ranks", rule, counts)
            if any(before > 0.0 for *_, before, _ in ranks):
                rule = "must be zero before an update's first part"
                raise InputError("gradients", rule, hint="call optimizer.zero_grad() before it")
            # .grad is the mean over ranks, each of which weighs its own parts b_j / n_rank.
            squares = sum(over * sum(sizes) for _, sizes, over, *_ in ranks) / len(ranks)
            update, _, _, added, _, scale = ranks[0]
            parts = sum(len(sizes) for _, sizes, *_ in ranks)
            pair = pair_of_parts(
                squares / scale**2, added / scale**2, num_examples=sum(counts), num_parts=parts
            )
            numbers = float(pair.squared_norm), float(pair.trace)
            rows.append((float(update), float(sum(counts)), float(parts), *numbers))
        return rows

    def _described(self) -> dict[str, Any]:
        """What the pairs were taken with: plain values."""
        sizes = self._pairs[-1].sizes if self._pairs else ()
        return {
            "task": "",
            "batch_size": sum(sizes) * self._world.size,
            "after_updates": self.updates,
            "every": self._every,
            "unit": f"ghost batches of {self._unit} examples" if self._unit else "examples",
            "unit_examples": self._unit or 1,
            "updates_left_out": self._left_out,
        }

    def _has_batch_norm(self) -> bool:
        return any(isinstance(m, _BatchNorm) and m.training for m in self._model.modules())

    def _gradient_versions(self) -> list[int]:
        """How often each gradient has been written to; known without waiting for the device."""
        return [-1 if p.grad is None else p.grad._version for p in self._parameters]

    def _without_communication(self) -> AbstractContextManager[Any]:
        """Backward passes before the last one need not wait for the other ranks."""
        if self._world.size == 1:
            return contextlib.nullcontext()
        context: AbstractContextManager[Any] = self._model.no_sync()  # type: ignore[operator]
        return context


def _cut(batch: Any, examples: slice) -> Any:
    return map_tensors(lambda tensor: tensor[examples], batch)
