"""K-FAC as part of a recipe: what it may stand beside, its place in an update, its records."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.recipe import (
    AdamWSettings,
    AdaptiveBatchSize,
    BlockSettings,
    ClipGlobalNorm,
    FisherNormBound,
    FixedRefresh,
    KFACSettings,
    LocalUpdates,
    LossSettings,
    Recipe,
    RecordSettings,
    Schedules,
    SGDSettings,
    SGDWSettings,
    Stopping,
)
from anybatch.records import EventRecord, StepRecord
from anybatch.schedules import Constant, Linear, epochs, updates
from anybatch.task import Task
from anybatch.training.snapshot import preserved_training
from anybatch.training.training import Training

OFTEN = KFACSettings(refresh=FixedRefresh(statistics_every=2, inverse_every=4), damping=0.01)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 3))


def make_task(**changes: Any) -> Task:
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(96, 6, generator=random)
    data = inputs, (inputs[:, :3] + 0.5 * inputs[:, 3:] ** 2).argmax(1)
    own = {"build_model": network, "train": data, "validation": data}
    return Task(**(own | changes))


def recipe_of(**changes: Any) -> Recipe:
    own: dict[str, Any] = {
        "optimizer": SGDSettings(lr=0.1, momentum=0.9),
        "duration": updates(16),
        "batch_size": 32,
        "preconditioner": OFTEN,
        "stopping": Stopping(evaluate_every=epochs(2)),
        "records": RecordSettings(log_every=4),
    }
    return Recipe(**(own | changes))


def weights(training: Training) -> list[Tensor]:
    return [p.detach().clone() for p in training.model.parameters()]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": AdamWSettings(lr=1e-3)}, r"optimizer\.name must be sgd, sgdw or lars"),
        ({"blocks": BlockSettings(size=8, clip_norm=1.0)}, "blocks must be left out with a prec"),
        ({"batch_control": AdaptiveBatchSize(), "duration": epochs(3)}, "batch_control must be l"),
        ({"communication": LocalUpdates(every=2)}, "communication must be left out with a prec"),
        (
            {"preconditioner": None, "schedules": Schedules(damping=Linear())},
            r"schedules\.damping must come with a preconditioner",
        ),
        (
            {"preconditioner": None, "schedules": Schedules(refresh=Linear(end=2.0))},
            r"schedules\.refresh must come with a preconditioner",
        ),
    ],
)
def test_what_cannot_stand_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Training(make_task(), recipe_of(**changes))


def test_a_loss_of_the_tasks_own_has_no_distribution() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    sampled = dataclasses.replace(OFTEN, fisher="sampled")
    with pytest.raises(InputError, match=r"preconditioner\.fisher must be \"empirical\""):
        Training(make_task(loss=loss), recipe_of(preconditioner=sampled))
    with Training(make_task(loss=loss), recipe_of()) as training:
        assert list(training)


def test_it_comes_before_the_transforms_of_the_gradient() -> None:
    """A clip of the preconditioned gradient bounds the step that is taken."""
    recipe = recipe_of(gradient=(ClipGlobalNorm(max_norm=1e-3),), optimizer=SGDSettings(lr=1.0))
    with Training(make_task(), recipe) as training:
        before = weights(training)
        training.one_step.train_mode()
        training.step()
        steps = [a - b for a, b in zip(before, weights(training), strict=True)]
        norm = torch.cat([step.flatten() for step in steps]).norm()
        assert float(norm) == pytest.approx(1e-3, rel=1e-3)
        assert training.one_step.transforms.norm is not None
        assert float(training.one_step.transforms.norm) > 1e-3


def test_a_gradient_that_is_not_transformed_is_the_losss_own() -> None:
    with Training(make_task(), recipe_of()) as training:
        training.one_step.train_mode()
        portion = training.feed.next()
        training.one_step.gradient(portion, transformed=False)
        raw = [p.grad.clone() for p in training.model.parameters() if p.grad is not None]
        assert training.one_step.preconditioning is not None
        assert training.one_step.preconditioning.kfac.updates == 0
    with Training(make_task(), recipe_of(preconditioner=None)) as plain:
        plain.one_step.train_mode()
        plain.one_step.gradient(plain.feed.next())
        expected = [p.grad for p in plain.model.parameters() if p.grad is not None]
        for one, other in zip(raw, expected, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("fisher", ["empirical", "sampled", "exact"])
def test_saved_in_an_interval_and_gone_on_with_bit_by_bit(fisher: Any) -> None:
    recipe = recipe_of(preconditioner=dataclasses.replace(OFTEN, fisher=fisher))
    with Training(make_task(), recipe) as whole:
        list(whole)
        expected = weights(whole)
    with Training(make_task(), recipe) as first:
        for _ in range(5):
            first.step()
        state = copy.deepcopy(first.state_dict())
    with Training(make_task(), recipe) as second:
        second.load_state_dict(state)
        list(second)
        assert equal(weights(second), expected)


def test_a_measurement_leaves_no_trace_in_the_factors() -> None:
    with Training(make_task(), recipe_of()) as training:
        for _ in range(5):
            training.step()
        before = copy.deepcopy(training.state_dict()["step"]["preconditioner"])
        with preserved_training(training):
            for _ in range(4):
                training.step()
        after = training.state_dict()["step"]["preconditioner"]
        for name, factor in before["flow"]["factors"].items():
            now = after["flow"]["factors"][name]
            assert torch.equal(now["running"], factor["running"])
            assert torch.equal(now["inverse"], factor["inverse"])
        assert after["flow"]["refresh"] == before["flow"]["refresh"]


def test_damping_and_intervals_follow_their_schedules() -> None:
    schedules = Schedules(damping=Linear(start=10.0, end=0.0), refresh=Linear(start=1.0, end=5.0))
    with Training(make_task(), recipe_of(schedules=schedules)) as training:
        assert training.one_step.preconditioning is not None
        kfac = training.one_step.preconditioning.kfac
        seen = []
        for _ in range(16):
            training.step()
            seen.append(kfac.damping)
        expected = [0.01 * 10 * (1 - number / 16) for number in range(16)]
        assert seen == pytest.approx(expected)
        assert kfac.refresh_factor == pytest.approx(1 + 4 * 15 / 16)
        # Statistics every 2 updates, then 3, 6 and 9 as the factor grows: not 8 times.
        assert kfac.counts()["refreshes"] < 5 * 5


def test_records_tell_the_damping_and_what_was_refreshed_so_far() -> None:
    with Training(make_task(), recipe_of(schedules=Schedules(damping=Linear(end=0.5)))) as training:
        records = [r for r in training if isinstance(r, StepRecord) and r.update % 4 == 0]
    assert [record.update for record in records] == [4, 8, 12, 16]
    expected = [0.01 * (1 - 0.5 * (record.update - 1) / 16) for record in records]
    assert [record.damping for record in records] == pytest.approx(expected)
    factors = 5  # two of each linear layer, one of the norm
    assert [record.refreshes for record in records] == [factors * n for n in (2, 4, 6, 8)]
    assert [record.refreshes_saved for record in records] == [factors * n for n in (2, 4, 6, 8)]
    assert [record.inversions for record in records] == [factors * n for n in (2, 3, 4, 5)]
    assert [record.inversions_saved for record in records] == [factors * n for n in (2, 5, 8, 11)]
    with Training(make_task(), recipe_of(preconditioner=None)) as plain:
        assert all(r.damping is r.refreshes is None for r in plain if isinstance(r, StepRecord))


def test_mean_and_sum_take_the_same_steps() -> None:
    free = dataclasses.replace(OFTEN, bound=FisherNormBound(largest=0.05))
    plain = SGDSettings(lr=0.1)
    with Training(make_task(), recipe_of(optimizer=plain, preconditioner=free)) as mean:
        list(mean)
    summed = recipe_of(
        optimizer=SGDSettings(lr=0.1 / 32), preconditioner=free, loss=LossSettings(reduction="sum")
    )
    with Training(make_task(), summed) as training:
        list(training)
        for one, other in zip(weights(training), weights(mean), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.fixture
def _one_bad_statistic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from anybatch.kfac.factors import Factors

    take = Factors.take

    def spoiled(self: Factors, statistics: Any, update: int) -> None:
        first = dict(statistics) | {"3.A": torch.full_like(statistics["3.A"], math.nan)}
        take(self, first if not self.running else statistics, update)

    monkeypatch.setattr(Factors, "take", spoiled)
    return


@pytest.mark.usefixtures("_one_bad_statistic")
def test_inversions_that_fail_are_events_of_the_run() -> None:
    with Training(make_task(), recipe_of()) as training:
        events = [record for record in training if isinstance(record, EventRecord)]
        assert all(torch.isfinite(w).all() for w in weights(training))
    assert [event.name for event in events] == ["inversion-failed"]
    assert "3.A" in events[0].sentence
    assert events[0].values == {"3.A: none": 1.0}


def test_sgdw_and_decay_come_after_it() -> None:
    """A decoupled decay shrinks weights by itself: the curvature does not divide it."""
    shrunk = recipe_of(optimizer=SGDWSettings(lr=1e-12, momentum=0.0, weight_decay=0.01))
    with Training(make_task(), shrunk) as training:
        before = weights(training)
        training.one_step.train_mode()
        training.step()
        for old, new in zip(before, weights(training), strict=True):
            torch.testing.assert_close(new, old * 0.99)


def test_a_damping_that_comes_to_nothing_is_refused() -> None:
    schedules = Schedules(damping=Constant(value=0.0))
    training = Training(make_task(), recipe_of(schedules=schedules))
    with training, pytest.raises(InputError, match=r"schedules\.damping must stay > 0, got 0"):
        training.step()
