"""KFAC as a whole: the maths of a step, the scale contract, failures, and its state."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.kfac.preconditioner import KFAC
from anybatch.recipe_preconditioner import (
    AdaptiveRefresh,
    FisherNormBound,
    FixedRefresh,
    KFACSettings,
    KLBound,
    NoBound,
)

EACH = FixedRefresh(statistics_every=1, inverse_every=1)
FREE = KFACSettings(refresh=EACH, average=0.0, bound=NoBound(), damping=0.01)


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def small_net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    return nn.functional.cross_entropy(model(inputs), targets, reduction=reduction)


def stepped(
    model: nn.Module,
    passes: Callable[[nn.Module, KFAC], None],
    settings: KFACSettings = FREE,
    **options: Any,
) -> tuple[list[Tensor], KFAC]:
    """Preconditioned gradients of a copy of the model after some passes."""
    model = copy.deepcopy(model)
    kfac = KFAC(model, settings=settings, **options)
    passes(model, kfac)
    kfac.step()
    return gradients(model), kfac


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


# --- the maths -----------------------------------------------------------------------------------


def test_a_linear_layer_is_solved_by_its_damped_kronecker_product() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    inputs, targets = torch.randn(10, 4), torch.randint(3, (10,))
    (weight, bias), _ = stepped(model, lambda m, _: loss_of(m, inputs, targets).backward())
    loss_of(model, inputs, targets).backward()
    raw_weight, raw_bias = gradients(model)
    rows = torch.cat([inputs, torch.ones(10, 1)], 1)
    p = model(inputs).detach().softmax(1) - nn.functional.one_hot(targets, 3)
    a, g = rows.T @ rows / 10, p.T @ p / 10
    pi = math.sqrt((a.trace() / 5) / (g.trace() / 3))
    root = math.sqrt(0.01)
    damped = torch.kron(g + root / pi * torch.eye(3), a + pi * root * torch.eye(5))
    v = torch.cat([raw_weight, raw_bias.unsqueeze(1)], 1)
    expected = torch.linalg.solve(damped, v.flatten()).view(3, 5)
    found = torch.cat([weight, bias.unsqueeze(1)], 1)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_norm_is_solved_channel_by_channel() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    nn.init.normal_(model[0].weight)
    inputs, targets = torch.randn(12, 3), torch.randint(3, (12,))
    (scale, shift), _ = stepped(model, lambda m, _: loss_of(m, inputs, targets).backward())
    loss_of(model, inputs, targets).backward()
    raw = torch.stack(gradients(model), 1)
    outputs = model(inputs)
    each = outputs.detach().softmax(1) - nn.functional.one_hot(targets, 3)
    xhat = (inputs - inputs.mean(0)) / (inputs.var(0, unbiased=False) + 1e-5).sqrt()
    for channel in range(3):
        s = torch.stack([each[:, channel] * xhat[:, channel], each[:, channel]], 1)
        fisher = s.T @ s / 12 + 0.01 * torch.eye(2)
        expected = torch.linalg.solve(fisher, raw[channel])
        found = torch.stack([scale[channel], shift[channel]])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_much_damping_gives_the_gradient_over_the_damping() -> None:
    model, inputs, targets = small_net(), torch.randn(8, 4), torch.randint(3, (8,))
    loss_of(model, inputs, targets).backward()
    raw = gradients(model)
    settings = KFACSettings(refresh=EACH, damping=1e10, bound=NoBound())
    found, _ = stepped(copy.deepcopy(model).requires_grad_(), _once(inputs, targets), settings)
    torch.testing.assert_close(flat(found) * 1e10, flat(raw), rtol=1e-3, atol=1e-8)


def _once(inputs: Tensor, targets: Tensor) -> Callable[[nn.Module, KFAC], None]:
    def passes(model: nn.Module, kfac: KFAC) -> None:
        model.zero_grad()
        loss_of(model, inputs, targets).backward()

    return passes


def test_a_step_is_not_longer_than_its_bound_and_keeps_its_direction() -> None:
    model, inputs, targets = small_net(), torch.randn(8, 4), torch.randint(3, (8,))
    loss_of(model, inputs, targets).backward()
    raw = flat(gradients(model))
    free, _ = stepped(model, _once(inputs, targets))
    settings = KFACSettings(
        refresh=EACH, average=0.0, damping=0.01, bound=FisherNormBound(largest=0.05)
    )
    bound, _ = stepped(model, _once(inputs, targets), settings)
    assert float(flat(free) @ raw) > 0.05**2
    length = 0.05 / math.sqrt(float(flat(free) @ raw))
    torch.testing.assert_close(flat(bound), flat(free) * length)


def test_a_bound_of_the_divergence_follows_the_optimizers_lr() -> None:
    inputs, targets = torch.randn(8, 4), torch.randint(3, (8,))
    model = small_net()
    lengths = []
    for lr in (0.1, 0.2):
        own = copy.deepcopy(model)
        optimizer = torch.optim.SGD(own.parameters(), lr=lr)
        settings = KFACSettings(refresh=EACH, damping=0.01, bound=KLBound(largest=1e-4))
        kfac = KFAC(own, optimizer, settings=settings)
        loss_of(own, inputs, targets).backward()
        raw = flat(gradients(own))
        kfac.step()
        lengths.append(flat(gradients(own)).norm())
        assert raw.norm() > 0
    torch.testing.assert_close(lengths[0], 2 * lengths[1])
    with pytest.raises(InputError, match="bound must come with KFAC"):
        KFAC(model, settings=KFACSettings(bound=KLBound()))


class WithOwnScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.scale = small_net(), nn.Parameter(torch.ones(3))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.net(inputs) * self.scale
        return outputs


def test_what_has_no_curvature_takes_a_step_of_comparable_length() -> None:
    model, inputs, targets = WithOwnScale(), torch.randn(8, 4), torch.randint(3, (8,))
    loss_of(model, inputs, targets).backward()
    raw = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    own = copy.deepcopy(model)
    kfac = KFAC(own, settings=FREE)
    own.zero_grad()
    loss_of(own, inputs, targets).backward()
    kfac.step()
    steps = {name: p.grad for name, p in own.named_parameters() if p.grad is not None}
    covered = [name for name in raw if name != "scale"]
    ratio = flat([steps[n] for n in covered]).norm() / flat([raw[n] for n in covered]).norm()
    torch.testing.assert_close(steps["scale"], raw["scale"] * ratio)
    assert "scale" in kfac.explain()


# --- the scale contract --------------------------------------------------------------------------


def two_parts(inputs: Tensor, targets: Tensor) -> Callable[[nn.Module, KFAC], None]:
    def passes(model: nn.Module, kfac: KFAC) -> None:
        for half in (slice(0, 4), slice(4, 8)):
            (loss_of(model, inputs[half], targets[half]) / 2).backward()

    return passes


def unequal_parts(inputs: Tensor, targets: Tensor) -> Callable[[nn.Module, KFAC], None]:
    def passes(model: nn.Module, kfac: KFAC) -> None:
        kfac.begin_update(8)
        for part in (slice(0, 1), slice(1, 8)):
            (loss_of(model, inputs[part], targets[part], "sum") / 8).backward()

    return passes


class Scaler:
    """As torch's GradScaler."""

    def get_scale(self) -> float:
        return 1024.0


