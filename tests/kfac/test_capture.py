"""A and G of hooks against sums written out by torch.func; what may happen around a layer."""

from __future__ import annotations

import contextlib
import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from fisher_cases import (
    DOUBLE,
    assert_same,
    capturing,
    example_gradients,
    gram,
    patches_of,
    statistics,
    with_one,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anybatch.errors import InputError

CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(4, 6, 3),
    "same": lambda: nn.Conv2d(4, 6, (2, 3), padding="same"),
    "stride": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
    "dilated": lambda: nn.Conv2d(4, 6, 3, dilation=2, padding=2),
    "groups": lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1),
    "circular": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "pointwise": lambda: nn.Conv2d(4, 6, 1, stride=2),
    "one dimension": lambda: nn.Conv1d(4, 6, 3, padding=1, groups=2),
}


def convolution_case(name: str) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    layer = CONVOLUTIONS[name]()
    size = (5, 4, 7) if isinstance(layer, nn.Conv1d) else (5, 4, 7, 6)
    inputs = torch.randn(size, dtype=DOUBLE)
    layer.to(DOUBLE)
    outputs = layer(inputs)[0].numel()
    rest = nn.Sequential(nn.Tanh(), nn.Flatten(), nn.Linear(outputs, 3)).to(DOUBLE)
    return layer, rest, inputs, torch.randn(5, 3, dtype=DOUBLE)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, sharing: str) -> None:
    layer, rest, inputs, targets = convolution_case(name)
    model = nn.Sequential(layer, rest)
    with capturing(model, sharing=sharing) as capture:
        (model(inputs) - targets).square().mean().backward()
    found = statistics(capture, divisor=5.0)
    patches = patches_of(inputs, layer)
    g = example_gradients(rest, layer(inputs).detach(), targets).flatten(2)
    g = g.view(5, layer.groups, -1, g.shape[-1]).permute(1, 0, 3, 2)
    if sharing == "reduce":
        patches, g = patches.mean(2), g.sum(2)
    rows = g[0, ..., 0].numel()
    assert capture.rows["0"] == rows
    assert_same(found["0.A"], torch.stack([gram(each) / 5 for each in patches]))
    assert_same(found["0.G"], torch.stack([gram(each) / rows for each in g]))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("side", ["A", "G"])
@pytest.mark.parametrize("name", ["same", "groups", "depthwise"])
def test_large_factors_keep_their_diagonal(name: str, side: str) -> None:
    layer, rest, inputs, targets = convolution_case(name)
    model = nn.Sequential(layer, rest)
    found = []
    for largest in (1000, 1):
        with capturing(model, largest_factor=largest) as capture:
            (model(inputs) - targets).square().mean().backward()
        found.append(capture.sums[f"0.{side}"])
    diagonal = found[0].diagonal(dim1=1, dim2=2)
    assert_same(found[1], diagonal if found[1].dim() == 2 else diagonal.unsqueeze(-1))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("shape", [(5,), (5, 2), (5, 2, 3)])
def test_linear_layers_with_any_leading_dimensions(
    shape: tuple[int, ...], sharing: str, bias: bool
) -> None:
    torch.manual_seed(1)
    layer = nn.Linear(4, 3, bias=bias).to(DOUBLE)
    inputs = torch.randn(*shape, 4, dtype=DOUBLE)
    outputs = layer(inputs)[0].numel()
    rest = nn.Sequential(nn.Tanh(), nn.Flatten(), nn.Linear(outputs, 2)).to(DOUBLE)
    targets = torch.randn(5, 2, dtype=DOUBLE)
    model = nn.Sequential(layer, rest)
    with capturing(model, sharing=sharing) as capture:
        (model(inputs) - targets).square().mean(1).sum().backward()
    g = example_gradients(rest, layer(inputs).detach(), targets).reshape(5, -1, 3)
    a = (with_one(inputs) if bias else inputs).reshape(5, -1, 4 + bias)
    if sharing == "reduce":
        a, g = a.mean(1), g.sum(1)
    found = statistics(capture, divisor=1.0)
    assert capture.examples == 5
    assert_same(found["0.A"], gram(a)[None] / 5)
    assert_same(found["0.G"], gram(g)[None] / g[..., 0].numel())


