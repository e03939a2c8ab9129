"""Shared knowledge: what every rank must know of factors whose tensors only their owners have."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from anybatch.kfac.blocks import FactorShape
from anybatch.kfac.damping import mean_eigenvalue
from anybatch.world import World

__all__ = ["inverted_names", "means_and_changes"]


def means_and_changes(
    shapes: Sequence[FactorShape],
    owned: Mapping[str, Tensor],
    changes: Mapping[str, tuple[Tensor, Tensor]] | None,
    world: World,
) -> tuple[dict[str, Tensor], dict[str, tuple[float, float]]]:
    """Mean eigenvalues, (groups,), and relative changes of factors by name, from owners to all.

    Args:
        shapes: of the factors, the same on every rank and in the same order.
        owned: statistics that this rank owns.
        changes: of those among `shapes`; None, on every rank: nobody asks for changes, and nothing
            is read on the host.
        world: all ranks.

    Collectives:
        One all-reduce of a number for each mean and two for each factor's changes; every rank must
        call.
    """
    zero = torch.zeros(1, dtype=torch.float64, device=world.device)
    pieces = [
        mean_eigenvalue(owned[s.name]).double() if s.name in owned else zero.expand(s.groups)
        for s in shapes
    ]
    if changes is not None:
        pieces += [
            torch.stack(changes[s.name]) if s.name in changes else zero.expand(2) for s in shapes
        ]
    known = torch.cat(pieces)
    world.sum_in_place(known)
    sizes = [s.groups for s in shapes]
    split = torch.split(known[: sum(sizes)], sizes)
    means = dict(zip((s.name for s in shapes), split, strict=True))
    pairs = known[sum(sizes) :].view(-1, 2).tolist()
    return means, {s.name: (pair[0], pair[1]) for s, pair in zip(shapes, pairs, strict=False)}


def inverted_names(shapes: Sequence[FactorShape], own: Collection[str], world: World) -> list[str]:
    """Names of the factors that have an inverse, on whichever rank, in their order.

    Args:
        shapes: of the factors, the same on every rank and in the same order.
        own: names of those whose inverse this rank holds.
        world: all ranks.

    Collectives:
        One all-reduce of a number for each factor; every rank must call.
    """
    if world.size == 1:
        return [shape.name for shape in shapes if shape.name in own]
    flags = [float(shape.name in own) for shape in shapes]
    known = torch.tensor(flags, dtype=torch.float32).to(world.device)
    world.sum_in_place(known)
    return [s.name for s, flag in zip(shapes, known.tolist(), strict=True) if flag > 0]