@pytest.mark.parametrize("case", ["twice", "scale", "scaler", "sum", "parts", "unequal parts"])
def test_factors_do_not_depend_on_how_the_loss_is_written(case: str) -> None:
    inputs, targets = torch.randn(8, 4), torch.randint(3, (8,))
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3))
    expected_step, expected = stepped(model, _once(inputs, targets))
    unit, options, passes = 1.0, {}, _once(inputs, targets)
    if case == "twice":
        passes = _once(torch.cat([inputs, inputs]), torch.cat([targets, targets]))
    elif case == "scale":
        unit, options = 2.0, {"loss_scale": 2.0}
        passes = lambda m, _: (2 * loss_of(m, inputs, targets)).backward()  # noqa: E731
    elif case == "scaler":
        unit, options = 1024.0, {"loss_scale": Scaler()}
        passes = lambda m, _: (1024 * loss_of(m, inputs, targets)).backward()  # noqa: E731
    elif case == "sum":
        unit, options = 8.0, {"loss_reduction": "sum"}
        passes = lambda m, _: loss_of(m, inputs, targets, "sum").backward()  # noqa: E731
    elif case == "parts":
        passes = two_parts(inputs, targets)
    else:
        passes = unequal_parts(inputs, targets)
    found_step, found = stepped(model, passes, **options)
    factors, others = (k.state_dict()["flow"]["factors"] for k in (expected, found))
    for name, factor in factors.items():
        torch.testing.assert_close(others[name]["running"], factor["running"])
    torch.testing.assert_close(flat(found_step), flat(expected_step) * unit)