def test_one_module_called_twice_and_tied_modules_are_one_block() -> None:
    torch.manual_seed(2)
    first, second = (nn.Linear(4, 4).to(DOUBLE) for _ in range(2))
    second.weight, second.bias = first.weight, first.bias
    head = nn.Linear(4, 2).to(DOUBLE)
    inputs, targets = torch.randn(6, 4, dtype=DOUBLE), torch.randn(6, 2, dtype=DOUBLE)
    found = []
    for layers in ((first, second), (first, first)):
        model = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), head)
        with capturing(model) as capture:
            (model(inputs) - targets).square().mean().backward()
        assert capture.examples == 6
        assert capture.rows == {"0": 12, "4": 6}
        found.append(statistics(capture, divisor=6.0))
    middle = torch.tanh(first(inputs)).detach()

    def rest(outputs: Tensor) -> Tensor:
        return head(torch.tanh(outputs))

    last = example_gradients(rest, first(middle).detach(), targets)
    before = example_gradients(
        lambda outputs: rest(first(torch.tanh(outputs))), first(inputs).detach(), targets
    )
    a = gram(with_one(inputs)) + gram(with_one(middle))
    for each in found:
        assert_same(each["0.A"], a[None] / 6)
        assert_same(each["0.G"], (gram(last) + gram(before))[None] / 12)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_embeddings_count_tokens_and_leave_padding_out(sharing: str) -> None:
    torch.manual_seed(3)
    layer = nn.Embedding(5, 3, padding_idx=0).to(DOUBLE)
    tokens = torch.tensor([[1, 2, 2, 0], [4, 1, 1, 1], [0, 0, 0, 3]])
    rest = nn.Sequential(nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)).to(DOUBLE)
    targets = torch.randn(3, 2, dtype=DOUBLE)
    model = nn.Sequential(layer, rest)
    with capturing(model, sharing=sharing) as capture:
        (model(tokens) - targets).square().mean().backward()
    found = statistics(capture, divisor=3.0)
    onehot = torch.nn.functional.one_hot(tokens, 5).to(DOUBLE)
    onehot[..., 0] = 0
    g = example_gradients(rest, layer(tokens).detach(), targets) * (tokens != 0).unsqueeze(-1)
    rows = int((tokens != 0).sum())
    if sharing == "reduce":
        onehot, g, rows = onehot.mean(1), g.sum(1), 3
    assert_same(found["0.A"], gram(onehot).diagonal()[None] / 3)
    assert_same(found["0.G"], gram(g)[None] / rows)


NORMS = {
    "batch": (lambda: nn.BatchNorm2d(4), (5, 4, 3, 3)),
    "batch without positions": (lambda: nn.BatchNorm1d(4), (5, 4)),
    "evaluated batch": (lambda: nn.BatchNorm2d(4).eval(), (5, 4, 3, 3)),
    "layer": (lambda: nn.LayerNorm((3, 2)), (5, 4, 3, 2)),
    "group": (lambda: nn.GroupNorm(2, 4), (5, 4, 3, 3)),
    "root mean square": (lambda: nn.RMSNorm(4, eps=1e-3), (5, 3, 4)),
    "only shift": (lambda: nn.GroupNorm(2, 4), (5, 4, 3)),
}


