"""Iterable source: example i is the i-th element of a pass, read once and in order."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import IterableDataset

from anybatch.data.iterable import IterableSource
from anybatch.errors import InputError
from anybatch.recipe import Augmentation


def elements(count: int = 20):
    return [(torch.tensor([float(i)]), i) for i in range(count)]


class Numbers(IterableDataset):
    """An IterableDataset that counts how far it was read."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.num_read = 0

    def __iter__(self):
        for element in elements(self.count):
            self.num_read += 1
            yield element


class Resumable:
    """A stream that saves its place, as the stateful loaders of others do."""

    def __init__(self) -> None:
        self.place = 0

    def __iter__(self):
        while self.place < 20:
            self.place += 1
            yield elements()[self.place - 1]
        self.place = 0

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


def read(source, groups, **arguments):
    return [batch.targets.tolist() for batch in source.batches(groups, **arguments)]


@settings(max_examples=50, deadline=None)
@given(
    chosen=st.sets(st.integers(0, 19), min_size=1),
    batch_size=st.integers(1, 20),
    epoch=st.integers(0, 2),
)
def test_examples_are_the_elements_with_those_numbers(chosen, batch_size, epoch):
    source = IterableSource(elements(), num_examples=20)
    groups = torch.tensor(sorted(chosen)).split(batch_size)
    assert read(source, groups, epoch=epoch) == [group.tolist() for group in groups]
    batch = next(source.batches(groups))
    assert batch.inputs.tolist() == [[float(i)] for i in batch.indices.tolist()]


@pytest.mark.parametrize("stream", [elements(), Numbers(20), lambda: iter(elements())])
def test_each_epoch_reads_the_stream_again(stream):
    source = IterableSource(stream, num_examples=20)
    assert not source.random_access
    assert source.num_examples == 20
    for epoch in range(2):
        groups = torch.arange(20).split(8)
        assert read(source, groups, epoch=epoch) == [group.tolist() for group in groups]


def test_nothing_is_read_ahead():
    numbers = Numbers(20)
    batches = IterableSource(numbers).batches(torch.arange(20).split(3))
    next(batches)
    assert numbers.num_read == 3


def test_a_stream_that_ends_early_gives_a_short_last_batch():
    source = IterableSource(elements(10))
    batches = list(source.batches(torch.arange(100).split(4)))
    assert [batch.indices.tolist() for batch in batches][-1] == [8, 9]
    assert read(source, torch.arange(100).split(5)) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert source.num_examples is None


def test_a_generator_can_be_gone_on_with_but_not_begun_again():
    source = IterableSource(element for element in elements())
    assert read(source, [torch.tensor([0, 1])]) == [[0, 1]]
    assert read(source, [torch.tensor([2, 5])]) == [[2, 5]]
    with pytest.raises(InputError) as caught:
        read(source, [torch.tensor([0, 1])], epoch=1)
    assert str(caught.value) == (
        "train stream must start anew for each pass, but it can be read only once"
        " (pass a list or a function that returns a fresh iterator)"
    )


def test_a_function_that_returns_the_same_iterator_is_found_out():
    only = iter(elements())
    source = IterableSource(lambda: only)
    assert len(read(source, torch.arange(20).split(5))) == 4
    with pytest.raises(InputError, match="can be read only once"):
        read(source, torch.arange(20).split(5), epoch=1)


def test_a_stream_that_saves_its_place_is_resumed_there():
    groups = torch.arange(20).split(3)
    source = IterableSource(Resumable(), num_examples=20)
    assert source.has_state
    first = list(islice(source.batches(groups), 4))
    state = source.state_dict()
    assert [batch.targets.tolist() for batch in first][-1] == [9, 10, 11]
    stream = Resumable()
    resumed = IterableSource(stream, num_examples=20)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert stream.place == 12
    assert read(resumed, groups[4:]) == [group.tolist() for group in groups[4:]]
    assert read(resumed, groups, epoch=1) == [group.tolist() for group in groups]