@pytest.mark.parametrize("reduction", ["token-mean", "token-sum"])
def test_tokens_are_examples_under_a_loss_by_tokens(reduction: str) -> None:
    inputs, targets = torch.randn(5, 7, 4), torch.randint(3, (5, 7))
    model = small_net()
    _, expected = stepped(model, _once(inputs.flatten(0, 1), targets.flatten()))

    def passes(own: nn.Module, kfac: KFAC) -> None:
        how = reduction.removeprefix("token-")
        outputs = own(inputs).flatten(0, 1)
        nn.functional.cross_entropy(outputs, targets.flatten(), reduction=how).backward()

    _, found = stepped(model, passes, loss_reduction=reduction)
    factors, others = (k.state_dict()["flow"]["factors"] for k in (expected, found))
    for name, factor in factors.items():
        torch.testing.assert_close(others[name]["running"], factor["running"])


def test_the_bound_means_the_same_for_a_sum() -> None:
    inputs, targets = torch.randn(8, 4), torch.randint(3, (8,))
    model = small_net()
    settings = KFACSettings(refresh=EACH, bound=FisherNormBound(largest=0.02))
    mean, _ = stepped(model, _once(inputs, targets), settings)
    summed, _ = stepped(
        model,
        lambda m, _: loss_of(m, inputs, targets, "sum").backward(),
        settings,
        loss_reduction="sum",
    )
    torch.testing.assert_close(flat(summed), 8 * flat(mean))


# --- refreshes -----------------------------------------------------------------------------------


def test_between_refreshes_nothing_is_observed_and_the_inverse_stays() -> None:
    model = small_net()
    settings = KFACSettings(refresh=FixedRefresh(statistics_every=2, inverse_every=4))
    kfac = KFAC(model, settings=settings)
    observed, inverses = [], []
    for _ in range(13):
        observed.append(kfac.observing)
        model.zero_grad()
        loss_of(model, torch.randn(8, 4), torch.randint(3, (8,))).backward()
        kfac.step()
        inverses.append(kfac.state_dict()["flow"]["factors"]["0.A"]["inverse"].clone())
    assert observed == [number % 2 == 0 for number in range(13)]
    changes = [number for number, (a, b) in enumerate(pairwise(inverses), 1) if not a.equal(b)]
    assert changes == [2, 4, 8, 12]  # in 2 early, since the first serves no whole interval
    assert kfac.counts()["inversions"] == 4 * 5
    assert kfac.counts()["inversions_saved"] == 4 * 8
    assert kfac.counts()["refreshes_saved"] == 4 * 6


def test_running_statistics_are_averages_of_what_was_measured() -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    settings = KFACSettings(refresh=EACH, average=0.75)
    kfac = KFAC(model, settings=settings)
    batches = [torch.randn(6, 4) for _ in range(3)]
    for batch in batches:
        model(batch).square().mean().backward()
        kfac.step()
    own = [batch.T @ batch / 6 for batch in batches]
    expected = 0.75 * (0.75 * own[0] + 0.25 * own[1]) + 0.25 * own[2]
    running = kfac.state_dict()["flow"]["factors"]["0.A"]["running"][0]
    torch.testing.assert_close(running, expected)


def test_adaptive_refresh_saves_what_does_not_change() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    kfac = KFAC(model, settings=KFACSettings(refresh=AdaptiveRefresh(similarity=0.1)))
    inputs, targets = torch.randn(64, 4), torch.randint(3, (64,))
    for _ in range(21):  # the weights stay, so the statistics do
        model.zero_grad()
        loss_of(model, inputs, targets).backward()
        kfac.step()
    assert kfac.counts()["refreshes"] == 2 * 7  # after 1, 1, 2, 3, 5, 8 updates
    assert kfac.counts()["refreshes_saved"] == 2 * 14