def xhat_by_hand(name: str, norm: nn.Module, inputs: Tensor) -> Tensor:
    if name == "evaluated batch":
        mean, variance = (each.view(4, 1, 1) for each in (norm.running_mean, norm.running_var))
        return (inputs - mean) / (variance + norm.eps).sqrt()
    if name == "root mean square":
        return inputs / (inputs.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    grouped, dims = inputs, (2, 3)
    if name.startswith("batch"):
        dims = tuple(dim for dim in range(inputs.dim()) if dim != 1)
    elif name != "layer":
        grouped, dims = inputs.view(5, 2, -1), (2,)
    variance, mean = torch.var_mean(grouped, dims, correction=0, keepdim=True)
    return ((grouped - mean) / (variance + norm.eps).sqrt()).view_as(inputs)


@pytest.mark.parametrize("kept", ["unit-wise", "diagonal"])
@pytest.mark.parametrize("name", NORMS)
def test_norms_with_what_they_normalize_to_held_fixed(name: str, kept: str) -> None:
    torch.manual_seed(4)
    make, shape = NORMS[name]
    norm = make().to(DOUBLE)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    if name == "evaluated batch":
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    if name == "only shift":
        norm.weight.requires_grad_(False)
    inputs = torch.randn(shape, dtype=DOUBLE) * 2 + 1
    outputs = inputs[0].numel()
    rest = nn.Sequential(nn.Tanh(), nn.Flatten(), nn.Linear(outputs, 3)).to(DOUBLE)
    targets = torch.randn(5, 3, dtype=DOUBLE)
    model = nn.Sequential(norm, rest)
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    with capturing(model, norms=kept) as capture:
        outcome = model(inputs)
        moved = {key: value.clone() for key, value in norm.state_dict().items()}
        (outcome - targets).square().mean().backward()
    assert all(torch.equal(norm.state_dict()[key], moved[key]) for key in before)
    g = example_gradients(rest, norm(inputs).detach(), targets)
    scale = g * xhat_by_hand(name, norm, inputs)
    dims = tuple(range(1, g.dim() - 2)) if name == "layer" else tuple(range(2, g.dim()))
    if name == "root mean square":
        dims = (1,)
    parts = [scale.sum(dims) if dims else scale, g.sum(dims) if dims else g]
    parts = {"root mean square": parts[:1], "only shift": parts[1:]}.get(name, parts)
    s = torch.stack([part.flatten(1) for part in parts], -1)
    expected = torch.einsum("nci,ncj->cij", s, s) / 5
    if kept == "diagonal":
        expected = expected.diagonal(dim1=1, dim2=2)
    assert_same(statistics(capture, divisor=5.0)["0.F"], expected)
    assert capture.rows["0"] * s.shape[1] == inputs.numel()  # examples * positions


def small_model() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4).eval(),
        nn.ReLU(),
        nn.Flatten(2),
        nn.Linear(16, 5),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(20, 2),
    ).to(DOUBLE)


def sums_of(model: nn.Module, parts: int = 1, **settings: object) -> dict[str, Tensor]:
    """Sums of one batch of 8, passed in parts."""
    torch.manual_seed(6)
    inputs = torch.randn(8, 3, 4, 4, dtype=DOUBLE)
    with capturing(model, **settings) as capture:
        for part in inputs.chunk(parts):
            (model(part).square().mean(1).sum() / 8).backward()
        assert capture.examples == 8
        assert capture.rows["0"] == 128
        assert capture.missing() == ()
        assert capture.fired == {"0", "1", "4", "7"}
    return capture.sums