@pytest.mark.parametrize("num_examples", [20, None])
def test_a_place_saved_at_the_end_of_a_pass_begins_the_next_one(num_examples):
    groups = torch.arange(20 if num_examples else 30).split(5)
    source = IterableSource(Resumable(), num_examples=num_examples)
    if num_examples is None:
        assert len(read(source, groups)) == 4  # only the end of the stream tells
    else:
        assert len(list(islice(source.batches(groups), 4))) == 4
    resumed = IterableSource(Resumable(), num_examples=num_examples)
    resumed.load_state_dict(source.state_dict())
    for stream in (source, resumed):
        assert read(stream, groups[:4], epoch=1) == [group.tolist() for group in groups[:4]]


def test_a_loaded_place_cannot_be_gone_behind():
    source = IterableSource(Resumable())
    source.load_state_dict({"position": 12, "stream": {"place": 12}})
    with pytest.raises(InputError, match="must be >= 12, where the loaded state begins, got 3"):
        read(source, [torch.tensor([3])])


def test_a_stream_without_a_place_says_so():
    source = IterableSource(elements())
    assert not source.has_state
    for call in (source.state_dict, lambda: source.load_state_dict({})):
        with pytest.raises(InputError, match="must have state_dict and load_state_dict, got list"):
            call()


@settings(max_examples=30, deadline=None)
@given(chosen=st.sets(st.integers(0, 19), min_size=2), batch_size=st.integers(1, 20))
def test_a_subset_is_renumbered_and_skips_the_rest(chosen, batch_size):
    positions = sorted(chosen)
    subset = IterableSource(elements(), num_examples=20).subset(torch.tensor(positions))
    assert subset.num_examples == len(positions)
    groups = torch.arange(len(positions)).split(batch_size)
    batches = list(subset.to(torch.device("cpu"), num_workers=2).batches(groups))
    assert [i for batch in batches for i in batch.targets.tolist()] == positions
    assert [i for b in batches for i in b.indices.tolist()] == list(range(len(positions)))
    assert read(subset.subset(torch.tensor([1])), [torch.tensor([0])]) == [[positions[1]]]


def test_dicts_and_an_own_collate_fn_work():
    stream = [{"x": torch.tensor(float(i)), "y": i} for i in range(4)]
    source = IterableSource(stream, target_key="y")
    (batch,) = source.batches([torch.arange(2)])
    assert batch.inputs["x"].tolist() == [0.0, 1.0]
    lengths = IterableSource(stream, collate_fn=lambda items: (len(items), [d["y"] for d in items]))
    (batch,) = lengths.batches([torch.arange(3)])
    assert (batch.inputs, batch.targets) == (3, (0, 1, 2))


def failing():
    yield from elements(3)
    raise OSError("connection lost")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: read(IterableSource(elements()), [torch.tensor([2, 1])]),
            "example indices of the train stream must ascend, got [2, 1] after -1",
        ),
        (
            lambda: read(IterableSource(elements()), [torch.tensor([1, 2]), torch.tensor([2])]),
            "example indices of the train stream must ascend, got [2] after 2",
        ),
        (
            lambda: read(IterableSource([]), [torch.tensor([0])]),
            "train stream must hold at least one example",
        ),
        (
            lambda: read(IterableSource(failing), [torch.arange(5)]),
            "train stream must give example 3, got OSError: connection lost",
        ),
        (
            lambda: read(IterableSource([1, 2]), [torch.tensor([0])]),
            "train batch must be an (inputs, target) tuple or a dict, got Tensor",
        ),
        (
            lambda: read(IterableSource([("a", object())]), [torch.tensor([0])]),
            "train batch must be collated, got TypeError",
        ),
        (lambda: IterableSource(5), "train stream must be iterable, got int"),
        (lambda: IterableSource([], num_examples=0), "train num_examples must be >= 1, got 0"),
        (
            lambda: IterableSource(elements()).subset(torch.tensor([2, 1])),
            "train subset of a stream must be ascending indices",
        ),
        (
            lambda: IterableSource([]).batches([], augmentation=Augmentation(cutout_size=2)),
            "augmentation must be none: a stream cannot be augmented here",
        ),
    ],
)
def test_what_breaks_a_rule_is_refused(call, message):
    with pytest.raises(InputError) as caught:
        call()
    assert str(caught.value).startswith(message)