def test_a_share_of_the_batch_is_measured() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    inputs, targets = torch.randn(8, 4), torch.randint(3, (8,))
    settings = KFACSettings(refresh=EACH, batch_share=0.3)
    _, kfac = stepped(model, _once(inputs, targets), settings)
    kept = torch.cat([inputs[:3], torch.ones(3, 1)], 1)
    factors = kfac.state_dict()["flow"]["factors"]
    torch.testing.assert_close(factors["0.A"]["running"][0], kept.T @ kept / 3)
    p = model(inputs[:3]).detach().softmax(1) - nn.functional.one_hot(targets[:3], 3)
    torch.testing.assert_close(factors["0.G"]["running"][0], p.T @ p / 3)


class WithPositions(nn.Module):
    """Tokens and positions, as language models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(5, 4), nn.Embedding(6, 4)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        outputs: Tensor = self.head(self.norm(hidden))
        return outputs


@pytest.mark.parametrize("reduction", ["mean", "token-mean"])
def test_a_share_of_equal_examples_measures_the_same(reduction: str) -> None:
    tokens = torch.randint(5, (1, 6)).expand(8, 6)

    def passes(model: nn.Module, kfac: KFAC) -> None:
        outputs = model(tokens).flatten(0, 1)
        nn.functional.cross_entropy(outputs, tokens.flatten()).backward()

    model = WithPositions()
    states = []
    for share in (1.0, 0.25):
        settings = KFACSettings(refresh=EACH, batch_share=share)
        _, kfac = stepped(model, passes, settings, loss_reduction=reduction)
        states.append(kfac.state_dict()["flow"]["factors"])
    for name, factor in states[0].items():
        if name != "positions.A" and not (reduction == "token-mean" and "positions" in name):
            torch.testing.assert_close(states[1][name]["running"], factor["running"], msg=name)


# --- failures ------------------------------------------------------------------------------------


class Forgetful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.used(inputs)
        return outputs


def test_a_layer_that_never_fires_is_named_at_the_first_update() -> None:
    model = Forgetful()
    kfac = KFAC(model)
    loss_of(model, torch.randn(8, 4), torch.randint(3, (8,))).backward()
    with pytest.raises(InputError, match="layer unused must take part in the first update"):
        kfac.step()
    model = Forgetful()
    kfac = KFAC(model, settings=KFACSettings(left_out=("un*",)))
    loss_of(model, torch.randn(8, 4), torch.randint(3, (8,))).backward()
    kfac.step()
    assert "left out" in kfac.explain()


def test_a_step_without_a_backward_pass_is_refused() -> None:
    kfac = KFAC(small_net())
    with pytest.raises(InputError, match="must have a backward pass"):
        kfac.step()


@pytest.mark.parametrize("after", [1, 2])
def test_a_second_step_on_the_same_gradients_is_refused(after: int) -> None:
    """Whether statistics were due (in update 1) or not (in update 2)."""
    model = small_net()
    kfac = KFAC(model, settings=KFACSettings(refresh=FixedRefresh(statistics_every=10)))
    for _ in range(after):
        model.zero_grad()
        loss_of(model, torch.randn(8, 4), torch.randint(3, (8,))).backward()
        kfac.step()
    before, state = gradients(model), copy.deepcopy(kfac.counts())
    with pytest.raises(InputError, match=r"kfac\.step\(\) must come once after an update's"):
        kfac.step()
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), before, strict=True))
    assert kfac.counts() == state


@pytest.mark.parametrize("set_to_none", [True, False])
def test_steps_after_skipped_accumulated_and_kept_gradients_are_served(set_to_none: bool) -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kfac = KFAC(model, optimizer, loss_scale=Scaler())
    for number in range(4):
        optimizer.zero_grad(set_to_none=set_to_none)
        for _ in range(1 + number % 2):  # accumulation
            (1024 * loss_of(model, torch.randn(8, 4), torch.randint(3, (8,)))).backward()
        kfac.step()
        if number != 1:  # a scaler skips the optimizer alone
            optimizer.step()
    assert kfac.updates == 4
    loss_of(model, torch.randn(8, 4), torch.randint(3, (8,))).backward()  # on top of the last one
    kfac.step()


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e200])
@pytest.mark.parametrize("when", [0, 3])
def test_a_bad_measurement_never_reaches_the_weights(bad: float, when: int) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3))
    kfac = KFAC(model, settings=KFACSettings(refresh=EACH))
    for number in range(6):
        inputs, targets = torch.randn(8, 4), torch.randint(3, (8,))
        model.zero_grad()
        loss_of(model, inputs, targets).backward()
        if number == when:  # as an overflow on the way would leave them
            for name, total in kfac._capture.sums.items():
                total.view(-1)[0] = bad
                assert name
        kfac.step()
        assert all(torch.isfinite(g).all() for g in gradients(model)), number
    events = kfac.counts()["events"]
    if when == 0 and not math.isfinite(bad):
        assert set(events) == {"0.A", "0.G", "2.F", "3.A", "3.G", "step"}
    healthy = kfac.state_dict()["flow"]["factors"]["3.A"]["inverse"]
    assert torch.isfinite(healthy).all()


@pytest.mark.parametrize("refresh", [EACH, AdaptiveRefresh()], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("bound", [FisherNormBound(), KLBound(), NoBound()], ids=lambda b: b.name)
@pytest.mark.parametrize("size", [1e20, 1e30, 1e38])
@pytest.mark.parametrize("when", [0, 3])
def test_squares_that_overflow_are_counted_and_move_nothing(
    when: int, size: float, bound: Any, refresh: Any
) -> None:
    """A gradient that float32 holds, whose squares it does not."""
    model = WithOwnScale().float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kfac = KFAC(model, optimizer, settings=KFACSettings(refresh=refresh, bound=bound))
    before = [p.detach().clone() for p in model.parameters()]
    for number in range(6):
        optimizer.zero_grad()
        loss = loss_of(model, torch.randn(8, 4).float(), torch.randint(3, (8,)))
        (loss * (size if number == when else 1.0)).backward()
        assert all(torch.isfinite(g).all() for g in gradients(model))
        kfac.step()
        assert all(torch.isfinite(g).all() for g in gradients(model))
        if number == when:
            assert all(not g.any() for g in gradients(model))
        optimizer.step()
    events = kfac.counts()["events"]
    named = "ignored" if when else "none"
    assert {name for name, what in events.items() if named in what} >= {"net.0.G", "net.2.G"}
    assert events["net.2.G"][named] == 1
    assert events["step"] == {"dropped": 1}
    assert all((p - b).abs().max() < 10 for p, b in zip(model.parameters(), before, strict=True))
    again = KFAC(copy.deepcopy(model), optimizer, settings=kfac.settings)
    again.load_state_dict(kfac.state_dict())
    assert again.counts()["events"] == events


def test_a_dead_layer_is_damped_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(-1.0)
    found, kfac = stepped(model, _once(torch.randn(8, 4), torch.randint(3, (8,))))
    assert all(torch.isfinite(g).all() for g in found)
    assert flat(found[:2]).abs().max() == 0
    assert kfac.counts()["inversions"] == 4


def test_models_that_cannot_be_preconditioned_are_refused() -> None:
    with pytest.raises(InputError, match="model must hold a layer that K-FAC covers, got PReLU"):
        KFAC(nn.PReLU())
    model = nn.Sequential(nn.Linear(3, 2))
    kfac = KFAC(model)
    model(torch.randn(4, 3)).square().mean().backward()
    model[0].bias.grad = None
    with pytest.raises(InputError, match=r"the gradient of 0 must be there for weight and bias"):
        kfac.step()


# --- state ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        KFACSettings(refresh=FixedRefresh(statistics_every=2, inverse_every=6)),
        KFACSettings(refresh=AdaptiveRefresh(similarity=0.6)),
        KFACSettings(refresh=FixedRefresh(statistics_every=2, inverse_every=2), fisher="sampled"),
    ],
    ids=["fixed", "adaptive", "sampled"],
)
def test_resumed_in_the_middle_of_an_interval_is_the_same_run(settings: KFACSettings) -> None:
    data = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(12)]

    def train(model: nn.Module, kfac: KFAC, batches: list[Any]) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for inputs, targets in batches:
            optimizer.zero_grad()
            outputs = model(inputs)
            kfac.observe_outputs(outputs)
            nn.functional.cross_entropy(outputs, targets).backward()
            kfac.step()
            optimizer.step()

    model = small_net()
    whole = copy.deepcopy(model)
    kfac = KFAC(whole, settings=settings)
    train(whole, kfac, data)
    kfac = KFAC(model, settings=settings)
    train(model, kfac, data[:5])
    state = copy.deepcopy(kfac.state_dict())
    again = copy.deepcopy(model)
    later = KFAC(again, settings=settings)
    later.load_state_dict(state)
    train(again, later, data[5:])
    assert all(
        torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters(), strict=True)
    )
    assert later.counts()["refreshes"] > kfac.counts()["refreshes"]


def test_a_state_of_another_model_is_refused_by_name() -> None:
    state = KFAC(small_net()).state_dict()
    with pytest.raises(InputError, match=r"factor 2\.[AG] must be a factor of the model"):
        KFAC(nn.Sequential(nn.Linear(4, 6))).load_state_dict(state)


def test_a_state_moves_to_the_models_precision() -> None:
    model = small_net()
    _, kfac = stepped(model, _once(torch.randn(8, 4), torch.randint(3, (8,))))
    single = KFAC(copy.deepcopy(model).float())
    single.load_state_dict(kfac.state_dict())
    assert single.state_dict()["flow"]["factors"]["0.A"]["inverse"].dtype == torch.float32


def test_stages_are_timed_when_asked() -> None:
    model = small_net()
    kfac = KFAC(model)
    kfac.stages.timed = True
    loss_of(model, torch.randn(8, 4), torch.randint(3, (8,))).backward()
    kfac.step()
    assert {"statistics", "exchange", "inversion", "precondition", "write"} <= set(
        kfac.stages.seconds
    )
    assert all(seconds >= 0 for seconds in kfac.stages.seconds.values())


@pytest.mark.parametrize("channels_last", [False, True])
def test_large_single_precision_products_are_those_of_double(channels_last: bool) -> None:
    """On a CPU they are made by another library."""
    model = nn.Sequential(nn.Conv2d(32, 300, 3), nn.Flatten(), nn.Linear(300, 3))
    inputs, targets = torch.randn(20, 32, 3, 3), torch.randint(3, (20,))
    expected, _ = stepped(model, _once(inputs, targets))
    single = copy.deepcopy(model).float()
    if channels_last:
        single = single.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found, _ = stepped(single, _once(inputs.float(), targets))
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).norm() <= 1e-3 * other.norm()


# --- what a review found -------------------------------------------------------------------------


class Alternating(nn.Module):
    """A second head that takes part only when asked."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.heads = nn.Linear(4, 6), nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3)])
        self.both = True

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(inputs))
        outputs: Tensor = self.heads[0](hidden)
        return outputs + self.heads[1](hidden) if self.both else outputs


