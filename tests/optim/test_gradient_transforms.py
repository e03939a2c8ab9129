"""Transforms of the gradient: by hand, pure in their draws, and as a training takes and records."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from anybatch.cli import main
from anybatch.optim.clipping import clip_global_norm, was_clipped
from anybatch.optim.gradient_noise import add_gradient_noise, multiply_gradient_noise
from anybatch.optim.normalizing import normalize_global_norm
from anybatch.recipe import (
    AdditiveNoise,
    ClipGlobalNorm,
    ComputeSettings,
    GradientTransform,
    MultiplicativeNoise,
    NormalizeGradient,
    Recipe,
    RecordSettings,
    SGDSettings,
    Stopping,
)
from anybatch.records import StepRecord, from_json, to_json
from anybatch.run import Run
from anybatch.schedules import updates
from anybatch.task import Task
from anybatch.training.gradient_transforms import GradientTransforms
from anybatch.training.snapshot import preserved_training, random_state
from anybatch.training.training import Training


def with_gradients(*gradients: list[float]) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(len(g), dtype=torch.float64)) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
    return parameters


def gradients_of(parameters: list[nn.Parameter]) -> Tensor:
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


# --- normalization -------------------------------------------------------------------------------


def test_a_gradient_is_scaled_up_or_down_to_the_norm() -> None:
    for norm in (1.3, 130.0):
        parameters = with_gradients([3.0, 0.0], [0.0, 4.0, 12.0])  # 13 together
        assert normalize_global_norm(parameters, norm).item() == pytest.approx(13.0)
        assert gradients_of(parameters).tolist() == pytest.approx(
            [norm * value / 13.0 for value in (3.0, 0.0, 0.0, 4.0, 12.0)], rel=1e-15
        )


def test_a_gradient_of_zero_stays_zero_and_one_that_is_not_finite_is_not_hidden() -> None:
    parameters = [*with_gradients([0.0, 0.0]), nn.Parameter(torch.ones(3))]
    assert normalize_global_norm(parameters, 1.0).item() == 0.0
    assert gradients_of(parameters).tolist() == [0.0, 0.0]
    assert parameters[1].grad is None
    for value in (math.nan, math.inf):
        parameters = with_gradients([1.0, value])
        assert not math.isfinite(normalize_global_norm(parameters, 1.0).item())
        assert not gradients_of(parameters).isfinite().all()


NUMBERS = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=3), st.floats(1e-3, 1e3), st.floats(1e-2, 1e2))
def test_the_size_of_the_gradient_makes_no_difference(
    gradients: list[list[float]], norm: float, scale: float
) -> None:
    one, other = with_gradients(*gradients), with_gradients(*gradients)
    for parameter in other:
        assert parameter.grad is not None
        parameter.grad *= scale
    before = float(gradients_of(one).norm())
    normalize_global_norm(one, norm)
    normalize_global_norm(other, norm)
    if before > 1e-90:
        torch.testing.assert_close(gradients_of(one), gradients_of(other), rtol=1e-9, atol=1e-200)
        assert float(gradients_of(one).norm()) == pytest.approx(norm, rel=1e-9)


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 10), st.floats(0.1, 10))
def test_clipped_is_what_came_out_shorter(norm: float, max_norm: float) -> None:
    parameters = with_gradients([norm])
    found = clip_global_norm(parameters, max_norm)
    assert bool(was_clipped(found, max_norm)) == (float(gradients_of(parameters)) < norm)


# --- noise ---------------------------------------------------------------------------------------


def drawn(shapes: list[tuple[int, ...]], **arguments: int) -> list[Tensor]:
    """The noise itself: what is added to gradients of zero."""
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    add_gradient_noise(parameters, 1.0, **({"seed": 0, "update": 0} | arguments))
    return [p.grad for p in parameters if p.grad is not None]


def test_noise_is_a_function_of_seed_update_and_place() -> None:
    shapes = [(20,), (3, 5), (20,)]
    noise = drawn(shapes)
    for one, other in zip(noise, drawn(shapes), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(noise[0], noise[2])  # the same shape at another place
    for change in ({"seed": 1}, {"update": 1}, {"seed": 2**63 - 1}):
        assert not torch.equal(noise[0], drawn(shapes, **change)[0])
    assert torch.equal(drawn([(7,), (3, 5)])[1], noise[1])  # whatever stands before it
    alone = [nn.Parameter(torch.zeros(20)), nn.Parameter(torch.zeros(3, 5))]
    alone[1].grad = torch.zeros(3, 5)
    add_gradient_noise(alone, 1.0, seed=0, update=0)
    assert alone[0].grad is None
    assert torch.equal(alone[1].grad, noise[1])


def test_noise_is_standard_normal_and_leaves_the_generators_alone() -> None:
    before = random_state()
    (noise,) = drawn([(1000, 200)])
    assert random_state()["python"] == before["python"]
    assert torch.equal(random_state()["torch"], before["torch"])
    assert abs(float(noise.mean())) < 5 / math.sqrt(noise.numel())
    assert float(noise.var()) == pytest.approx(1.0, abs=0.02)
    assert float((noise.abs() < 1.0).float().mean()) == pytest.approx(0.6827, abs=0.01)
    same, other = drawn([(100_000,)])[0], drawn([(100_000,)], update=1)[0]
    assert abs(float((same * other).mean())) < 0.02


def test_added_and_multiplied_noise_are_their_formulas_on_the_same_draws() -> None:
    start = [[0.5, -2.0, 0.0, 7.0], [1e-3, 40.0]]
    noise = with_gradients([0.0] * 4, [0.0] * 2)
    add_gradient_noise(noise, 1.0, seed=5, update=9)
    added, multiplied = with_gradients(*start), with_gradients(*start)
    add_gradient_noise(added, 0.25, seed=5, update=9)
    multiply_gradient_noise(multiplied, 0.25, seed=5, update=9)
    g, n = gradients_of(with_gradients(*start)), gradients_of(noise)
    torch.testing.assert_close(gradients_of(added), g + 0.25 * n, rtol=1e-15, atol=0)
    torch.testing.assert_close(gradients_of(multiplied), (1 + 0.25 * n) * g, rtol=1e-14, atol=0)


@pytest.mark.parametrize("change", [add_gradient_noise, multiply_gradient_noise])
def test_low_precision_strided_and_missing_gradients_are_changed_where_they_lie(change) -> None:
    change([nn.Parameter(torch.zeros(2))], 1.0, seed=0, update=0)  # none has a gradient
    half = nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    half.grad = torch.ones(4, dtype=torch.bfloat16)
    image = nn.Parameter(torch.zeros(2, 3, 4, 4))
    image.grad = torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last)
    plain = nn.Parameter(torch.zeros(2, 3, 4, 4))
    plain.grad = torch.ones(2, 3, 4, 4)
    address = image.grad.data_ptr()
    change([half, image], 0.5, seed=0, update=0)
    change([half, plain], 0.5, seed=0, update=0)
    assert image.grad.data_ptr() == address
    assert torch.equal(image.grad, plain.grad)
    assert half.grad.dtype == torch.bfloat16
    assert half.grad.unique().numel() > 1


# --- in a training -------------------------------------------------------------------------------

INPUTS = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
TARGETS = torch.tensor([[1.0], [-1.0], [2.0], [0.5]], dtype=torch.float64)


def line() -> nn.Module:
    model = nn.Linear(2, 1, bias=False)
    nn.init.constant_(model.weight, 0.25)
    return model


def training_of(*gradient: GradientTransform, **changes: object) -> Training:
    data = INPUTS, TARGETS
    task = Task(build_model=line, train=data, validation=data, kind="regression")
    recipe = Recipe(
        optimizer=SGDSettings(lr=0.1),
        duration=updates(12),
        batch_size=4,
        gradient=gradient,
        seed=11,
        compute=ComputeSettings(device="cpu", precision="fp64"),
        records=RecordSettings(log_every=5),
        stopping=Stopping(evaluate_every=updates(100)),
    )
    return Training(task, dataclasses.replace(recipe, **changes))


def gradient_at(weight: Tensor) -> Tensor:
    """Of the mean squared error of the four examples, 2 / 4 sum (x w - t) x."""
    errors = INPUTS @ weight.T - TARGETS
    return 0.5 * (errors * INPUTS).sum(0, keepdim=True)


def test_three_updates_by_hand_through_every_transform_in_order() -> None:
    transforms = (
        MultiplicativeNoise(std=0.5),
        ClipGlobalNorm(max_norm=1.0),
        AdditiveNoise(std=0.1),
        NormalizeGradient(norm=0.7),
    )
    training = training_of(*transforms)
    # The draws of a transform are those of its place in the list: they are asked for as such.
    alone = GradientTransforms(transforms, seed=11)._functions
    weight = torch.full((1, 2), 0.25, dtype=torch.float64)
    for update in range(3):
        noise = nn.Parameter(torch.zeros(1, 2, dtype=torch.float64))
        noise.grad = torch.ones_like(noise)
        alone[0]([noise], update)  # 1 + 0.5 n
        gradient = gradient_at(weight) * noise.grad
        norm = float(gradient.norm())
        gradient *= min(1.0, 1.0 / (norm + 1e-6))
        noise.grad = torch.zeros_like(noise)
        alone[2]([noise], update)  # 0.1 n
        assert 0.001 < float(noise.grad.abs().max()) < 0.5
        gradient += noise.grad
        gradient *= 0.7 / gradient.norm()
        weight = weight - 0.1 * gradient
        training.step()
        assert float(training.one_step.transforms.norm) == pytest.approx(norm, rel=1e-12)
        torch.testing.assert_close(training.model.weight.detach(), weight, rtol=1e-13, atol=0)


def test_two_noises_of_a_recipe_are_not_the_same() -> None:
    first, second = GradientTransforms([AdditiveNoise(std=1.0)] * 2, seed=0)._functions
    one, other = with_gradients([0.0] * 9), with_gradients([0.0] * 9)
    first(one, 0)
    second(other, 0)
    assert float((gradients_of(one) - gradients_of(other)).abs().min()) > 1e-6


def test_micro_batches_see_the_same_noise() -> None:
    transforms = (AdditiveNoise(std=0.3), MultiplicativeNoise(std=0.3))
    whole, divided = training_of(*transforms), training_of(*transforms, micro_batch_size=1)
    for training in (whole, divided):
        list(training)
    torch.testing.assert_close(
        whole.model.weight.detach(), divided.model.weight.detach(), rtol=1e-13, atol=0
    )
    assert not torch.equal(whole.model.weight, training_of().model.weight)


CLIP = ClipGlobalNorm(max_norm=1.5)


def shares(training: Training) -> list[float | None]:
    return [record.clipped_share for record in training if isinstance(record, StepRecord)]


def test_the_share_of_clipped_updates_is_that_of_the_norms_above_the_bound() -> None:
    each = training_of(CLIP, records=RecordSettings(log_every=1))
    records = [record for record in each if isinstance(record, StepRecord)]
    clipped = [float((record.gradient_norm or 0.0) > 1.5) for record in records]
    assert [record.clipped_share for record in records] == clipped
    expected = [sum(clipped[:5]) / 5, sum(clipped[5:10]) / 5, sum(clipped[10:]) / 2]
    assert shares(training_of(CLIP)) == pytest.approx(expected)
    assert any(0.0 < share < 1.0 for share in expected)
    assert shares(training_of()) == shares(training_of(NormalizeGradient())) == [None] * 3
    for twice in ((ClipGlobalNorm(max_norm=1e6), CLIP), (CLIP, ClipGlobalNorm(max_norm=1e6))):
        assert shares(training_of(*twice)) == pytest.approx(expected)


def test_the_count_of_clipped_updates_survives_a_resume_and_a_measurement() -> None:
    expected = shares(training_of(CLIP))
    first = training_of(CLIP)
    for _ in range(3):  # into the middle of a log window
        first.step()
    with preserved_training(first):
        for _ in range(4):
            first.step()
        first.one_step.transforms.clipped_share()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = training_of(CLIP)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert shares(second) == shares(first) == expected


def test_a_gradient_that_is_not_taken_is_not_counted() -> None:
    training = training_of(ClipGlobalNorm(max_norm=1e-3))
    for _ in range(4):
        training.gradient(training.feed.next())
    training.step()
    assert training.one_step.transforms.clipped_share() == 1.0
    assert training.one_step.transforms.clipped_share() is None


def test_a_log_of_before_the_share_was_recorded_still_reads() -> None:
    record = next(record for record in training_of(CLIP) if isinstance(record, StepRecord))
    assert from_json(to_json(record), StepRecord) == record
    older = json.loads(to_json(record))
    del older["clipped_share"]
    assert from_json(json.dumps(older), StepRecord) == dataclasses.replace(
        record, clipped_share=None
    )


def test_recipe_lines_transform_and_the_report_shows_the_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = (
        'gradient=[{ name = "multiplicative-noise", std = 0.5 }, '
        '{ name = "clip-global-norm", max_norm = 1.0 }, '
        '{ name = "additive-noise", std = 1e-3 }, { name = "normalize", norm = 0.5 }]'
    )
    arguments = ["train", "digits", "--set", "duration=2 epochs", "--set", line]
    assert main([*arguments, "--out", "out"]) == 0
    shares = [record.clipped_share for record in Run(tmp_path / "out").steps()]
    assert all(share is not None and 0.0 <= share <= 1.0 for share in shares)
    assert len(set(shares)) > 1
    assert main(["report", "out", "--out", "page.html"]) == 0
    assert "share of clipped updates" in (tmp_path / "page.html").read_text()
