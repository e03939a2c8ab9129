"""A range test leaves everything bit for bit as found: the next 50 updates are those without it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anybatch import (
    AdamWSettings,
    Augmentation,
    ClipGlobalNorm,
    ExponentialAverage,
    LRRangeSettings,
    Recipe,
    Schedules,
    SGDSettings,
    Task,
    Training,
    Warmup,
    fraction,
    measure_lr_range,
    updates,
)
from anybatch.data.augmentation import Normalization
from anybatch.data.resident import ResidentSource
from anybatch.measuring.loops import TrainingLoop

SETTINGS = LRRangeSettings(start_lr=1e-3, num_updates=40, probe_updates=10)


class Net(nn.Module):
    """BatchNorm, dropout, a buffer that is not saved, a part that stays in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.frozen = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.1)
        self.last = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()), persistent=False)
        self.frozen.eval()

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.get_buffer("calls").add_(1.0)
        hidden = torch.relu(self.norm(self.first(x))).mean((2, 3))
        return self.last(self.drop(self.frozen(hidden)))


def make_task() -> Task:
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(300) % 3
    images = torch.randint(0, 100, (300, 8, 8, 1), generator=generator)
    images += 70 * labels.reshape(-1, 1, 1, 1)
    normalization = Normalization(mean=(0.5,), std=(0.25,))
    train = ResidentSource.from_arrays(
        images.to(torch.uint8), labels, normalization=normalization, split="train"
    )
    return Task(build_model=Net, train=train, validation=train.subset(torch.arange(60)))


RECIPES = {
    "sgd": Recipe(
        optimizer=SGDSettings(lr=0.05, momentum=0.9),
        batch_size=32,
        duration=updates(120),
        augmentation=Augmentation(crop_padding=1, flip="random"),
        averaging=ExponentialAverage(decay=0.9),
    ),
    "adamw": Recipe(
        optimizer=AdamWSettings(lr=0.01),
        batch_size=32,
        micro_batch_size=16,
        ghost_batch_size=4,
        duration=updates(120),
        schedules=Schedules(lr=Warmup(duration=fraction(0.1))),
        gradient=(ClipGlobalNorm(max_norm=0.5),),
    ),
}


def fifty_more(training: Training) -> list[Any]:
    """Everything that 50 updates do, and the draws of every generator after them."""
    losses = []
    for _ in range(50):
        training.one_step.train_mode()
        training.step()
        losses += [vector.clone() for vector in training.one_step.losses]
    draws = [torch.rand(2), torch.tensor(np.random.rand(2)), torch.tensor(random.random())]  # noqa: NPY002
    state = training.one_step.state_dict()
    optimizer = [
        value
        for parameter in state["optimizer"]["state"].values()
        for value in parameter.values()
        if isinstance(value, Tensor)
    ]
    modes = [torch.tensor(module.training) for module in training.model.modules()]
    kept = [value.clone() for value in training.kept_model.state_dict().values()]
    buffers = [buffer.clone() for buffer in training.model.buffers()]
    position = torch.tensor([training.feed.epoch, training.feed.offset, training.feed.examples])
    groups = [torch.tensor(g["lr"]) for g in training.optimizer.param_groups]
    return [*losses, *draws, *state["model"].values(), *optimizer, *modes, *kept, *buffers,
            position, *groups]  # fmt: skip


def measured_between(recipe: Recipe, between: Callable[[Training], None]) -> list[Any]:
    with Training(make_task(), recipe) as training:
        training.one_step.train_mode()
        for _ in range(7):
            training.step()
        between(training)
        return fifty_more(training)


def same(ours: list[Any], others: list[Any]) -> bool:
    return len(ours) == len(others) and all(map(torch.equal, ours, others))


def nothing(training: Training) -> None:
    pass


def range_test(training: Training) -> None:
    found = measure_lr_range(training, settings=replace(SETTINGS, repeats=2))
    assert max(found.samples["stage"]) == 1  # ramps and short trainings


@pytest.mark.parametrize("name", RECIPES)
def test_the_next_50_updates_are_the_same(name: str) -> None:
    assert same(
        measured_between(RECIPES[name], nothing), measured_between(RECIPES[name], range_test)
    )


def test_what_is_left_behind_would_be_seen() -> None:
    def leaves_one_draw(training: Training) -> None:
        range_test(training)
        torch.rand(1)

    def leaves_the_lr(training: Training) -> None:
        training.one_step.hyperparameters.lr_factor = 1.001

    recipe = RECIPES["sgd"]
    without = measured_between(recipe, nothing)
    assert not same(without, measured_between(recipe, leaves_one_draw))
    assert not same(without, measured_between(recipe, leaves_the_lr))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [5, 50])  # inside of the ramp; inside of a short training
