"""Capturing a pass, and what it must give: sums written out example by example."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from anybatch.kfac.blocks import FisherBlock, find_blocks
from anybatch.kfac.capture import Capture
from anybatch.kfac.statistics import normalized
from anybatch.recipe_preconditioner import KFACSettings

DOUBLE = torch.float64


@contextmanager
def capturing(model: nn.Module, **settings: object) -> Iterator[Capture]:
    """A capture that observes; its hooks are gone afterwards."""
    chosen = KFACSettings(**settings)  # type: ignore[arg-type]
    capture = Capture(find_blocks(model, chosen).blocks, chosen)
    capture.observing = True
    try:
        yield capture
    finally:
        handles = capture._handles
        for handle in handles:
            handle.remove()


def blocks_of(capture: Capture) -> dict[str, FisherBlock]:
    return {block.name: block for block in capture._blocks}


def statistics(capture: Capture, divisor: float) -> dict[str, Tensor]:
    """All factors of what a capture has seen."""
    return {
        factor.name: normalized(
            capture.sums[factor.name],
            factor.role,
            examples=capture.examples,
            rows=capture.rows[name],
            divisor=divisor,
        )
        for name, block in blocks_of(capture).items()
        for factor in block.factors
        if factor.name in capture.sums
    }


def assert_same(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    found, expected = found.detach(), expected.detach()
    assert found.shape == expected.shape
    scale = float(expected.abs().max()) or 1.0
    assert float((found - expected).abs().max()) <= tolerance * scale


def with_one(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows.new_ones(*rows.shape[:-1], 1)], -1)


def patches_of(inputs: Tensor, layer: nn.Conv1d | nn.Conv2d) -> Tensor:
    """(groups, n, positions, side) by torch's unfold, of what the layer pads."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    sizes = [tuple(each) for each in (layer.kernel_size, layer.dilation, layer.stride)]
    if isinstance(layer, nn.Conv1d):
        padded, sizes = padded.unsqueeze(2), [(1, *each) for each in sizes]
    rows = F.unfold(padded, sizes[0], dilation=sizes[1], stride=sizes[2])
    rows = rows.view(len(inputs), layer.groups, -1, rows.shape[-1]).permute(1, 0, 3, 2)
    return rows if layer.bias is None else with_one(rows)


def example_gradients(rest: Callable[[Tensor], Tensor], outputs: Tensor, targets: Tensor) -> Tensor:
    """Gradient of each example's squared error by a layer's outputs, by torch.func."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (rest(output.unsqueeze(0)).squeeze(0) - target).square().mean()

    return torch.func.vmap(torch.func.grad(loss))(outputs, targets)


def gram(rows: Tensor) -> Tensor:
    """Sum of outer products over all but the last dimension."""
    flat = rows.reshape(-1, rows.shape[-1])
    return torch.einsum("ri,rj->ij", flat, flat)