def test_a_layer_that_is_silent_later_keeps_what_was_known() -> None:
    model = Alternating()
    kfac = KFAC(model, settings=KFACSettings(refresh=EACH))
    kept = None
    for number in range(4):
        model.both = number != 2
        model.zero_grad()
        loss_of(model, torch.randn(8, 4), torch.randint(3, (8,))).backward()
        kfac.step()
        assert all(torch.isfinite(g).all() for g in gradients(model))
        running = kfac.state_dict()["flow"]["factors"]["heads.1.G"]["running"].clone()
        assert (kept is not None and torch.equal(running, kept)) == (number == 2)
        kept = running


def test_passes_before_begin_update_do_not_count() -> None:
    model = small_net()
    kfac = KFAC(model)
    loss = loss_of(model, torch.randn(8, 4), torch.randint(3, (8,)))
    kfac.begin_update(8)
    loss.backward()
    with pytest.raises(InputError, match="must have a backward pass"):
        kfac.step()


def test_a_bound_of_the_divergence_means_the_same_for_a_sum() -> None:
    inputs, targets = torch.randn(8, 4), torch.randint(3, (8,))
    model, steps = small_net(), []
    for reduction, lr in (("mean", 0.8), ("sum", 0.1)):
        own = copy.deepcopy(model)
        optimizer = torch.optim.SGD(own.parameters(), lr=lr)
        settings = KFACSettings(refresh=EACH, bound=KLBound(largest=1e-4))
        kfac = KFAC(own, optimizer, settings=settings, loss_reduction=reduction)  # type: ignore[arg-type]
        loss_of(own, inputs, targets, reduction).backward()
        kfac.step()
        steps.append(flat(gradients(own)) * lr)
    torch.testing.assert_close(steps[0], steps[1])


