"""Weight rescaling: it only shrinks, it leaves the rest alone, it is resumed exactly."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.recipe import Recipe, RecordSettings, SGDSettings, WeightRescaling
from anybatch.schedules import updates
from anybatch.task import Task
from anybatch.training.rescaling import Rescaling, rescale_weights, rescaled_weights
from anybatch.training.training import Training


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, groups=2), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 3)
    )  # fmt: skip


def lengthened(model: nn.Module, factor: float) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1)).mul_(factor)
    return model.double()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(1e-6, 1e6), st.floats(1e-3, 1e3)), min_size=1, max_size=5),
    st.integers(0, 2**31),
)
def test_only_what_is_too_long_is_shortened_to_its_bound(
    sizes: list[tuple[float, float]], seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    before = [
        scale * torch.randn(3, 4, generator=random, dtype=torch.float64) for scale, _ in sizes
    ]
    weights = [weight.clone() for weight in before]
    norms = rescale_weights(weights, [bound for _, bound in sizes])
    for old, new, norm, (_, bound) in zip(before, weights, norms, sizes, strict=True):
        assert norm.item() == pytest.approx(old.norm().item(), rel=1e-12)
        if norm.item() <= bound - 1e-8:
            assert torch.equal(old, new)
        elif norm.item() > bound:
            assert new.norm().item() == pytest.approx(bound, rel=1e-5)
            assert new.norm().item() <= bound * (1 + 1e-15)
        direction = (old / norm - new / new.norm()).abs().max().item()
        assert direction < 1e-12


def test_the_bound_is_the_root_of_twice_the_outputs() -> None:
    model = network()
    assert [(weight is module.weight, bound) for (weight, bound), module in zip(
        rescaled_weights(model), (model[0], model[3]), strict=True  # type: ignore[index]
    )] == [(True, math.sqrt(12)), (True, math.sqrt(6))]  # fmt: skip


def test_biases_norms_embeddings_and_frozen_weights_are_left_alone() -> None:
    model = nn.Sequential(network(), nn.Embedding(4, 3), nn.Linear(3, 3))
    model[2].weight.requires_grad_(False)
    lengthened(model, 100.0)
    before = copy.deepcopy(model.state_dict())
    Rescaling(WeightRescaling(), model).take()
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert changed == {"0.0.weight", "0.3.weight"}


def test_a_shared_weight_is_rescaled_once_and_a_model_without_any_is_refused() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    assert len(rescaled_weights(nn.Sequential(first, second))) == 1
    with pytest.raises(InputError, match="rescaling must meet a model with trainable linear"):
        Rescaling(WeightRescaling(), nn.Embedding(3, 2))


def test_a_weight_of_zeros_stays_and_one_that_is_not_finite_is_no_error() -> None:
    weights = [torch.zeros(3), torch.tensor([math.nan, 1.0])]
    rescale_weights(weights, [1.0, 1.0])
    assert weights[0].tolist() == [0.0] * 3
    assert math.isnan(weights[1][0].item())


def test_looks_become_rare_while_a_weight_is_short_and_end_where_it_is_long() -> None:
    layer = nn.Linear(2, 2, bias=False).double()  # its bound: 2
    rescaling = Rescaling(WeightRescaling(longest_skip=4), layer)

    def set_length(length: float) -> None:
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([[length, 0.0], [0.0, 0.0]]))

    looked = []
    for _ in range(15):
        set_length(1.0)
        rescaling.take()
        looked.append(rescaling.state_dict()["waits"] == rescaling.state_dict()["intervals"])
    # Looks at 0, then after 1, 2, 4 and again 4 updates without one.
    assert [n for n, yes in enumerate(looked) if yes] == [0, 2, 5, 10]
    while rescaling.state_dict()["waits"] != [0]:
        rescaling.take()
    for _ in range(3):  # above the margin: in every update
        set_length(3.0)
        rescaling.take()
        assert layer.weight.norm().item() == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"margin": 0.0}, r"margin must be in \(0, 1\]"),
        ({"margin": 1.1}, r"margin must be in \(0, 1\]"),
        ({"longest_skip": -1}, "longest_skip must be >= 0 updates"),
    ],
)
def test_bounds_of_the_settings(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        WeightRescaling(**settings)  # type: ignore[arg-type]


# --- in a training ---------------------------------------------------------------------------


def make_task() -> Task:
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 2, 4, 4, generator=random)
    return Task(build_model=network, train=(inputs, torch.arange(40) % 3))


def make_recipe(rescaling: WeightRescaling | None, *, lr: float = 2.0) -> Recipe:
    return Recipe(
        optimizer=SGDSettings(lr=lr, momentum=0.9),
        batch_size=9,
        ghost_batch_size=9,
        duration=updates(12),
        rescaling=rescaling,
        records=RecordSettings(log_every=1),
    )


def weights_after(training: Training, count: int) -> dict[str, Tensor]:
    for _ in range(count):
        training.one_step.train_mode()
        training.step()
    return copy.deepcopy(training.model.state_dict())


def test_a_training_keeps_its_weights_within_their_bounds() -> None:
    lengths = []
    for rescaling in (WeightRescaling(), None):
        with Training(make_task(), make_recipe(rescaling)) as training:
            lengths.append(weights_after(training, 10)["3.weight"].norm().item())
    assert lengths[0] <= math.sqrt(6) * (1 + 1e-6) < lengths[1]


def test_a_training_is_resumed_between_two_looks_to_the_same_weights() -> None:
    recipe = make_recipe(WeightRescaling(longest_skip=4, margin=0.9), lr=0.4)
    with Training(make_task(), recipe) as training:
        weights_after(training, 4)
        state = copy.deepcopy(training.state_dict())
        expected = weights_after(training, 1)
    assert state["step"]["rescaling"]["waits"] == [1, 1]
    assert expected["3.weight"].norm() > math.sqrt(6)  # grown without a look: a look would tell
    with Training(make_task(), recipe) as training:
        training.load_state_dict(state)
        found = weights_after(training, 1)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_state_without_rescaling_is_taken_over() -> None:
    with Training(make_task(), make_recipe(None)) as training:
        weights_after(training, 2)
        state = copy.deepcopy(training.state_dict())
    state["step"]["model"]["3.weight"] *= 10
    assert state["step"]["model"]["3.weight"].norm() > 2 * math.sqrt(6)
    with Training(make_task(), make_recipe(WeightRescaling(longest_skip=3))) as training:
        training.load_state_dict(state)
        found = weights_after(training, 1)
    # The first update after it looks: what is too long is brought to sqrt(2 * 3 outputs).
    assert found["3.weight"].norm() <= math.sqrt(6) * (1 + 1e-6)
