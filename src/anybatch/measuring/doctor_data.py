"""What the doctor looks up in the data: scale, labels, copies. Bounded by examples and by time."""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from anybatch.data.items import tensors_of
from anybatch.data.source import Batch, Source
from anybatch.measuring import doctor_checks as checks
from anybatch.measuring.doctor_checks import Check
from anybatch.objectives import Kind

__all__ = ["Looked", "copies_of", "data_checks", "look_at", "look_through"]

_AT_ONCE = 500  # examples


@dataclass(slots=True)
class Looked:
    """What was seen of a split so far.

    Attributes:
        inputs: a digest of each example's inputs.
        targets: a digest of each example's targets.
        labels: target values of each batch, flat, on the CPU.
        columns: float inputs of each batch as rows, float64 sums of them: count, sum, sum of
            squares, least and greatest of each element of an example.
        not_finite: examples with an input that is not finite.
    """

    inputs: list[bytes] = field(default_factory=list)
    targets: list[bytes] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    columns: list[Tensor] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    not_finite: int = 0

    def add(self, batch: Batch) -> None:
        """Take a batch in."""
        inputs = [tensor.detach().cpu() for tensor in tensors_of(batch.inputs)]
        targets = [tensor.detach().cpu() for tensor in tensors_of(batch.targets)]
        self.inputs += _digests(inputs)
        self.targets += _digests(targets)
        self.labels += [tensor.flatten() for tensor in targets[:1]]
        for tensor in inputs[:1]:
            if tensor.is_floating_point() and tensor.dim() > 1:
                self._add_columns(tensor)

    def _add_columns(self, tensor: Tensor) -> None:
        rows = tensor.flatten(1).double()
        finite = rows.isfinite().all(1)
        self.not_finite += int((~finite).sum())
        rows, self.shape = rows[finite], tuple(tensor.shape[1:])
        if len(rows):
            count = torch.full_like(rows[0], len(rows))
            low, high = rows.amin(0), rows.amax(0)
            self.columns.append(torch.stack([count, rows.sum(0), rows.square().sum(0), low, high]))


def _digests(tensors: list[Tensor]) -> list[bytes]:
    """16 bytes of each example, of its raw elements and their type."""
    if not tensors:
        return []
    rows = [tensor.contiguous().flatten(1) if tensor.dim() > 1 else tensor[:, None]
            for tensor in tensors]  # fmt: skip
    raw = [row.contiguous().view(torch.uint8).numpy() for row in rows]
    return [
        hashlib.blake2b(b"|".join(part[i].tobytes() for part in raw), digest_size=16).digest()
        for i in range(len(raw[0]))
    ]


def look_at(batches: list[Batch]) -> Looked:
    """What some batches hold."""
    found = Looked()
    for batch in batches:
        found.add(batch)
    return found


def look_through(source: Source, *, limit: int, seconds: float) -> Looked | None:
    """What the first examples of a split hold; None of a stream, which would be moved.

    Args:
        source: of the split.
        limit: examples at most.
        seconds: at most, about; then fewer are looked at.
    """
    count = source.num_examples
    if count is None or not source.random_access:
        return None
    found, started = Looked(), time.perf_counter()
    for batch in source.batches(torch.split(torch.arange(min(count, limit)), _AT_ONCE)):
        found.add(batch)
        if time.perf_counter() - started > seconds:
            break
    return found


def copies_of(train: Looked) -> tuple[int, int]:
    """Training inputs that came before, and those that came before with another target.

    Example:
        >>> copies_of(Looked(inputs=[b"a", b"b", b"a"], targets=[b"0", b"0", b"1"]))
        (1, 1)
    """
    first: dict[bytes, bytes] = {}
    copies = contradictions = 0
    for inputs, target in zip(train.inputs, train.targets, strict=True):
        if inputs in first:
            copies += 1
            contradictions += first[inputs] != target
        first.setdefault(inputs, target)
    return copies, contradictions


def data_checks(
    train: Looked,
    held_out: dict[str, Looked | None],
    *,
    kind: Kind,
    outputs: int,
    num_examples: int | None,
) -> list[Check]:
    """The rows about the data.

    Args:
        train: what was seen of it.
        num_examples: of all of train; None where nobody knows.
        held_out: likewise of validation and test, by name; None of a stream.
        kind: of the task.
        outputs: classes of the model; 0 where it has none.
    """
    count = len(train.inputs)
    is_whole = count == num_examples
    found = [*_scale_checks(train), _label_check(train, kind, outputs, is_whole)]
    copies, contradictions = copies_of(train)
    found.append(checks.duplicates(copies, count))
    found.append(checks.same_input_other_target(contradictions, count))
    known = set(train.inputs)
    for split, looked in held_out.items():
        if looked is None:
            found.append(checks.skipped(f"{split}-in-train", f"{split} is a stream or missing"))
            continue
        shared = sum(inputs in known for inputs in looked.inputs)
        found.append(checks.leak(split, shared, len(looked.inputs), count))
    return found


def _scale_checks(train: Looked) -> list[Check]:
    if train.not_finite:
        found = checks.input_scale(math.nan, math.nan, train.not_finite)
        return [found, checks.skipped("features", "inputs are not finite")]
    if not train.columns:
        reason = "inputs are whole numbers"
        return [checks.skipped("inputs", reason), checks.skipped("features", reason)]
    sums = torch.stack(train.columns)
    count, total, squares = sums[:, :3].sum(0)
    means = total / count
    variances = (squares / count - means.square()).clamp(min=0.0)
    mean = float(total.sum() / count.sum())
    deviation = math.sqrt(max(0.0, float(squares.sum() / count.sum()) - mean**2))
    scale = checks.input_scale(mean, deviation, 0)
    if len(train.shape) != 1:
        return [scale, checks.skipped("features", "pixels and positions may be constant")]
    constant = sums[:, 3].amin(0) == sums[:, 4].amax(0)
    spread = 1.0
    if not bool(constant.all()):
        kept = variances[~constant].clamp(min=1e-300).sqrt()
        spread = float(kept.max() / kept.min())
    return [scale, checks.features(int(constant.sum()), len(constant), spread)]


def _label_check(train: Looked, kind: Kind, outputs: int, is_whole: bool) -> Check:
    if not train.labels:
        return checks.skipped("labels", "targets are no tensors")
    labels = torch.cat(train.labels)
    if kind == "regression":
        values = labels.double()
        return checks.constant_targets(float(values.mean()), float(values.std(correction=0)))
    if labels.is_floating_point():
        return checks.skipped("labels", "targets are no classes")
    if kind == "language-modelling":
        return checks.skipped("labels", f"{len(set(labels.tolist()))} different tokens occur")
    by_label = Counter(labels.tolist())
    counts = [by_label.get(label, 0) for label in range(max(outputs, max(by_label) + 1))]
    what = f"{len(labels):,} training examples"
    return checks.class_balance(counts, kind=what, outputs=outputs, is_whole=is_whole)
