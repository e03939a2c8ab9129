"""GhostBatchNorm: torch's BatchNorm with one ghost, k of torch's with k ghosts; odd shapes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.training.normalization import GhostBatchNorm, GhostNormalization
from anybatch.world import World

ONE = World(torch.device("cpu"))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, which only wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


KINDS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "1d": (nn.BatchNorm1d, (3,)),
    "1d-with-length": (nn.BatchNorm1d, (3, 5)),
    "2d": (nn.BatchNorm2d, (3, 4, 5)),
    "3d": (nn.BatchNorm3d, (3, 2, 3, 2)),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "cumulative": {"momentum": None},
    "without-affine": {"affine": False},
    "without-statistics": {"track_running_stats": False},
    "bare": {"affine": False, "track_running_stats": False},
    "own-numbers": {"eps": 1e-2, "momentum": 0.37},
}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * 2 + 1


def layer_of(kind: str, **settings: Any) -> Any:
    make, _ = KINDS[kind]
    layer = make(3, **settings).double()
    if layer.weight is not None:
        layer.weight.data, layer.bias.data = numbers(3, seed=7), numbers(3, seed=8)
    return layer


def gradients(layer: Any, inputs: Tensor, upstream: Tensor) -> list[Tensor]:
    """Outputs and gradients of inputs and parameters, of a scalar that weighs every output."""
    own = inputs.clone(memory_format=torch.preserve_format).requires_grad_()
    outputs = layer(own)
    wanted = [own, *layer.parameters()]
    return [outputs.detach(), *torch.autograd.grad((outputs * upstream).sum(), wanted)]


def assert_close(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def assert_same_state(one: nn.Module, other: nn.Module) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype
        assert_close(ours[key], value)


@pytest.mark.parametrize("ghost", [None, 6, 100])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_one_ghost_is_torchs_batch_norm_step_for_step(kind, settings, ghost):
    torchs = nn.Sequential(layer_of(kind, **SETTINGS[settings]))
    ours = copy.deepcopy(torchs)
    norms = GhostNormalization(ours, ghost)
    shape = KINDS[kind][1]
    for update in range(4):
        inputs, upstream = numbers(6, *shape, seed=update), numbers(6, *shape, seed=10 + update)
        norms.discard()
        norms.begin(6, counted=True)
        for one, other in zip(
            gradients(ours, inputs, upstream), gradients(torchs, inputs, upstream), strict=True
        ):
            assert_close(one, other)
        norms.take_step(ONE)
        assert_same_state(ours, torchs)
    inputs = numbers(5, *shape, seed=99)
    assert_close(ours.eval()(inputs), torchs.eval()(inputs))
    assert_same_state(ours, torchs)


def separate_layers(layer: Any, inputs: Tensor, upstream: Tensor, ghost: int) -> Any:
    """k separate torch layers on the pieces: outputs, gradients, (n, mean, unbiased variance)."""
    outputs, input_gradients, statistics = [], [], []
    parameter_gradients = [torch.zeros_like(p) for p in layer.parameters()]
    for piece, up in zip(inputs.split(ghost), upstream.split(ghost), strict=True):
        torchs = copy.deepcopy(layer)
        torchs.momentum = 1.0  # its running statistics are then those of the piece
        out, of_inputs, *of_parameters = gradients(torchs, piece, up)
        outputs.append(out)
        input_gradients.append(of_inputs)
        for total, part in zip(parameter_gradients, of_parameters, strict=True):
            total += part
        statistics.append((len(piece), torchs.running_mean, torchs.running_var))
    return [torch.cat(outputs), torch.cat(input_gradients), *parameter_gradients], statistics


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("num_examples", [12, 11])  # the last of three ghosts: 4 or 3 examples
def test_k_ghosts_are_k_torch_layers_and_one_step_of_the_mean_statistics(
    kind, momentum, num_examples
):
    torchs = layer_of(kind, momentum=momentum)
    ours = nn.Sequential(copy.deepcopy(torchs))
    norms = GhostNormalization(ours, 4)
    mean, variance = torchs.running_mean.clone(), torchs.running_var.clone()
    for update in range(1, 4):
        inputs = numbers(num_examples, *KINDS[kind][1], seed=update)
        upstream = numbers(num_examples, *KINDS[kind][1], seed=10 + update)
        expected, statistics = separate_layers(torchs, inputs, upstream, ghost=4)
        norms.discard()
        norms.begin(num_examples, counted=True)
        for one, other in zip(gradients(ours, inputs, upstream), expected, strict=True):
            assert_close(one, other)
        norms.take_step(ONE)
        share = 1 / update if momentum is None else momentum
        for running, which in ((mean, 1), (variance, 2)):
            new = sum(s[0] * s[which] for s in statistics) / num_examples
            running.mul_(1 - share).add_(share * new)
        assert_close(ours[0].running_mean, mean)
        assert_close(ours[0].running_var, variance)
        assert int(ours[0].num_batches_tracked) == update


def test_channels_last_images_give_the_same_numbers_and_stay_channels_last():
    inputs, upstream = numbers(7, 3, 4, 5), numbers(7, 3, 4, 5, seed=1)
    found = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model = nn.Sequential(layer_of("2d"))
        norms = GhostNormalization(model, 3)
        norms.begin(7, counted=True)
        found.append(gradients(model, inputs.to(memory_format=memory_format), upstream))
        norms.take_step(ONE)
        found[-1] += [model[0].running_mean, model[0].running_var]
    for one, other in zip(*found, strict=True):
        assert_close(one, other)
    assert found[1][0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("num_examples", [1, 5])
def test_a_ghost_of_one_value_per_channel_gives_the_bias_and_variance_zero(num_examples):
    model = nn.Sequential(layer_of("1d"))
    norms = GhostNormalization(model, 4)
    norms.begin(num_examples, counted=True)
    inputs, upstream = numbers(num_examples, 3), numbers(num_examples, 3, seed=1)
    outputs, of_inputs, of_weight, of_bias = gradients(model, inputs, upstream)
    norms.take_step(ONE)
    assert_close(outputs[-1], model[0].bias.detach())
    assert not of_inputs[-1].any()
    assert_close(of_bias, upstream.sum(0))
    assert all(t.isfinite().all() for t in (outputs, of_inputs, of_weight))
    assert_close(model[0].running_mean, 0.1 * inputs.mean(0))
    first = inputs[:4]
    variance = first.var(0) * 4 / 5 if num_examples == 5 else torch.zeros(3).double()
    assert_close(model[0].running_var, 0.9 + 0.1 * variance)


def test_micro_batches_of_whole_ghosts_add_up_to_the_undivided_update():
    inputs, upstream = numbers(10, 3, 4, 5), numbers(10, 3, 4, 5, seed=1)
    found = []
    for micro in (10, 4):
        model = nn.Sequential(layer_of("2d"))
        norms = GhostNormalization(model, 2)
        parts = []
        for piece, up in zip(inputs.split(micro), upstream.split(micro), strict=True):
            norms.begin(len(piece), counted=True)
            parts.append(gradients(model, piece, up)[:2])
        norms.take_step(ONE)
        together = [torch.cat(column) for column in zip(*parts, strict=True)]
        found.append([*together, model[0].running_mean, model[0].running_var])
    for one, other in zip(*found, strict=True):
        assert_close(one, other)


def test_a_layer_that_gets_several_rows_of_each_example_keeps_examples_together():
    # (n, T, c) flattened to n T rows: a ghost of 2 examples is one of 2 T rows.
    rows = numbers(6, 5, 3)
    model = nn.Sequential(nn.Flatten(0, 1), layer_of("1d"))
    norms = GhostNormalization(model, 2)
    norms.begin(6, counted=True)
    pieces = [layer_of("1d")(piece.flatten(0, 1)) for piece in rows.split(2)]
    assert_close(model(rows), torch.cat(pieces))
    norms.begin(4, counted=True)
    with pytest.raises(InputError, match=r"layer 1 must get whole examples, 4 of them"):
        model[1](rows.flatten(0, 1))


def test_a_shared_layer_is_replaced_under_every_name_and_averages_over_its_calls():
    shared = layer_of("1d")
    model = nn.Sequential(shared, nn.Linear(3, 3).double(), shared, nn.ModuleList([shared]))
    keys = list(model.state_dict())
    norms = GhostNormalization(model, 2)
    assert list(model.state_dict()) == keys
    assert model[0] is model[2] is model[3][0] is norms.layers[0]
    assert len(norms.layers) == 1
    inputs = numbers(2, 3)
    norms.begin(2, counted=True)
    hidden = model[1](model[0](inputs))
    model[2](hidden)
    norms.take_step(ONE)
    assert_close(shared.running_mean, 0.1 * (inputs.mean(0) + hidden.mean(0)).detach() / 2)
    variance = (inputs.var(0) + hidden.var(0)).detach() / 2
    assert_close(shared.running_var, 0.9 + 0.1 * variance)
    assert int(shared.num_batches_tracked) == 1


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_layer_that_no_example_passed_keeps_its_statistics(momentum):
    model = nn.Sequential(layer_of("1d", momentum=momentum))
    before = copy.deepcopy(model.state_dict())
    norms = GhostNormalization(model, 2)
    norms.take_step(ONE)
    norms.begin(1, counted=False)  # the placeholder of a rank without examples
    model(numbers(1, 3))
    norms.take_step(ONE)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_ghosts_of_a_gradient_that_was_not_taken_are_forgotten():
    model = nn.Sequential(layer_of("1d"))
    norms = GhostNormalization(model, 2)
    norms.begin(2, counted=True)
    model(numbers(2, 3))
    norms.discard()
    model(numbers(2, 3, seed=1))
    norms.take_step(ONE)
    assert_close(model[0].running_mean, 0.1 * numbers(2, 3, seed=1).mean(0))


def test_names_of_parameters_and_buffers_do_not_change_and_a_plain_state_loads():
    plain = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm2d(3)))
    ours = copy.deepcopy(plain)
    parameters = [id(p) for p in ours.parameters()]
    norms = GhostNormalization(ours, 2)
    assert len(norms.layers) == 2
    assert [id(p) for p in ours.parameters()] == parameters
    assert list(ours.state_dict()) == list(plain.state_dict())
    plain[1].running_mean += 3
    ours.load_state_dict(plain.state_dict(), strict=True)
    assert_close(ours[1].running_mean, plain[1].running_mean)
    plain.load_state_dict(ours.state_dict(), strict=True)


def test_a_layer_in_evaluation_mode_stays_so_and_moves_nothing():
    model = nn.Sequential(layer_of("1d").eval())
    norms = GhostNormalization(model, 2)
    assert not model[0].training
    norms.begin(4, counted=True)
    model(numbers(4, 3))
    norms.take_step(ONE)
    assert not model[0].running_mean.any()


class _WithActivation(nn.BatchNorm1d):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).relu()


def test_what_cannot_keep_the_ghost_law_is_refused():
    with pytest.raises(InputError, match="layer 0 must not be SyncBatchNorm"):
        GhostNormalization(nn.Sequential(nn.SyncBatchNorm(3)), 2)
    with pytest.raises(InputError, match="must hold its BatchNorm inside of another module"):
        GhostNormalization(nn.BatchNorm1d(3), 2)
    own = nn.Sequential(nn.Sequential(_WithActivation(3)))
    with pytest.raises(InputError, match=r"layer 0\.0 must have torch's own .* _WithActivation"):
        GhostNormalization(own, 2)
    norms = GhostNormalization(own, None)  # an undivided batch: used as it is
    assert norms.found
    assert not norms.layers
    assert isinstance(own[0][0], _WithActivation)
    assert not GhostNormalization(nn.Sequential(nn.Linear(3, 3)), 2).found


def test_ghost_layers_are_printed_with_their_ghost():
    model = nn.Sequential(layer_of("2d"))
    GhostNormalization(model, 4)
    assert isinstance(model[0], GhostBatchNorm)
    assert "3, ghost_batch_size=4" in repr(model)