@pytest.mark.parametrize("fisher", ["exact", "sampled"])
def test_the_models_own_fisher_is_that_of_a_token(fisher: Any) -> None:
    inputs, targets = torch.randn(40, 7, 4), torch.randint(3, (40, 7))
    model, factors = small_net(), []
    settings = KFACSettings(refresh=EACH, fisher=fisher)

    def by_token(own: nn.Module, kfac: KFAC) -> None:
        outputs = own(inputs)
        kfac.observe_outputs(outputs)
        nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten()).backward()

    def by_example(own: nn.Module, kfac: KFAC) -> None:
        outputs = own(inputs.flatten(0, 1))
        kfac.observe_outputs(outputs)
        nn.functional.cross_entropy(outputs, targets.flatten()).backward()

    for passes, reduction in ((by_token, "token-mean"), (by_example, "mean")):
        _, kfac = stepped(model, passes, settings, loss_reduction=reduction)
        factors.append(kfac.state_dict()["flow"]["factors"]["2.G"]["running"])
    close = {"rtol": 0.3, "atol": 0.03} if fisher == "sampled" else {}
    torch.testing.assert_close(factors[0], factors[1], **close)


def test_an_overflow_at_first_is_made_good_at_the_next_update() -> None:
    model = small_net()
    kfac = KFAC(model)  # inverts every 100 updates
    ready = []
    for number in range(4):
        model.zero_grad()
        loss_of(model, torch.randn(8, 4), torch.randint(3, (8,))).backward()
        if number == 0:
            for total in kfac._capture.sums.values():
                total.fill_(math.inf)
        kfac.step()
        ready.append(all(kfac._flow.is_ready(block) for block in kfac.coverage.blocks))
    assert ready == [False, True, True, True]
    assert kfac.counts()["inversions"] == 4


