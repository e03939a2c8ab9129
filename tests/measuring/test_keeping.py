"""What a measurement keeps of a loop: each kind of thing by itself, put back as often as wanted."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anybatch.measuring.keeping import Kept


def adam(*, steps: int) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    """A parameter with its optimizer, which has taken some steps."""
    parameter = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    for _ in range(steps):
        step(parameter, optimizer)
    return parameter, optimizer


def step(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    parameter.square().sum().backward()
    optimizer.step()


def found_in(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A copy of all that an optimizer and its parameter hold, as plain values."""
    return {
        "value": parameter.tolist(),
        "gradient": None if parameter.grad is None else parameter.grad.tolist(),
        "state": {
            key: value.tolist() if isinstance(value, Tensor) else value
            for values in optimizer.state.values()
            for key, value in values.items()
        },
        "settings": [
            {key: value for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ],
    }


def spoil(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
    """Everything that a loop may do to them."""
    step(parameter, optimizer)
    optimizer.state[parameter]["more"] = 1
    optimizer.param_groups[0] |= {"lr": 7.0, "betas": (0.5, 0.6), "initial_lr": 7.0}
    assert parameter.grad is not None
    parameter.grad.mul_(3.0)


@pytest.mark.parametrize("steps", [0, 3])  # without a state and a gradient; with both
@pytest.mark.parametrize("given", ["as the optimizer", "in restore"])
def test_an_optimizer_comes_back_with_its_parameters_each_time(given: str, steps: int) -> None:
    parameter, optimizer = adam(steps=steps)
    before, gradient = found_in(parameter, optimizer), parameter.grad
    kept = Kept([optimizer], []) if given == "as the optimizer" else Kept([], [optimizer])
    for _ in range(3):  # a copy that is handed out would be spoiled the second time
        spoil(parameter, optimizer)
        assert found_in(parameter, optimizer)["state"] != before["state"]
        kept.put_back()
        assert found_in(parameter, optimizer) == before
        assert parameter.grad is gradient  # the tensor itself, as others may hold it


def test_the_tensors_of_an_optimizers_state_stay_the_same_ones() -> None:
    """A captured graph, or a compiled step, holds them."""
    parameter, optimizer = adam(steps=2)
    averages = [value for value in optimizer.state[parameter].values() if isinstance(value, Tensor)]
    before, kept = [value.tolist() for value in averages], Kept([optimizer], [])
    step(parameter, optimizer)
    kept.put_back()
    after = [value for value in optimizer.state[parameter].values() if isinstance(value, Tensor)]
    assert all(now is then for now, then in zip(after, averages, strict=True))
    assert [value.tolist() for value in after] == before


def test_a_group_that_is_added_is_taken_away_again() -> None:
    parameter, optimizer = adam(steps=1)
    kept = Kept([optimizer], [])
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    kept.put_back()
    assert [group["params"] for group in optimizer.param_groups] == [[parameter]]


def test_a_scaler_forgets_what_it_has_unscaled() -> None:
    parameter, optimizer = adam(steps=0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    kept = Kept([optimizer], [scaler])
    assert kept.scales() == [8.0]
    for _ in range(2):  # a second time in the same update is refused
        scaler.scale(parameter.sum()).backward()
        scaler.unscale_(optimizer)
        kept.put_back()


def test_a_tensor_lr_keeps_its_identity_and_its_value() -> None:
    parameter = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=torch.tensor(0.1))
    lr, kept = optimizer.param_groups[0]["lr"], Kept([optimizer], [])
    for _ in range(2):
        lr.fill_(5.0)
        kept.put_back()
        assert optimizer.param_groups[0]["lr"] is lr
        assert lr == torch.tensor(0.1)
    optimizer.param_groups[0]["lr"] = 5.0
    kept.put_back()
    assert optimizer.param_groups[0]["lr"] is lr


def test_a_module_comes_back_with_buffers_gradients_and_the_mode_of_each_part() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
    module.register_buffer("calls", torch.zeros(()), persistent=False)
    module[1].eval()
    module[0].weight.grad = torch.ones(2, 3)

    def found() -> list[Any]:
        tensors = [*module.parameters(), *module.buffers()]
        gradients = [None if p.grad is None else p.grad.tolist() for p in module.parameters()]
        return [[t.tolist() for t in tensors], gradients, [m.training for m in module.modules()]]

    before, kept = found(), Kept([], [module])
    for _ in range(2):
        module.train()
        module(torch.randn(8, 3)).square().sum().backward()
        with torch.no_grad():
            for tensor in [*module.parameters(), *module.buffers()]:
                tensor += 1
        module[2].eval()
        assert all(now != then for now, then in zip(found(), before, strict=True))
        kept.put_back()
        assert found() == before
    assert kept.not_covered == []


class Counting(nn.Module):
    """A buffer that is replaced, not filled; a state beside the tensors; a part to be frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.seen = [1]

    def get_extra_state(self) -> list[int]:
        return self.seen

    def set_extra_state(self, state: list[int]) -> None:
        self.seen = state


def test_what_a_module_replaces_is_the_same_again() -> None:
    module = Counting()
    calls, kept = module.get_buffer("calls"), Kept([], [module])
    for _ in range(2):
        module.get_buffer("calls").add_(1.0)
        module.calls = torch.tensor(7.0)
        module.register_buffer("more", torch.ones(()))
        module.frozen.requires_grad_(True)
        module.seen.append(2)
        kept.put_back()
        assert dict(module.named_buffers()) == {"calls": calls}
        assert module.get_buffer("calls") is calls
        assert float(calls) == 0.0
        assert not module.frozen.requires_grad
        assert module.seen == [1]


def test_things_in_containers_are_kept_as_well() -> None:
    module, generator = nn.Linear(1, 1), torch.Generator().manual_seed(1)
    before = module.weight.tolist()
    kept = Kept([], [{"models": [module], "generator": generator, "name": "loop"}])
    first = float(torch.rand((), generator=generator))
    nn.init.zeros_(module.weight)
    kept.put_back()
    assert module.weight.tolist() == before
    assert float(torch.rand((), generator=generator)) == first
    assert kept.not_covered == []


class Broken(dict[str, Any]):
    """Cannot be put back."""

    def clear(self) -> None:
        raise RuntimeError("no")


def test_one_thing_that_cannot_be_put_back_does_not_keep_the_others_away() -> None:
    first, last = torch.ones(1), torch.ones(1)
    kept = Kept([], [first, Broken(), last])
    first.zero_()
    last.zero_()
    drawn = random.random()
    with pytest.raises(RuntimeError, match="no"):
        kept.put_back()
    assert (float(first), float(last)) == (1.0, 1.0)
    assert random.random() == drawn


class Counter:
    """Hands out its own state, and takes over the one that it is given, as loaders do."""

    def __init__(self) -> None:
        self.state: dict[str, list[int]] = {"seen": [1, 2]}

    def state_dict(self) -> dict[str, list[int]]:
        return self.state

    def load_state_dict(self, state: dict[str, list[int]]) -> None:
        self.state = state


def _more(counter: Counter) -> None:
    counter.state["seen"].append(3)


def _add(mapping: dict[str, Any]) -> None:
    mapping["list"].append(2)
    mapping["new"] = 1


def _push(items: list[Any]) -> None:
    items[0].append(9)
    items.append(9)


def _fill(tensor: Tensor) -> None:
    tensor.fill_(9.0)


@pytest.mark.parametrize(
    ("thing", "change"),
    [
        (Counter(), _more),
        ({"list": [1], "number": 1}, _add),
        ([[1], 2], _push),
        (torch.ones(3), _fill),
    ],
    ids=["state_dict", "mapping", "list", "tensor"],
)
def test_a_state_a_container_and_a_tensor_come_back_each_time(
    thing: Any, change: Callable[[Any], None]
) -> None:
    before, kept = plainly(copy.deepcopy(thing)), Kept([], [thing])
    for _ in range(3):
        change(thing)
        assert plainly(thing) != before
        kept.put_back()
        assert plainly(thing) == before


def plainly(thing: Any) -> Any:
    if isinstance(thing, Counter):
        return thing.state
    return thing.tolist() if isinstance(thing, Tensor) else thing


GENERATORS: dict[str, tuple[Callable[[], Any], Callable[[Any], float]]] = {
    "torch": (
        lambda: torch.Generator().manual_seed(1),
        lambda g: float(torch.rand((), generator=g)),
    ),
    "numpy": (lambda: np.random.default_rng(2), lambda g: float(g.random())),
    "python": (lambda: random.Random(3), lambda g: float(g.random())),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_draws_the_same_again_each_time(name: str) -> None:
    generator, draw = GENERATORS[name][0](), GENERATORS[name][1]
    kept = Kept([], [generator])
    drawn = set()
    for _ in range(3):
        drawn.add((draw(generator), draw(generator)))
        kept.put_back()
    assert len(drawn) == 1


def test_the_global_generators_draw_the_same_again() -> None:
    def draw() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002

    kept = Kept([], [])
    first = draw()
    assert all(now != then for now, then in zip(draw(), first, strict=True))
    kept.put_back()
    assert draw() == first


def test_with_a_seed_every_generator_draws_other_numbers_the_same_each_time() -> None:
    generators = {name: made() for name, (made, _) in GENERATORS.items()}
    kept = Kept([], list(generators.values()))

    def draw() -> dict[str, float]:
        found = {name: GENERATORS[name][1](generators[name]) for name in GENERATORS}
        return found | {"torch, global": float(torch.rand(())), "python, global": random.random()}

    as_found = draw()
    kept.reseed(5)
    first = draw()
    draw()
    kept.reseed(5)
    assert draw() == first
    kept.reseed(6)
    other = draw()
    kept.put_back()
    assert draw() == as_found
    for name in first:
        assert len({as_found[name], first[name], other[name]}) == 3, name


def test_whether_a_parameter_has_changed_is_seen() -> None:
    parameter, optimizer = adam(steps=1)
    kept = Kept([optimizer], [])
    assert not kept.has_changed()
    step(parameter, optimizer)
    assert kept.has_changed()
    kept.put_back()
    assert not kept.has_changed()


def test_what_cannot_be_kept_is_named_and_nothing_else() -> None:
    module, optimizer = nn.Linear(1, 1), adam(steps=0)[1]
    kept = Kept([optimizer], [module, optimizer, iter([1]), object()])
    assert len(kept.not_covered) == 2
    assert "list_iterator" in kept.not_covered[0]
    assert "object" in kept.not_covered[1]
    (words,) = Kept([optimizer], []).not_covered
    assert "buffers" in words
