"""Resident source: the same batch whatever the grouping, and arrays that are checked."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anybatch.data.resident import Normalization, ResidentSource
from anybatch.errors import InputError
from anybatch.recipe import Augmentation

NUM_EXAMPLES = 3000  # more than is gathered at once
FULL = Augmentation(crop_padding=2, flip="random", cutout_size=3)


def image_source() -> ResidentSource:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (NUM_EXAMPLES, 6, 5, 3), dtype=torch.uint8, generator=generator)
    return ResidentSource.from_arrays(
        images,
        torch.arange(NUM_EXAMPLES),
        normalization=Normalization(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)),
    )


IMAGES = image_source()
INDICES = st.lists(st.integers(0, NUM_EXAMPLES - 1), min_size=1, max_size=60)


@settings(max_examples=40, deadline=None)
@given(
    indices=INDICES,
    cuts=st.lists(st.integers(0, 60), max_size=6),
    seed=st.integers(0, 1000),
    epoch=st.integers(0, 4),
)
def test_an_example_is_the_same_whatever_the_grouping(indices, cuts, seed, epoch):
    chosen = torch.tensor(indices)
    arguments = {"seed": seed, "epoch": epoch, "augmentation": FULL}
    (whole,) = IMAGES.batches([chosen], **arguments)
    edges = sorted({0, len(chosen), *(cut for cut in cuts if cut < len(chosen))})
    groups = [chosen[low:high] for low, high in itertools.pairwise(edges)]
    batches = list(IMAGES.batches(iter(groups), **arguments))
    assert [batch.indices.tolist() for batch in batches] == [group.tolist() for group in groups]
    assert torch.equal(torch.cat([batch.inputs for batch in batches]), whole.inputs)
    assert torch.equal(torch.cat([batch.targets for batch in batches]), whole.targets)
    assert torch.equal(whole.targets, chosen)
    # Groups asked for together are gathered together: ask for one alone, too.
    (alone,) = IMAGES.batches([chosen[-1:]], **arguments)
    assert torch.equal(alone.inputs[0], whole.inputs[-1])


@pytest.mark.parametrize("batch_size", [1, 7, 64, 2048, 3000])
def test_an_epoch_is_delivered_in_order_at_any_batch_size(batch_size):
    order = torch.randperm(NUM_EXAMPLES, generator=torch.Generator().manual_seed(1))
    groups = order.split(batch_size)
    batches = list(IMAGES.batches(groups, augmentation=FULL))
    assert len(batches) == len(groups)
    assert torch.equal(torch.cat([batch.targets for batch in batches]), order)
    assert all(len(batch.inputs) == len(batch.indices) for batch in batches)


def test_index_tensors_are_read_only_some_way_ahead():
    pulled = 0

    def endless():
        nonlocal pulled
        while True:
            pulled += 1
            yield torch.arange(100)

    batches = IMAGES.batches(endless())
    next(batches)
    assert pulled == 21  # 2,048 examples
    wide = ResidentSource.from_arrays(torch.zeros(100, 2**20), torch.zeros(100))
    pulled = 0
    next(wide.batches(indices[:1] for indices in endless()))
    assert pulled <= 2  # 4 MiB each, 8 MiB together


@pytest.mark.parametrize(
    "inputs",
    [
        torch.arange(20.0).reshape(10, 2),
        torch.arange(10),
        (torch.arange(10.0), torch.arange(10)),
        {"left": torch.arange(10.0), "right": (torch.arange(10), torch.arange(10).bool())},
    ],
    ids=["floats", "tokens", "tuple", "nested dict"],
)
def test_anything_else_is_taken_as_it_is(inputs):
    source = ResidentSource.from_arrays(inputs, torch.arange(10))
    first, second = source.batches([torch.tensor([3, 1]), torch.tensor([9])])

    def rows(nest, indices):
        if isinstance(nest, torch.Tensor):
            return nest[indices]
        if isinstance(nest, dict):
            return {key: rows(value, indices) for key, value in nest.items()}
        return tuple(rows(value, indices) for value in nest)

    assert repr(first.inputs) == repr(rows(inputs, [3, 1]))
    assert repr(second.inputs) == repr(rows(inputs, [9]))
    assert first.targets.tolist() == [3, 1]


@settings(max_examples=30, deadline=None)
@given(indices=INDICES)
def test_a_subset_is_renumbered_in_the_order_given(indices):
    subset = IMAGES.subset(torch.tensor(indices))
    assert subset.num_examples == len(indices)
    (batch,) = subset.batches([torch.arange(len(indices))])
    assert batch.targets.tolist() == indices
    (original,) = IMAGES.batches([torch.tensor(indices)])
    assert torch.equal(batch.inputs, original.inputs)


def test_a_run_of_examples_shares_the_memory():
    part = IMAGES.subset(torch.arange(100, 200))
    assert part.inputs.data_ptr() == IMAGES.inputs[100].data_ptr()
    assert part.targets.tolist() == list(range(100, 200))


def test_moving_keeps_the_examples():
    moved = IMAGES.to(torch.device("cpu"), num_workers=3)
    assert moved.num_examples == NUM_EXAMPLES
    assert moved.random_access
    assert moved.device == torch.device("cpu")
    assert moved.normalization == IMAGES.normalization
    assert torch.equal(moved.inputs, IMAGES.inputs)


def test_numpy_arrays_become_what_torch_wants():
    images = np.zeros((4, 2, 2, 1), dtype=np.uint8)
    images.flags.writeable = False
    source = ResidentSource.from_arrays(images, np.array([0, 1, 2, 3], dtype=np.int8))
    assert source.inputs.dtype == torch.uint8
    assert source.targets.dtype == torch.int64
    swapped = np.arange(8.0).reshape(4, 2).astype(">f8")[::-1]
    source = ResidentSource.from_arrays(swapped, np.zeros(4, dtype=np.float32))
    assert source.inputs.dtype == torch.float32
    assert source.inputs[0].tolist() == [6.0, 7.0]
    assert source.targets.dtype == torch.float32


def floats_with(value: float, row: int) -> torch.Tensor:
    floats = torch.zeros(30, 3)
    floats[row, 1] = value
    floats[row + 5, 0] = value
    return floats


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(2), "train inputs and targets must have equally many"),
        (torch.zeros(0, 2), torch.zeros(0), "train inputs must hold at least one example"),
        (torch.tensor(1.0), torch.zeros(1), "train inputs must hold at least one example"),
        ([1, 2], torch.zeros(2), "train inputs must be a torch tensor or numpy array"),
        ((), torch.zeros(2), "train inputs must be a torch tensor or numpy array"),
        (np.array(["a"]), torch.zeros(1), "train inputs must be an array of numbers"),
        (
            floats_with(float("nan"), 17),
            torch.zeros(30),
            "train inputs must be finite, example 17 holds nan",
        ),
        (
            {"x": floats_with(float("inf"), 4)},
            torch.zeros(30),
            "train inputs['x'] must be finite, example 4 holds inf",
        ),
        (
            torch.zeros(30),
            (torch.zeros(30), floats_with(float("-inf"), 0)),
            "train targets[1] must be finite, example 0 holds -inf",
        ),
    ],
)
def test_arrays_that_break_a_rule_are_refused(inputs, targets, message):
    with pytest.raises(InputError) as caught:
        ResidentSource.from_arrays(inputs, targets)
    assert str(caught.value).startswith(message)


def test_the_first_broken_example_is_named_in_large_data(monkeypatch):
    monkeypatch.setattr("anybatch.data.arrays._NUMBERS_CHECKED_AT_ONCE", 12)
    with pytest.raises(InputError, match="test inputs must be finite, example 17 holds nan"):
        ResidentSource.from_arrays(floats_with(float("nan"), 17), torch.zeros(30), split="test")


def test_a_normalization_needs_images_of_as_many_channels():
    normalization = Normalization(mean=(0.5,), std=(0.5,))
    with pytest.raises(InputError, match="must be uint8 images of shape"):
        ResidentSource.from_arrays(torch.zeros(2, 3), torch.zeros(2), normalization=normalization)
    images = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    with pytest.raises(InputError, match="must have 1 channels like the normalization"):
        ResidentSource.from_arrays(images, torch.zeros(2), normalization=normalization)


def test_augmentation_is_refused_at_the_call_where_it_cannot_be_had():
    plain = ResidentSource.from_arrays(torch.zeros(2, 3), torch.zeros(2))
    assert len(list(plain.batches([torch.tensor([0])], augmentation=Augmentation()))) == 1
    with pytest.raises(InputError, match="only uint8 images can be augmented"):
        plain.batches([], augmentation=Augmentation(flip="random"))
    with pytest.raises(InputError, match="random_resized_crop must be false"):
        IMAGES.batches([], augmentation=Augmentation(random_resized_crop=True))


@pytest.mark.parametrize(("index", "shown"), [(-1, "-1"), (NUM_EXAMPLES, str(NUM_EXAMPLES))])
def test_indices_outside_are_refused(index, shown):
    message = f"example index of train must lie in [0, {NUM_EXAMPLES}), got {shown}"
    for call in (
        lambda: list(IMAGES.batches([torch.tensor([0, index])])),
        lambda: IMAGES.subset(torch.tensor([index])),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == message


def test_an_empty_subset_is_refused():
    with pytest.raises(InputError, match="train subset must hold at least one example"):
        IMAGES.subset(torch.tensor([], dtype=torch.int64))
