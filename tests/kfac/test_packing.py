"""Packing: every element in its place, once, with its bits; sizes that no memory could hold."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anybatch.kfac.blocks import FactorShape
from anybatch.kfac.packing import (
    OwnedLayout,
    PackedEntry,
    PackedLayout,
    pack_symmetric,
    packed_count,
    packed_offset,
    unpack_symmetric,
)

SIDES = st.integers(min_value=1, max_value=9)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])


def symmetric(groups: int, side: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(groups * 1000 + side)
    matrices = torch.randn(groups, side, side, generator=generator, dtype=torch.float64)
    return (matrices + matrices.mT).to(dtype)


def packed(matrices: torch.Tensor) -> torch.Tensor:
    groups, side = matrices.shape[:2]
    out = torch.full((groups * packed_count(side),), float("nan"), dtype=matrices.dtype)
    pack_symmetric(matrices, out)
    return out


def unpacked(flat: torch.Tensor, groups: int, side: int) -> torch.Tensor:
    out = torch.full((groups, side, side), float("nan"), dtype=flat.dtype)
    unpack_symmetric(flat, out)
    return out


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


@given(groups=st.integers(min_value=0, max_value=3), side=SIDES, dtype=DTYPES)
@settings(max_examples=60, deadline=None)
def test_round_trip_keeps_every_bit(groups, side, dtype):
    matrices = symmetric(groups, side, dtype)
    if groups:  # signs of zeros, infinities and NaN travel like any number
        matrices[0, 0, -1] = matrices[0, -1, 0] = -0.0
        matrices[-1, -1, -1] = float("inf")
        matrices[-1, 0, 0] = float("nan")
    for each in (matrices, torch.full_like(matrices, -0.0)):
        assert torch.equal(bits(unpacked(packed(each), groups, side)), bits(each))


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 12, 13])
def test_every_element_is_where_the_formula_says(side):
    matrices = symmetric(1, side)
    flat = packed(matrices)
    offsets = [packed_offset(side, row, column) for row in range(side) for column in range(row + 1)]
    assert sorted(offsets) == list(range(packed_count(side))) == list(range(len(flat)))
    for row in range(side):
        for column in range(side):
            assert flat[packed_offset(side, row, column)] == matrices[0, row, column]


@given(side=st.integers(min_value=60_000, max_value=10**10), data=st.data())
def test_offsets_of_huge_matrices_are_exact(side, data):
    # 32 bits end at a side of 65,536. Neighbours in a row are neighbours; all is inside.
    column = data.draw(st.integers(min_value=0, max_value=side - 2))
    row = data.draw(st.integers(min_value=max(column + 1, side // 2), max_value=side - 1))
    offset = packed_offset(side, row, column)
    assert 0 <= offset < packed_count(side)
    assert packed_offset(side, row, column + 1) == offset + 1
    assert packed_offset(side, column, row) == offset
    # The last element ends the buffer; of an even side one of the other triangle is behind it.
    assert packed_count(side) - packed_offset(side, side - 1, side - 1) == 2 - side % 2


def test_layouts_and_copies_go_beyond_two_to_the_31_elements():
    # On the meta device nothing is allocated, but sizes, strides and offsets are computed.
    shapes = [FactorShape(f"{i}.A", "A", 1, 100_001, False) for i in range(3)]
    layout = PackedLayout.of_factors(shapes)
    count = packed_count(100_001)
    assert count > 2**32
    assert layout.offsets == {"0.A": 0, "1.A": count, "2.A": 2 * count}
    flat = torch.empty(layout.total, device="meta")
    tensors = {shape.name: torch.empty(shape.shape, device="meta") for shape in shapes}
    layout.pack(tensors, flat)
    part = layout.unpack(flat)["2.A"]
    assert part.shape == (1, 100_001, 100_001)
    last = flat.narrow(0, layout.offsets["2.A"], count)
    assert last.storage_offset() == 2 * count


@given(groups=st.integers(min_value=1, max_value=3), side=SIDES, kind=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_strides_do_not_matter(groups, side, kind):
    matrices = symmetric(groups, side)
    views = (
        matrices.mT,
        matrices.repeat_interleave(2, dim=2)[:, :, ::2],
        torch.nn.functional.pad(matrices, (1, 2, 3, 0))[:, 3:, 1 : side + 1],
        matrices.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    )
    assert torch.equal(packed(views[kind]), packed(matrices))


@given(side=SIDES)
@settings(max_examples=20, deadline=None)
def test_a_sum_of_packed_ones_is_the_packed_sum(side):
    one, other = symmetric(2, side), symmetric(2, side).flip(0) * 3
    assert torch.equal(packed(one) + packed(other), packed(one + other))


SHAPES = (
    FactorShape("conv.A", "A", 2, 5, False),
    FactorShape("conv.G", "G", 2, 3, False),
    FactorShape("words.A", "A", 1, 7, True),
    FactorShape("norm.F", "F", 4, 2, False),
    FactorShape("scale.F", "F", 3, 1, False),
    FactorShape("no.F", "F", 0, 2, False),
)


def statistics(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {
        shape.name: torch.randn(shape.shape).to(dtype)
        if shape.diagonal
        else symmetric(shape.groups, shape.side, dtype)
        for shape in SHAPES
    }


def test_a_layout_holds_the_payload_and_nothing_else():
    layout = PackedLayout.of_factors(SHAPES)
    assert layout.total == 2 * 15 + 2 * 6 + 7 + 4 * 3 + 3 + 0
    tensors = statistics()
    flat = torch.full((layout.total,), float("nan"))
    layout.pack(tensors, flat)
    assert torch.isfinite(flat).all()
    back = layout.unpack(flat)
    assert list(back) == [shape.name for shape in SHAPES]
    for name, tensor in tensors.items():
        assert torch.equal(back[name], tensor)


def test_a_missing_tensor_is_zero_and_scales_come_before_the_cast():
    layout = PackedLayout.of_factors(SHAPES)
    tensors = {name: tensor * 1e6 for name, tensor in statistics().items()}  # beyond fp16
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    tensors.pop("norm.F")
    scales = {shape.name: torch.tensor(2.0**-20) for shape in SHAPES}
    flat = torch.full((layout.total,), float("nan"), dtype=torch.float16)
    layout.pack(tensors, flat, scales)
    back = layout.unpack(flat)
    assert not back["norm.F"].any()
    for name, tensor in tensors.items():
        assert torch.equal(back[name], (before[name] * 2.0**-20).half())
        assert torch.equal(tensor, before[name])  # only copies were scaled


@pytest.mark.parametrize("padded", [False, True])
def test_shares_of_owners_are_in_one_piece_each(padded):
    entries = [PackedEntry.of(shape) for shape in SHAPES]
    owner = {"conv.A": 2, "conv.G": 0, "words.A": 2, "norm.F": 4, "scale.F": 0, "no.F": 1}
    layout = OwnedLayout(entries, owner, 5, padded)
    counts = [15, 0, 37, 0, 12]
    assert [share.total for share in layout.shares] == counts
    assert layout.payload == 64
    assert layout.largest_share == 37
    assert layout.total == (5 * 37 if padded else 64)
    assert layout.starts == ((0, 37, 74, 111, 148) if padded else (0, 15, 15, 52, 52))
    tensors = statistics()
    flat = torch.full((layout.total,), float("nan"))
    layout.pack(tensors, flat)
    assert torch.isfinite(flat).all()  # the padding too
    for rank, share in enumerate(layout.shares):
        assert len(layout.part(flat, rank)) == counts[rank]
        for name, tensor in share.unpack(layout.part(flat, rank)).items():
            assert owner[name] == rank
            assert torch.equal(tensor, tensors[name])