def test_a_rare_measurement_counts_for_all_that_it_stands_for() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    settings = KFACSettings(refresh=AdaptiveRefresh(similarity=10.0), average=0.5)
    kfac = KFAC(model, settings=settings)
    expected: dict[int, float] = {}
    running, last = 0.0, 0
    for number in range(8):  # measured at 0, 1, 2, 4, 7
        observed = kfac.observing
        inputs = torch.full((4, 2), 1.0 + number)
        model(inputs).square().mean().backward()
        kfac.step()
        new = (1.0 + number) ** 2
        if observed:
            share = 0.0 if number == 0 else 0.5 ** (number - last)
            running, last = share * running + (1 - share) * new, number
        found = kfac.state_dict()["flow"]["factors"]["0.A"]["running"][0, 0, 0]
        expected[number] = running
        assert float(found) == pytest.approx(expected[number])
    assert last == 7


def test_states_of_other_sizes_or_another_refresh_are_refused() -> None:
    state = stepped(small_net(), _once(torch.randn(8, 4), torch.randint(3, (8,))))[1].state_dict()
    wider = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3))
    with pytest.raises(InputError, match=r"factor 0\.G must have the shape \(1, 7, 7\)"):
        KFAC(wider).load_state_dict(state)
    with pytest.raises(InputError, match=r"preconditioner\.refresh must be of the state's kind"):
        KFAC(small_net(), settings=KFACSettings(refresh=AdaptiveRefresh())).load_state_dict(state)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss_reduction": "none"}, "loss_reduction must be one of: mean, sum, token-mean"),
        ({"loss_scale": -2.0}, "loss_scale must be a number > 0 or a GradScaler, got -2.0"),
        ({"loss_scale": "x"}, "loss_scale must be a number > 0 or a GradScaler, got x"),
        ({"settings": {"name": "kfac"}}, "settings must be a KFACSettings, got dict"),
        ({"settings": KFACSettings(left_out=("nope*",))}, r"left_out must match a layer"),
        ({"settings": KFACSettings(left_out=("*",))}, "must hold a layer .*all is left out"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        KFAC(small_net(), **given)


def test_other_things_that_cannot_be_are_refused() -> None:
    model = small_net()
    with pytest.raises(InputError, match="optimizer must not scale every coordinate by itself"):
        KFAC(model, torch.optim.AdamW(model.parameters()))
    with pytest.raises(InputError, match="model must be a Module, got list"):
        KFAC([1])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="num_examples must be >= 1, got 0"):
        KFAC(model).begin_update(0)
    with pytest.raises(InputError, match=r"state must be one of KFAC\.state_dict"):
        KFAC(model).load_state_dict({"a": 1})


def test_complex_parameters_take_first_order_steps() -> None:
    model = nn.Sequential(nn.Linear(2, 2, dtype=torch.complex128), nn.Linear(2, 2))
    assert "complex" in KFAC(model).explain()
