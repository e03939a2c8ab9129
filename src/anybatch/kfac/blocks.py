"""Fisher blocks: which parameters of a model K-FAC covers, and by factors of which sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from anybatch.errors import InputError
from anybatch.kfac.owners import (
    BlockKind,
    NormalizingLayer,
    Owner,
    find_owners,
    num_channels,
    unwrapped,
)
from anybatch.recipe_preconditioner import KFACSettings

__all__ = [
    "BlockKind",
    "Coverage",
    "FactorShape",
    "FisherBlock",
    "NormalizingLayer",
    "find_blocks",
    "unwrapped",
]


@dataclass(frozen=True, slots=True)
class FactorShape:
    """Name and size of one factor.

    Attributes:
        name: of the block, "." and the role.
        role: "A": input side, "G": output side, "F": the whole Fisher of a norm.
        groups: independent matrices: groups of a convolution, channels of a norm, else 1.
        side: of each matrix.
        diagonal: whether only the diagonal is kept.
    """

    name: str
    role: Literal["A", "G", "F"]
    groups: int
    side: int
    diagonal: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """(groups, side, side), or (groups, side) of a diagonal."""
        return (self.groups, self.side) if self.diagonal else (self.groups, self.side, self.side)


@dataclass(frozen=True, slots=True, eq=False)
class FisherBlock:
    """Parameters whose Fisher is one product of factors (or one F).

    Attributes:
        name: qualified name of the first module.
        kind: of the layer.
        modules: all that share this weight, usually one.
        weight: None: a norm of which only the shift is trained.
        bias: None: without, or not trained, or shared with a layer of another weight.
        factors: (A, G), or (F,) of a norm.
    """

    name: str
    kind: BlockKind
    modules: tuple[nn.Module, ...]
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    factors: tuple[FactorShape, ...]

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """Weight and bias, as far as they are there."""
        return tuple(each for each in (self.weight, self.bias) if each is not None)


@dataclass(frozen=True, slots=True, eq=False)
class Coverage:
    """Every parameter of a model once.

    Attributes:
        blocks: in the order of the modules.
        uncovered: name, parameter and reason of trainable parameters without a block.
        frozen: name and parameter of those that are not trained.
        names: of the parameters of the blocks, by the parameter's id.
    """

    blocks: tuple[FisherBlock, ...]
    uncovered: tuple[tuple[str, nn.Parameter, str], ...]
    frozen: tuple[tuple[str, nn.Parameter], ...]
    names: dict[int, str]


def find_blocks(model: nn.Module, settings: KFACSettings) -> Coverage:
    """Divide a model's parameters into Fisher blocks and what K-FAC does not cover.

    Covered: Linear, Conv1d to 3d, Embedding, BatchNorm, LayerNorm, GroupNorm, RMSNorm, and norms of
    your own (`NormalizingLayer`), each with the forward pass that torch gave it. Layers that share
    a weight are one block. Wrappers of DDP and torch.compile are looked through.

    Args:
        model: any module; its parameters must have sizes.
        settings: norms, left_out and largest_factor.

    Raises:
        InputError: a lazy layer that has seen no data; a name in left_out that matches nothing.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), nn.PReLU())
        >>> coverage = find_blocks(model, KFACSettings())
        >>> [(block.kind, [factor.shape for factor in block.factors]) for block in coverage.blocks]
        [('convolution', [(2, 19, 19), (2, 3, 3)]), ('norm', [(6, 2, 2)])]
        >>> [(name, reason) for name, _, reason in coverage.uncovered]
        [('2.weight', 'PReLU is no layer that K-FAC knows')]
    """
    model = unwrapped(model)
    names = {id(each): name for name, each in model.named_parameters()}
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise InputError(f"parameter {name}", "must have a size", hint="pass one batch first")
    for pattern in settings.left_out:
        if not any(fnmatchcase(name, pattern) for name, _ in model.named_modules()):
            raise InputError("left_out", "must match a layer of the model", pattern)
    owners = find_owners(model, settings.left_out)
    reasons = _first_reasons(owners)
    blocks: list[FisherBlock] = []
    for group in _groups(owners, reasons):
        block = _block(group, owners, reasons, settings)
        if block is not None:
            blocks.append(block)
    covered = {id(each) for block in blocks for each in block.parameters}
    uncovered, frozen = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            frozen.append((name, parameter))
        elif id(parameter) not in covered:
            uncovered.append((name, parameter, reasons[id(parameter)]))
    known = {key: name for key, name in names.items() if key in covered}
    return Coverage(tuple(blocks), tuple(uncovered), tuple(frozen), known)


def _first_reasons(owners: Sequence[Owner]) -> dict[int, str]:
    """Why each parameter would find no block, as far as its first owner knows."""
    reasons: dict[int, str] = {}
    for owner in owners:
        for name, parameter in owner.module._parameters.items():
            if parameter is not None:
                reason = owner.reason or f"{name} is no weight or bias of its layer"
                reasons.setdefault(id(parameter), reason)
        if owner.kind is not None and owner.main is None and owner.bias is not None:
            reasons[id(owner.bias)] = "its weight is frozen"
    return reasons


def _groups(owners: Sequence[Owner], reasons: dict[int, str]) -> Iterator[list[Owner]]:
    """Owners that share their main parameter, where they are alike; `reasons` gets why not."""
    groups: dict[int, list[Owner]] = {}
    for owner in owners:
        if owner.kind is not None and owner.main is not None:
            groups.setdefault(id(owner.main), []).append(owner)
    for key, group in groups.items():
        reason = _refusal(key, group, owners)
        if not reason:
            yield group
            continue
        for owner in group:
            for parameter in (owner.weight, owner.bias):
                if parameter is not None:
                    reasons[id(parameter)] = reason


def _refusal(key: int, group: Sequence[Owner], owners: Sequence[Owner]) -> str:
    """Why the owners of one parameter are no block, "" where they are."""
    others = [owner for owner in owners if owner not in group and owner.holds(key)]
    if others:
        return f"shared with {others[0].name}: {others[0].reason or 'used in another way'}"
    kinds = sorted({owner.sizes() for owner in group})
    if len(kinds) > 1:
        return f"shared by layers of several kinds: {', '.join(kind for kind, *_ in kinds)}"
    return ""


def _block(
    group: Sequence[Owner],
    owners: Sequence[Owner],
    reasons: dict[int, str],
    settings: KFACSettings,
) -> FisherBlock | None:
    first = group[0]
    assert first.kind is not None
    bias = _common_bias(group, owners, reasons)
    if first.weight is None and bias is None:
        return None
    factors = _factors(first, bias is not None, settings)
    modules = tuple(owner.module for owner in group)
    return FisherBlock(first.name, first.kind, modules, first.weight, bias, factors)


def _common_bias(
    group: Sequence[Owner], owners: Sequence[Owner], reasons: dict[int, str]
) -> nn.Parameter | None:
    """The bias of all layers of a group, unless another layer has it too."""
    biases = {id(owner.bias): owner.bias for owner in group}
    found = group[0].bias
    if len(biases) > 1:
        for bias in biases.values():
            if bias is not None:
                reasons[id(bias)] = "its weight is shared with a layer of another bias"
        return None
    if found is None:
        return None
    if any(owner not in group and owner.holds(id(found)) for owner in owners):
        reasons[id(found)] = "shared with a layer of another weight"
        return None
    return found


def _factors(owner: Owner, with_bias: bool, settings: KFACSettings) -> tuple[FactorShape, ...]:
    largest = settings.largest_factor
    if owner.kind == "norm":
        side = (owner.weight is not None) + with_bias
        diagonal = settings.norms == "diagonal"
        channels = num_channels(owner.module)
        return (FactorShape(f"{owner.name}.F", "F", channels, side, diagonal),)
    weight = owner.weight
    assert weight is not None
    if owner.kind == "embedding":
        tokens, size = weight.shape
        return (
            FactorShape(f"{owner.name}.A", "A", 1, tokens, True),
            FactorShape(f"{owner.name}.G", "G", 1, size, size > largest),
        )
    groups = owner.module.groups if isinstance(owner.module, _ConvNd) else 1
    inputs = math.prod(weight.shape[1:]) + with_bias
    outputs = weight.shape[0] // groups
    return (
        FactorShape(f"{owner.name}.A", "A", groups, inputs, inputs > largest),
        FactorShape(f"{owner.name}.G", "G", groups, outputs, outputs > largest),
    )