def assert_same_sums(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert_same(found[name], expected[name])


def test_micro_batches_add_up() -> None:
    model = small_model()
    assert_same_sums(sums_of(model, parts=4), sums_of(model))


def test_a_duplicated_batch_and_a_scaled_loss_give_the_same_statistics() -> None:
    model, found = small_model(), []
    inputs = torch.randn(4, 3, 4, 4, dtype=DOUBLE)
    for many, scale in ((1, 1.0), (2, 1.0), (1, 2.0**10)):
        with capturing(model) as capture:
            loss = model(inputs.repeat(many, 1, 1, 1)).square().mean()
            (loss * scale).backward()
        found.append(statistics(capture, divisor=4 * many / scale))
    assert_same_sums(found[1], found[0])
    assert_same_sums(found[2], found[0])


def test_changes_in_place_behind_a_layer_and_behind_a_view() -> None:
    model = small_model()
    expected = sums_of(model)
    model[2] = nn.ReLU(inplace=True)
    assert_same_sums(sums_of(model), expected)

    class InPlace(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.tanh_()

    model[5] = InPlace()
    assert model[4](torch.zeros(2, 3, 16, dtype=DOUBLE))._is_view()  # the trap that this is about
    assert_same_sums(sums_of(model), expected)


@pytest.mark.parametrize("reenters", [True, False])
def test_a_checkpointed_pass_counts_once(reenters: bool) -> None:
    model = small_model()
    expected = sums_of(model)

    class Checkpointed(nn.Sequential):
        def forward(self, inputs: Tensor) -> Tensor:
            inputs = inputs.clone().requires_grad_()
            for start in (0, 4):
                part = nn.Sequential(*list(self)[start : start + 4])
                inputs = checkpoint(part, inputs, use_reentrant=reenters)
            return inputs

    assert_same_sums(sums_of(Checkpointed(*model)), expected)


@pytest.mark.filterwarnings("default")  # torch warns of itself while it compiles
def test_a_compiled_model() -> None:
    model = small_model()
    model[2] = nn.ReLU(inplace=True)
    expected = sums_of(model)
    torch.manual_seed(6)
    inputs = torch.randn(8, 3, 4, 4, dtype=DOUBLE)
    with capturing(model) as capture:
        capture.observing = False
        compiled = torch.compile(model, backend="aot_eager")
        for observed in (False, True, False):
            capture.observing = observed
            (compiled(inputs).square().mean(1).sum() / 8).backward()
        assert capture.examples == 8
    torch._dynamo.reset()
    assert_same_sums(capture.sums, expected)


def test_memory_formats_do_not_matter() -> None:
    model = small_model()
    expected = sums_of(model)
    assert_same_sums(sums_of(model.to(memory_format=torch.channels_last)), expected)

    class Strided(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return torch.stack([inputs, inputs], -1)[..., 0]

    spread = nn.Sequential(*model)
    spread[3] = nn.Sequential(nn.Flatten(2), Strided())
    spread[6] = nn.Sequential(Strided(), nn.Flatten())
    assert_same_sums(sums_of(spread), expected)


def test_half_precision_is_summed_in_single() -> None:
    model = small_model().float()
    found = []
    for enabled in (False, True):
        torch.manual_seed(7)
        inputs = torch.randn(64, 3, 4, 4)
        with capturing(model) as capture, torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            model(inputs).float().square().mean().backward()  # inside of autocast, which is unwise
        found.append(capture.sums)
    assert all(value.dtype == torch.float32 for value in found[1].values())
    for name, value in found[0].items():
        assert_same(found[1][name], value, 0.03)
    # 64 * 16 positions: a sum in bfloat16 would stop at 256.
    assert found[1]["0.A"][0, -1, -1] == 1024


class Token:
    """What a graph holds, so that its end is seen."""


class Graph(torch.autograd.Function):
    token: weakref.ref[Token]

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.token = Token()
        Graph.token = weakref.ref(ctx.token)
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


@pytest.mark.parametrize("fisher", ["empirical", "sampled"])
@pytest.mark.parametrize("backward", [True, False])
def test_nothing_is_kept_after_backward_nor_without_it(fisher: str, backward: bool) -> None:
    model = nn.Sequential(small_model(), nn.Linear(2, 2).to(DOUBLE))
    model[0].register_forward_hook(lambda module, args, output: Graph.apply(output))
    with capturing(model, fisher=fisher) as capture:
        inputs = torch.randn(8, 3, 4, 4, dtype=DOUBLE)
        alive = weakref.ref(inputs)
        outputs = model(inputs)
        if backward:
            outputs.sum().backward()
            assert capture.sums
        del inputs, outputs
        if fisher != "empirical" and not backward:
            assert Graph.token() is not None  # or the test would show nothing
            capture.clear()
        gc.collect()
        assert alive() is None
        assert Graph.token() is None


def test_only_what_is_observed_with_a_graph_counts() -> None:
    model = small_model()
    inputs = torch.randn(8, 3, 4, 4, dtype=DOUBLE)
    with capturing(model) as capture:
        with torch.no_grad():
            model(inputs)
        model(inputs)  # never goes back
        copy.deepcopy(model)(inputs).sum().backward()
        capture.observing = False
        model(inputs).sum().backward()
        unseen = model(inputs)
        capture.observing = True
        unseen.sum().backward()
        seen = model(inputs)
        capture.observing = False
        seen.sum().backward()
        capture.observing = True
        assert not capture.sums
        assert capture.examples == 0
        assert capture.missing() == ("0", "1", "4", "7")


def test_wanted_factors_alone_are_measured() -> None:
    model = small_model()
    inputs = torch.randn(8, 3, 4, 4, dtype=DOUBLE)
    with capturing(model) as capture:
        capture.wanted = frozenset({"0.A", "7.G", "1.F"})
        model(inputs).sum().backward()
        assert set(capture.sums) == capture.wanted
        assert capture.missing() == ()
        assert capture.examples == 8
        assert capture.rows["0"] == 128
        capture.clear()
        assert capture.missing() == ("0", "1", "7")


def test_a_layer_that_takes_no_part_is_missing() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.cut = (nn.Linear(3, 3) for _ in range(3))

        def forward(self, inputs: Tensor) -> Tensor:
            self.cut(inputs)
            return self.used(inputs)

    model = Half()
    with capturing(model) as capture:
        model(torch.randn(2, 3)).sum().backward()
        assert capture.missing() == ("unused", "cut")


def test_examples_are_told_from_calls_and_positions() -> None:
    class Recurrent(nn.Module):
        """A cell called many times, an embedding of positions, a head."""

        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Embedding(4, 3)
            self.embedding = nn.Embedding(9, 3)
            self.cells = nn.Sequential(*(nn.Linear(3, 3) for _ in range(3)))
            self.head = nn.Linear(3, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            values = self.embedding(tokens) + self.position(torch.arange(4))
            state = values[:, 0]
            for step in range(4):
                state = torch.tanh(self.cells(state) + values[:, step])
            return self.head(state)

    model = Recurrent()
    with capturing(model) as capture:
        for examples in (7, 6):
            model(torch.randint(9, (examples, 4))).sum().backward()
        assert capture.examples == 13
        cells = {f"cells.{index}": 52 for index in range(3)}
        assert capture.rows == {"position": 8, "embedding": 52, "head": 13} | cells


def test_a_second_gradient_and_a_changed_input_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    with capturing(model):
        loss = model(torch.randn(2, 3)).square().sum()
        loss.backward(retain_graph=True)
        with pytest.raises(InputError, match="layer 0 must get the gradient of each pass once"):
            loss.backward()
    with capturing(model), torch.autocast("cpu", torch.bfloat16):
        inputs = torch.randn(2, 3)
        outputs = model(inputs)
        inputs.zero_()
        with pytest.raises(InputError, match="layer 0 must find its input unchanged"):
            outputs.sum().backward()


def test_inputs_by_name_and_single_examples() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(2, 3, 2)
            self.norm = nn.LayerNorm(3)
            self.linear = nn.Linear(3, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            values = self.convolution(input=inputs).amax((-1, -2))
            return self.linear(input=self.norm(input=values))

    model = Named()
    found = []
    for inputs in (torch.ones(2, 4, 4), torch.ones(1, 2, 4, 4)):
        with capturing(model) as capture, contextlib.suppress(StopIteration):
            model(inputs).sum().backward()
        assert capture.examples == 1
        assert capture.rows == {"convolution": 9, "norm": 1, "linear": 1}
        found.append(capture.sums)
    assert_same_sums(found[1], found[0])
