"""Streamed source: the same batch whatever the grouping and the number of loader processes."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset, TensorDataset

from anybatch.data.streamed import StreamedSource
from anybatch.errors import InputError
from anybatch.recipe import Augmentation

NUM_EXAMPLES = 40
# From Python 3.12 on, forking loader processes from a process with threads warns; machines with
# one core warn about two processes.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


class RandomDataset(Dataset):
    """Draws from all three global generators, as transforms of users do."""

    def __len__(self) -> int:
        return NUM_EXAMPLES

    def __getitem__(self, index: int):
        draws = [float(torch.rand(())), random.random(), float(np.random.rand())]  # noqa: NPY002
        return torch.tensor([float(index), *draws], dtype=torch.float64), index


class OwnDataset(Dataset):
    """Brings `item`, so that it knows epoch and seed."""

    def __len__(self) -> int:
        return NUM_EXAMPLES

    def item(self, index, *, epoch, seed, augmentation):
        flipped = augmentation is not None and augmentation.flip == "random"
        return torch.tensor([index, epoch, seed, int(flipped)]), index


class BrokenDataset(Dataset):
    def __len__(self) -> int:
        return NUM_EXAMPLES

    def __getitem__(self, index: int):
        if index == 13:
            raise KeyError("no such file")
        return torch.zeros(2), index


class RaggedDataset(Dataset):
    def __len__(self) -> int:
        return NUM_EXAMPLES

    def __getitem__(self, index: int):
        return torch.zeros(index + 1), index


def flattened(batches) -> torch.Tensor:
    return torch.cat([batch.inputs for batch in batches])


@settings(max_examples=40, deadline=None)
@given(
    indices=st.lists(st.integers(0, NUM_EXAMPLES - 1), min_size=1, max_size=20),
    batch_size=st.integers(1, 20),
    seed=st.integers(0, 100),
    epoch=st.integers(0, 3),
)
def test_an_example_is_the_same_whatever_the_grouping(indices, batch_size, seed, epoch):
    source = StreamedSource(RandomDataset())
    chosen = torch.tensor(indices)
    (whole,) = source.batches([chosen], seed=seed, epoch=epoch)
    groups = chosen.split(batch_size)
    batches = list(source.batches(iter(groups), seed=seed, epoch=epoch))
    assert [batch.indices.tolist() for batch in batches] == [group.tolist() for group in groups]
    assert torch.equal(flattened(batches), whole.inputs)
    assert torch.equal(whole.targets, chosen)


def test_loader_processes_give_the_same_batches():
    groups = torch.randperm(NUM_EXAMPLES, generator=torch.Generator().manual_seed(0)).split(7)
    source = StreamedSource(RandomDataset())
    here = list(source.batches(groups, seed=1, epoch=2))
    for num_workers in (1, 2):
        moved = source.to(torch.device("cpu"), num_workers=num_workers)
        there = list(moved.batches(groups, seed=1, epoch=2))
        assert torch.equal(flattened(here), flattened(there))
        assert [b.indices.tolist() for b in there] == [group.tolist() for group in groups]


def test_draws_of_a_plain_dataset_differ_between_epochs_seeds_and_examples():
    source = StreamedSource(RandomDataset())
    (first,) = source.batches([torch.tensor([0, 1])])
    (next_epoch,) = source.batches([torch.tensor([0, 1])], epoch=1)
    (next_seed,) = source.batches([torch.tensor([0, 1])], seed=1)
    for other in (next_epoch.inputs, next_seed.inputs, first.inputs.flip(0)):
        assert (first.inputs[:, 1:] != other[:, 1:]).all()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_reading_leaves_the_global_generators_alone(num_workers):
    source = StreamedSource(RandomDataset(), num_workers=num_workers)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    for _ in source.batches(torch.arange(8).split(4)):
        after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_dataset_with_item_is_told_epoch_seed_and_augmentation(num_workers):
    source = StreamedSource(OwnDataset(), num_workers=num_workers)
    (batch,) = source.batches(
        [torch.tensor([5])], epoch=3, seed=8, augmentation=Augmentation(flip="random")
    )
    assert batch.inputs.tolist() == [[5, 3, 8, 1]]


def test_augmentation_of_a_plain_dataset_is_refused_at_the_call():
    source = StreamedSource(RandomDataset())
    assert list(source.batches([], augmentation=Augmentation())) == []
    with pytest.raises(InputError, match="augment in your Dataset"):
        source.batches([], augmentation=Augmentation(flip="random"))


def test_items_may_be_longer_tuples_and_dicts():
    longer = TensorDataset(torch.arange(4.0), torch.arange(4), torch.arange(10, 14))
    (batch,) = StreamedSource(longer).batches([torch.tensor([2, 0])])
    assert [part.tolist() for part in batch.inputs] == [[2.0, 0.0], [2, 0]]
    assert batch.targets.tolist() == [12, 10]
    dicts = [{"x": torch.tensor([float(i)]), "mask": True, "y": i} for i in range(3)]
    (batch,) = StreamedSource(dicts, target_key="y").batches([torch.tensor([2, 1])])
    assert batch.inputs["x"].tolist() == [[2.0], [1.0]]
    assert batch.inputs["mask"].tolist() == [True, True]
    assert batch.targets.tolist() == [2, 1]


def test_a_collate_fn_makes_the_batch():
    def padded(items):
        inputs = torch.nn.utils.rnn.pad_sequence([x for x, _ in items], batch_first=True)
        return inputs, torch.tensor([y for _, y in items])

    source = StreamedSource(RaggedDataset(), collate_fn=padded)
    (batch,) = source.batches([torch.tensor([2, 0])])
    assert batch.inputs.shape == (2, 3)


@settings(max_examples=20, deadline=None)
@given(indices=st.lists(st.integers(0, NUM_EXAMPLES - 1), min_size=2, max_size=20))
def test_a_subset_is_renumbered_in_the_order_given(indices):
    subset = StreamedSource(RandomDataset()).subset(torch.tensor(indices))
    assert subset.num_examples == len(indices)
    (batch,) = subset.batches([torch.arange(len(indices))])
    assert batch.targets.tolist() == indices
    assert batch.indices.tolist() == list(range(len(indices)))
    (again,) = subset.subset(torch.tensor([1])).batches([torch.tensor([0])])
    assert again.targets.tolist() == [indices[1]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_in_the_dataset_names_the_example(num_workers):
    source = StreamedSource(BrokenDataset(), num_workers=num_workers)
    batches = source.batches(torch.arange(20).split(5))
    assert next(batches).indices.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(InputError) as caught:
        list(batches)
    assert str(caught.value) == ("train dataset must give example 13, got KeyError: 'no such file'")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_examples_that_do_not_stack_are_refused(num_workers):
    source = StreamedSource(RaggedDataset(), num_workers=num_workers, split="test")
    with pytest.raises(InputError) as caught:
        list(source.batches([torch.arange(6)]))
    assert str(caught.value).startswith("test batch of examples 0, 1, 2, 3, ... must be collated")
    assert str(caught.value).endswith("(give a collate_fn)")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StreamedSource([]), "train dataset must hold at least one example"),
        (lambda: StreamedSource(iter([1])), "train dataset must have __len__, got list_iterator"),
        (lambda: StreamedSource([1], num_workers=-1), "num_workers must be >= 0, got -1"),
        (
            lambda: list(StreamedSource([5]).batches([torch.tensor([0])])),
            "train example 0 must be an (inputs, target) tuple or a dict, got int",
        ),
        (
            lambda: list(StreamedSource([{"x": 1, "label": 2}]).batches([torch.tensor([0])])),
            "train example 0 must hold inputs and 'target', got the keys x, label",
        ),
        (
            lambda: list(StreamedSource([(1, 2)]).batches([torch.tensor([1])])),
            "example index of train must lie in [0, 1), got 1",
        ),
        (
            lambda: StreamedSource([(1, 2)]).subset(torch.tensor([], dtype=torch.int64)),
            "train subset must hold at least one example",
        ),
    ],
)
def test_what_breaks_a_rule_is_refused(make, message):
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value).startswith(message)
