"""Sampling laws: every example reaches exactly one rank, the same pixels however it is divided."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from anybatch.course import recipe_clock, update_size
from anybatch.data.augmentation import Normalization
from anybatch.data.resident import ResidentSource
from anybatch.data.source import Batch
from anybatch.errors import InputError
from anybatch.recipe import Augmentation, Recipe, Schedules, SGDSettings
from anybatch.schedules import Linear, epochs, examples
from anybatch.task import Task
from anybatch.training.feed import Feed
from anybatch.training.portion import Portion
from anybatch.training.sampling import micro_batches, rank_share
from anybatch.world import World

NUM_EXAMPLES = 37
CPU = torch.device("cpu")
SIZES = st.integers(1, 12)
LAW = settings(max_examples=40, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, which only wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def image_source() -> ResidentSource:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (NUM_EXAMPLES, 6, 6, 2), generator=generator)
    return ResidentSource.from_arrays(
        images.to(torch.uint8),
        torch.arange(NUM_EXAMPLES),
        normalization=Normalization(mean=(0.4, 0.5), std=(0.2, 0.3)),
        split="train",
    )


SOURCE = image_source()
TASK = Task(build_model=lambda: nn.Linear(1, 1), train=SOURCE, validation=SOURCE)
AUGMENTATION = Augmentation(crop_padding=2, flip="random", cutout_size=2)


def recipe(**changes: Any) -> Recipe:
    base = Recipe(
        optimizer=SGDSettings(lr=0.1),
        duration=epochs(2.5),
        batch_size=8,
        seed=5,
        augmentation=AUGMENTATION,
    )
    return replace(base, **changes)


def feed_of(settings_: Recipe, rank: int = 0, size: int = 1, source: Any = SOURCE) -> Feed:
    clock = recipe_clock(settings_, source.num_examples)
    return Feed(source, settings_, clock, World(CPU, rank=rank, size=size))


def portions(feed: Feed, limit: int = 10_000) -> list[tuple[int, int, Portion]]:
    """(epoch, offset, portion) of every update from where the feed stands."""
    found = []
    while feed.examples < feed.total_examples and len(found) < limit:
        portion = feed.next()
        found.append((feed.epoch, feed.offset, portion))
        feed.advance(portion.num_examples)
    return found


def bitwise_equal(one: Batch, other: Batch) -> bool:
    return all(
        a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
        for a, b in zip(one, other, strict=True)
    )


def joined(batches: list[Batch]) -> Batch:
    return Batch(*(torch.cat(column) for column in zip(*batches, strict=True)))


# --- pure functions --------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(count=st.integers(1, 500), size=st.integers(1, 20), ghost=st.integers(1, 40))
def test_rank_shares_partition_the_batch_in_order_by_whole_ghosts_and_evenly(count, size, ghost):
    shares = [rank_share(count, rank=r, world_size=size, ghost=ghost) for r in range(size)]
    assert shares[0][0] == 0
    assert shares[-1][1] == count
    assert all(stop == start for (_, stop), (start, _) in pairwise(shares))
    assert all(start % ghost == 0 or start == count for start, _ in shares)
    ghosts = [-(-(stop - start) // ghost) for start, stop in shares]
    assert sum(ghosts) == -(-count // ghost)
    assert max(ghosts) - min(ghosts) <= 1


@LAW
@given(count=st.integers(1, 60), micro=st.one_of(st.none(), SIZES))
def test_micro_batches_partition_a_batch_in_order_without_copying(count, micro):
    inputs = {"a": torch.arange(count), "b": (torch.arange(2 * count).view(count, 2),)}
    batch = Batch(inputs, torch.arange(count) * 3, torch.arange(count))
    parts = list(micro_batches(batch, micro))
    assert torch.equal(torch.cat([part.indices for part in parts]), batch.indices)
    assert torch.equal(torch.cat([part.inputs["b"][0] for part in parts]), inputs["b"][0])
    assert torch.equal(torch.cat([part.targets for part in parts]), batch.targets)
    lengths = [len(part.indices) for part in parts]
    assert all(length == (micro or count) for length in lengths[:-1])
    assert 1 <= lengths[-1] <= (micro or count)
    storage = inputs["a"].untyped_storage().data_ptr()
    assert all(p.inputs["a"].untyped_storage().data_ptr() == storage for p in parts)


@LAW
@given(
    batch_size=st.floats(0.01, 60),
    position=st.integers(0, 36),
    left=st.integers(1, 100),
)
def test_an_update_is_the_batch_size_or_what_is_left_of_epoch_and_run(batch_size, position, left):
    size = update_size(batch_size, position, 37, left)
    assert size == max(1, min(max(1, round(batch_size)), 37 - position, left))
    assert update_size(batch_size, position, None, left) == min(max(1, round(batch_size)), left)


# --- what reaches the ranks ------------------------------------------------------------------


def divisions() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "size": st.integers(1, 6),
            "ghost": st.integers(1, 6),
            "ghosts_per_micro": st.integers(1, 3),
            "batch_size": st.integers(1, NUM_EXAMPLES),
            "growth": st.sampled_from([1.0, 0.2, 3.0]),
        }
    )


@LAW
@given(division=divisions())
def test_the_same_examples_and_pixels_reach_the_ranks_together_however_divided(division):
    schedules = Schedules(batch_size=Linear(start=1.0, end=division["growth"]))
    undivided = recipe(batch_size=division["batch_size"], schedules=schedules)
    divided = replace(
        undivided,
        ghost_batch_size=division["ghost"],
        micro_batch_size=division["ghost"] * division["ghosts_per_micro"],
    )
    size = division["size"]
    ranks = [portions(feed_of(divided, rank, size)) for rank in range(size)]
    alone = portions(feed_of(undivided))
    assert {len(found) for found in ranks} == {len(alone)}
    for (epoch, offset, whole), *parts in zip(alone, *ranks, strict=True):
        received = [
            piece
            for _, _, portion in parts
            if portion.counted
            for piece in micro_batches(portion.batch, divided.micro_batch_size)
        ]
        assert bitwise_equal(joined(received), whole.batch)
        assert all(part[:2] == (epoch, offset) for part in parts)
        assert all(part[2].num_examples == whole.num_examples for part in parts)
        for _, _, portion in parts:  # a placeholder is one example of the same update
            assert portion.counted or portion.batch.indices[0] in whole.batch.indices
            assert portion.counted or len(portion.batch.indices) == 1


@LAW
@given(
    batch_size=st.integers(1, NUM_EXAMPLES),
    growth=st.sampled_from([1.0, 0.3, 2.0]),
    seed=st.integers(0, 2**40),
)
def test_task_batch_makes_every_delivered_batch_again_bit_for_bit(batch_size, growth, seed):
    schedules = Schedules(batch_size=Linear(start=1.0, end=growth))
    settings_ = recipe(batch_size=batch_size, schedules=schedules, seed=seed)
    for epoch, offset, portion in portions(feed_of(settings_)):
        size = portion.num_examples
        again = TASK.batch(epoch, offset, batch_size=size, seed=seed, augmentation=AUGMENTATION)
        assert bitwise_equal(again, portion.batch)


@LAW
@given(
    start=st.integers(0, 20),
    batch_size=st.integers(3, 20),
    rank=st.integers(0, 2),
    ghost=st.one_of(st.none(), st.integers(1, 5)),
)
def test_a_feed_may_start_anywhere(start, batch_size, rank, ghost):
    schedules = Schedules(batch_size=Linear(start=1.0, end=2.0))
    settings_ = recipe(batch_size=batch_size, ghost_batch_size=ghost, schedules=schedules)
    trained, fresh = feed_of(settings_, rank, 3), feed_of(settings_, rank, 3)
    portions(trained, limit=start)
    fresh.load_state_dict(trained.state_dict())
    assert fresh.progress == trained.progress
    assert fresh.epochs == trained.epochs
    rest, expected = portions(fresh), portions(trained)
    assert [found[:2] for found in rest] == [found[:2] for found in expected]
    for (_, _, one), (_, _, other) in zip(rest, expected, strict=True):
        assert bitwise_equal(one.batch, other.batch)
        assert (one.num_examples, one.counted) == (other.num_examples, other.counted)


def test_an_epoch_holds_every_example_once_in_another_order_than_the_one_before():
    seen: dict[int, list[int]] = {}
    for epoch, _, portion in portions(feed_of(recipe(duration=epochs(3)))):
        seen.setdefault(epoch, []).extend(portion.batch.indices.tolist())
    assert [sorted(order) for order in seen.values()] == [list(range(NUM_EXAMPLES))] * 3
    assert len({tuple(order) for order in seen.values()}) == 3


def test_augmentation_draws_differ_between_epochs_and_seeds():
    def pixels(epoch: int, seed: int) -> Tensor:
        indices = [torch.arange(NUM_EXAMPLES)]
        made = SOURCE.batches(indices, epoch=epoch, seed=seed, augmentation=AUGMENTATION)
        return next(iter(made)).inputs

    assert not torch.equal(pixels(0, 1), pixels(1, 1))
    assert not torch.equal(pixels(0, 1), pixels(0, 2))


# --- the position ----------------------------------------------------------------------------


def test_the_next_portion_stays_the_same_until_it_is_advanced_past():
    feed = feed_of(recipe())
    first, again = feed.next(), feed.next()
    assert bitwise_equal(first.batch, again.batch)
    feed.advance(first.num_examples)
    assert not torch.equal(feed.next().batch.indices, first.batch.indices)


def test_a_feed_goes_back_to_a_saved_position():
    feed = feed_of(recipe())
    state = feed.state_dict()
    expected = portions(feed, limit=3)
    feed.next()
    feed.load_state_dict(state)
    for (_, _, one), (_, _, other) in zip(portions(feed, limit=3), expected, strict=True):
        assert bitwise_equal(one.batch, other.batch)


def test_after_the_last_update_of_the_run_there_is_no_other():
    feed = feed_of(recipe())
    portions(feed)
    with pytest.raises(InputError, match=r"duration must last for another update, got 92 examples"):
        feed.next()


def test_after_an_update_made_by_hand_the_feed_reads_on_from_the_new_position():
    for num_read in (0, 1):
        feed = feed_of(recipe(batch_size=8))
        for _ in range(num_read):
            feed.next()
        feed.advance(5)
        expected = TASK.batch(0, 5, batch_size=8, seed=5, augmentation=AUGMENTATION)
        assert bitwise_equal(feed.next().batch, expected)


def stream_task() -> Task:
    rows = [(torch.tensor([float(i)]), i % 2) for i in range(20)]
    held_out = (torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64))
    return Task(build_model=lambda: nn.Linear(1, 2), train=lambda: iter(rows), validation=held_out)


def test_a_stream_is_read_on_from_its_position():
    task = stream_task()
    settings_ = Recipe(optimizer=SGDSettings(lr=0.1), batch_size=6, duration=examples(50))
    feed = feed_of(settings_, source=task.source("train"))
    found = portions(feed, limit=5)
    assert [len(portion.batch.indices) for _, _, portion in found] == [6, 6, 6, 2, 6]
    other = feed_of(settings_, source=task.source("train"))
    other.load_state_dict(feed.state_dict())
    assert torch.equal(other.next().batch.inputs, feed.next().batch.inputs)
    assert feed.next().batch.inputs.flatten().tolist() == [6.0, 7.0, 8.0, 9.0, 10.0, 11.0]


def test_a_stream_of_unknown_length_is_refused_on_several_ranks():
    task = stream_task()
    settings_ = recipe(duration=examples(50))
    with pytest.raises(InputError, match="train must have a known length to be shared by several"):
        feed_of(settings_, 0, 2, task.source("train"))
