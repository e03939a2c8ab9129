"""Losses and metrics: values by hand, one for each example."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.objectives import (
    Metric,
    cross_entropy,
    default_loss,
    default_metric,
    is_correct,
    per_example,
    squared_error,
    token_cross_entropy,
)

LOGITS = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0], [0.0, math.log(3.0)]])
CLASSES = torch.tensor([0, 0, 0])
BY_HAND = [math.log(2.0), math.log(4 / 3), math.log(4.0)]


def test_cross_entropy_is_in_nats_for_each_example() -> None:
    assert cross_entropy(LOGITS, CLASSES).tolist() == pytest.approx(BY_HAND)
    assert default_loss("classification")(LOGITS, CLASSES).tolist() == pytest.approx(BY_HAND)


def test_label_smoothing_spreads_its_share_over_all_classes() -> None:
    losses = default_loss("classification", 0.2)(LOGITS, CLASSES).tolist()
    other = [math.log(2.0), math.log(4.0), math.log(4 / 3)]
    expected = [0.9 * own + 0.1 * wrong for own, wrong in zip(BY_HAND, other, strict=True)]
    assert losses == pytest.approx(expected)


def test_a_language_models_loss_is_the_mean_over_its_positions() -> None:
    logits = torch.stack([LOGITS, LOGITS])
    tokens = torch.tensor([[0, 0, 0], [0, 0, 1]])
    expected = [sum(BY_HAND) / 3, (BY_HAND[0] + BY_HAND[1] + math.log(4 / 3)) / 3]
    assert token_cross_entropy(logits, tokens).tolist() == pytest.approx(expected)
    bits = default_metric("language-modelling").per_example(logits, tokens)
    assert bits.tolist() == pytest.approx([value / math.log(2) for value in expected])
    smooth = default_loss("language-modelling", 0.5)(logits, tokens)
    assert smooth.shape == (2,)
    assert smooth.tolist() != pytest.approx(expected)


def test_squared_error_is_the_mean_over_elements() -> None:
    outputs = torch.tensor([[1.0, 3.0], [0.0, 0.0]])
    assert squared_error(outputs, torch.zeros(2, 2)).tolist() == [5.0, 0.0]
    assert squared_error(torch.tensor([[2.0], [3.0]]), torch.zeros(2)).tolist() == [4.0, 9.0]
    assert squared_error(torch.tensor([2.0, 3.0]), torch.zeros(2)).tolist() == [4.0, 9.0]


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(InputError, match=r"model output must have the targets' shape \(4, 1\)"):
        squared_error(torch.zeros(4), torch.zeros(4, 1))


def test_accuracy_counts_the_largest_logit() -> None:
    assert is_correct(LOGITS, torch.tensor([0, 0, 0])).tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("kind", "name", "direction"),
    [
        ("classification", "accuracy", "max"),
        ("regression", "squared_error", "min"),
        ("language-modelling", "bits_per_token", "min"),
    ],
)
def test_every_kind_of_task_has_its_metric(kind, name: str, direction: str) -> None:
    metric = default_metric(kind)
    assert (metric.name, metric.direction) == (name, direction)


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(InputError, match="label_smoothing must be 0 for a regression"):
        default_loss("regression", 0.1)
    with pytest.raises(InputError, match='direction must be "max" or "min"'):
        Metric(name="m", direction="up", per_example=is_correct)  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)])
def test_a_loss_module_is_taken_apart_into_examples(loss: nn.Module) -> None:
    values = per_example(loss)(LOGITS, CLASSES)
    assert values.shape == (3,)
    torch.testing.assert_close(values.mean(), loss(LOGITS, CLASSES))
    assert loss.reduction == "mean"  # the user's own is left as it was


def test_elements_of_an_example_are_averaged_as_mean_would() -> None:
    outputs, targets = torch.randn(4, 3, 2), torch.randn(4, 3, 2)
    values = per_example(nn.MSELoss())(outputs, targets)
    assert values.shape == (4,)
    torch.testing.assert_close(values.mean(), nn.MSELoss()(outputs, targets))


WEIGHTS = torch.tensor([1.0, 5.0])


class Learned(nn.MSELoss):
    """A loss with a weight to train, which no optimizer would see."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.CrossEntropyLoss(weight=WEIGHTS), "loss CrossEntropyLoss must have no class weights"),
        (nn.NLLLoss(weight=WEIGHTS), "loss NLLLoss must have no class weights"),
        (nn.MSELoss(reduction="sum"), 'must have reduction "mean" or "none", got sum'),
        (nn.KLDivLoss(reduction="batchmean"), 'must have reduction "mean" or "none", got batchm'),
        (Learned(), "loss Learned must have no parameters"),
    ],
)
def test_a_loss_module_that_weighs_examples_in_another_way_is_refused(
    loss: nn.Module, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        per_example(loss)


def test_class_weights_are_taken_where_nothing_is_divided_by_them() -> None:
    loss = per_example(nn.CrossEntropyLoss(weight=WEIGHTS, reduction="none"))
    targets = torch.tensor([1, 0, 1])
    expected = cross_entropy(LOGITS, targets) * WEIGHTS[targets]
    torch.testing.assert_close(loss(LOGITS, targets), expected)


def test_a_function_is_taken_as_it_is() -> None:
    def own(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.sum(1)

    assert per_example(own) is own