def test_also_after_an_exception_inside(
    error: type[BaseException], at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, calls = TrainingLoop.update, [0]

    def breaks(self: TrainingLoop, lr: float, *, with_metric: bool = False) -> Any:
        calls[0] += 1
        if calls[0] == at:
            self._training.gradient(self._training.feed.next())  # half an update is done
            raise error("in the middle")
        return update(self, lr, with_metric=with_metric)

    def interrupted(training: Training) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(TrainingLoop, "update", breaks)
            with pytest.raises(error, match="in the middle"):
                measure_lr_range(training, settings=SETTINGS)

    recipe = RECIPES["sgd"]
    assert same(measured_between(recipe, nothing), measured_between(recipe, interrupted))
    assert calls[0] == at


def test_a_task_leaves_no_trace_either() -> None:
    task, recipe = make_task(), RECIPES["sgd"]
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    threads = torch.get_num_threads()
    measure_lr_range(task, recipe, settings=SETTINGS)
    drawn = torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    assert torch.equal(drawn[0], torch.rand(3))
    assert (drawn[1] == np.random.rand(3)).all()  # noqa: NPY002
    assert drawn[2] == random.random()
    assert torch.get_num_threads() == threads


# --- a loop of one's own --------------------------------------------------------------------------


class Own:
    """A loop with two optimizers, an averaged model, a gradient scaler and a loader of its own."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = Net()
        self.head = nn.Linear(3, 3).bfloat16()
        batch = make_task().batch(0, 0, batch_size=300)
        self.data = batch.inputs, batch.targets
        self.ema = torch.optim.swa_utils.AveragedModel(self.model)
        groups = [
            {"params": self.model.first.parameters(), "lr": 0.001},
            {"params": [*self.model.norm.parameters(), *self.model.last.parameters()]},
        ]
        self.optimizer = torch.optim.Adam(groups, lr=0.01)
        self.other = torch.optim.SGD(self.head.parameters(), lr=0.1, momentum=0.9)
        self.generator = torch.Generator().manual_seed(9)
        self.counts = {"updates": 0}
        self.model.train()

    def step(self) -> tuple[Tensor, float]:
        images, labels = self.data
        chosen = torch.randint(0, len(images), (16,), generator=self.generator)
        noise = torch.randn(1) + np.random.rand() + random.random()  # noqa: NPY002
        outputs = self.head(self.model(images[chosen]).bfloat16()).float()
        loss = nn.functional.cross_entropy(outputs, labels[chosen]) + 0.0 * noise.sum()
        self.optimizer.zero_grad()
        self.other.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.other.step()
        self.ema.update_parameters(self.model)
        self.counts["updates"] += 1
        return loss.detach(), float((outputs.argmax(1) == labels[chosen]).float().mean())

    def restore(self) -> list[Any]:
        return [self.model, self.head, self.ema, self.other, self.generator, self.counts]

    def everything(self) -> list[Any]:
        for _ in range(50):
            self.step()
        states = [
            value
            for optimizer in (self.optimizer, self.other)
            for values in optimizer.state.values()
            for value in values.values()
            if isinstance(value, Tensor)
        ]
        modules = (self.model, self.head, self.ema)
        return [
            *(value.clone() for module in modules for value in module.state_dict().values()),
            *(value.clone() for value in self.model.buffers()),
            *(p.grad.clone() for p in self.model.parameters() if p.grad is not None),
            *states,
            torch.tensor([group["lr"] for group in self.optimizer.param_groups]),
            torch.tensor(self.counts["updates"]),
            torch.rand(2),
        ]


def own_loop(between: Callable[[Own], None]) -> list[Any]:
    own = Own()
    for _ in range(7):
        own.step()
    between(own)
    return own.everything()


def test_an_own_loop_is_left_as_found() -> None:
    def measure(own: Own) -> None:
        found = measure_lr_range(
            step=own.step,
            optimizer=own.optimizer,
            restore=own.restore(),
            settings=replace(SETTINGS, repeats=2),
        )
        assert "not-restored" not in {finding.name for finding in found.findings}
        assert own.other.param_groups[0]["lr"] == 0.1

    assert same(own_loop(lambda own: None), own_loop(measure))


@pytest.mark.parametrize("missing", ["model", "generator", "counts", "ema", "other"])
def test_what_restore_does_not_get_is_not_put_back(missing: str) -> None:
    def measure(own: Own) -> None:
        restore = [thing for thing in own.restore() if thing is not getattr(own, missing)]
        measure_lr_range(step=own.step, optimizer=own.optimizer, restore=restore, settings=SETTINGS)

    assert not same(own_loop(lambda own: None), own_loop(measure))


def test_an_own_loop_is_left_as_found_after_an_exception() -> None:
    def measure(own: Own) -> None:
        calls = [0]

        def step() -> Any:
            calls[0] += 1
            answer = own.step()
            if calls[0] == 13:
                raise KeyboardInterrupt
            return answer

        with pytest.raises(KeyboardInterrupt):
            measure_lr_range(
                step=step, optimizer=own.optimizer, restore=own.restore(), settings=SETTINGS
            )

    assert same(own_loop(lambda own: None), own_loop(measure))
