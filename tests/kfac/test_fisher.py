"""Factors against the true Fisher, and the model's own distribution."""

from __future__ import annotations

import math

import pytest
import torch
from fisher_cases import DOUBLE, assert_same, capturing, statistics
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anybatch.errors import InputError
from anybatch.kfac.capture import Capture
from anybatch.kfac.fisher import output_gradients


def factors(
    model: nn.Module, inputs: Tensor, family: str, kind: str = "exact", **settings: object
) -> tuple[dict[str, Tensor], Capture]:
    """Statistics with G of the model's own distribution and A of an ordinary backward."""
    with capturing(model, fisher=kind, **settings) as capture:
        outputs = model(inputs)
        capture.add_model_statistics(outputs, family)
        outputs.sum().backward()
    assert capture.missing() == ()
    return statistics(capture, divisor=1.0), capture


def true_fisher(model: nn.Module, name: str, inputs: Tensor, family: str) -> Tensor:
    """Mean over examples of J^T H J of a layer's (weight, bias), by torch.func and by hand."""
    parameters = dict(model.named_parameters())
    layer = model.get_submodule(name)
    keys = [f"{name}.weight", f"{name}.bias"]
    keys = keys if layer.bias is not None else keys[:1]

    def outputs_of(values: dict[str, Tensor], example: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters | values, (example[None],))[0]

    total = torch.zeros((), dtype=inputs.dtype)
    for example in inputs:
        jacobians = torch.func.jacrev(outputs_of)({k: parameters[k] for k in keys}, example)
        outputs = outputs_of({}, example)
        classes = outputs.shape[-1]
        rows = len(layer.weight)
        flat = [jacobians[key].reshape(outputs.numel(), rows, -1) for key in keys]
        jacobian = torch.cat(flat, -1).reshape(outputs.numel(), -1)  # (out, in + bias), by rows
        if family == "gaussian":
            hessian = 2.0 / outputs.numel() * torch.eye(outputs.numel(), dtype=inputs.dtype)
        else:
            p = torch.softmax(outputs, -1).reshape(-1, classes)
            blocks = [torch.diag(each) - torch.outer(each, each) for each in p]
            hessian = torch.block_diag(*blocks) / len(p)
        total = total + jacobian.T @ hessian @ jacobian
    return total / len(inputs)


def product(found: dict[str, Tensor], name: str) -> Tensor:
    return torch.kron(found[f"{name}.G"][0], found[f"{name}.A"][0])


def test_deep_linear_networks_are_exact() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5, bias=False), nn.Linear(5, 2)).to(DOUBLE)
    inputs = torch.randn(7, 4, dtype=DOUBLE)
    found, _ = factors(model, inputs, "gaussian")
    for name in ("0", "1", "2"):
        assert_same(product(found, name), true_fisher(model, name, inputs, "gaussian"))


@pytest.mark.parametrize("family", ["softmax", "gaussian"])
def test_one_example_is_exact_in_any_network(family: str) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 3))
    model.to(DOUBLE)
    inputs = torch.randn(1, 4, dtype=DOUBLE)
    found, _ = factors(model, inputs, family)
    for name in ("0", "2", "4"):
        assert_same(product(found, name), true_fisher(model, name, inputs, family))


def test_one_example_is_exact_for_the_empirical_fisher() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).to(DOUBLE)
    with capturing(model) as capture:
        loss = nn.functional.cross_entropy(
            model(torch.randn(1, 4, dtype=DOUBLE)), torch.tensor([1])
        )
        loss.backward()
    for name in ("0", "2"):
        layer = model.get_submodule(name)
        g = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1).flatten()
        assert_same(product(statistics(capture, 1.0), name), torch.outer(g, g))


def test_the_last_layer_of_a_language_model_is_exact_for_one_example_of_one_position() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Embedding(6, 4), nn.Tanh(), nn.Linear(4, 3)).to(DOUBLE)
    tokens = torch.randint(6, (1, 1))
    found, _ = factors(model, tokens, "softmax")
    embedded = nn.Sequential(*model[1:])
    expected = true_fisher(embedded, "1", model[0](tokens).detach(), "softmax")
    assert_same(product(found, "2"), expected)


def test_positions_are_independent_and_their_loss_is_a_mean() -> None:
    torch.manual_seed(4)
    logits = torch.randn(2, 3, 4, dtype=DOUBLE)
    vectors = list(output_gradients(logits, "softmax", "exact"))
    assert len(vectors) == 12
    rows = torch.stack([vector.flatten(1) for vector in vectors])  # (vectors, n, T C)
    for example in range(2):
        p = torch.softmax(logits[example], -1)
        hessian = torch.block_diag(*(torch.diag(each) - torch.outer(each, each) for each in p)) / 3
        assert_same(torch.einsum("vi,vj->ij", rows[:, example], rows[:, example]), hessian)


@pytest.mark.parametrize(
    ("family", "shape"),
    [("softmax", (2, 3)), ("softmax", (1, 2, 3)), ("gaussian", (2, 2, 2)), ("gaussian", (2,))],
)
def test_draws_have_the_hessian_as_their_second_moment(family: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(5)
    outputs = torch.randn(shape, dtype=DOUBLE)
    many = outputs.repeat(40_000, *(1 for _ in shape[1:]))
    (drawn,) = output_gradients(many, family, "sampled", torch.Generator().manual_seed(0))
    rows = drawn.view(40_000, shape[0], -1)
    found = torch.einsum("sni,snj->nij", rows, rows) / 40_000
    exact = torch.stack(
        [v.reshape(shape[0], -1) for v in output_gradients(outputs, family, "exact")]
    )
    expected = torch.einsum("vni,vnj->nij", exact, exact)
    assert_same(found, expected, tolerance=0.03)


def test_sampling_errs_as_one_over_the_root_of_the_draws() -> None:
    torch.manual_seed(6)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).to(DOUBLE)
    inputs = torch.randn(4, 3, dtype=DOUBLE)
    exact, _ = factors(model, inputs, "softmax")
    generator = torch.Generator().manual_seed(1)

    def error(draws: int) -> float:
        squares = 0.0
        for _ in range(8):  # the mean over repetitions of the squared error
            with capturing(model, fisher="sampled") as capture:
                outputs = model(inputs)
                for _ in range(draws):
                    capture.add_model_statistics(outputs, "softmax", generator=generator)
                outputs.sum().backward()
            drawn = statistics(capture, divisor=draws**-0.5)["0.G"]
            squares += float((drawn - exact["0.G"]).square().sum())
        return math.sqrt(squares)

    assert 2.5 < error(4) / error(64) < 6.4  # 4


def test_norms_and_convolutions_of_the_models_own_distribution() -> None:
    torch.manual_seed(7)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 2),
        nn.GroupNorm(1, 3),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(12, 2),
    ).to(DOUBLE)
    inputs = torch.randn(1, 2, 3, 3, dtype=DOUBLE)
    found, _ = factors(model, inputs, "gaussian")
    fisher = true_fisher(model, "1", inputs, "gaussian").view(3, 2, 3, 2)
    assert_same(found["1.F"], fisher.diagonal(dim1=0, dim2=2).permute(2, 0, 1))
    assert_same(product(found, "4"), true_fisher(model, "4", inputs, "gaussian"))


def test_gradients_of_the_parameters_are_left_alone_and_factors_told_apart() -> None:
    torch.manual_seed(8)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 3))
    inputs = torch.randn(5, 3)
    with capturing(model, fisher="sampled") as capture:
        outputs = model(inputs)
        capture.wanted = frozenset({"0.A", "2.G"})
        capture.add_model_statistics(outputs, "softmax")
        assert set(capture.sums) == {"2.G"}
        assert all(parameter.grad is None for parameter in model.parameters())
        assert capture.examples == 0
        outputs.sum().backward()
        assert set(capture.sums) == {"0.A", "2.G"}
        assert capture.examples == 5


def test_a_checkpoint_that_does_not_reenter_is_walked_through() -> None:
    torch.manual_seed(11)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).to(DOUBLE)
    inputs = torch.randn(5, 3, dtype=DOUBLE)
    expected, _ = factors(model, inputs, "softmax")

    class Checkpointed(nn.Sequential):
        def forward(self, values: Tensor) -> Tensor:
            return checkpoint(nn.Sequential(*list(self)), values, use_reentrant=False)

    found, capture = factors(Checkpointed(*model), inputs, "softmax")
    assert not capture._open  # nothing of what was recomputed
    for name, value in expected.items():
        assert_same(found[name], value)


def test_draws_go_on_from_a_state_and_differ_between_ranks() -> None:
    torch.manual_seed(9)
    model = nn.Sequential(nn.Linear(3, 4))
    inputs = torch.randn(50, 3)

    def drawn(capture: Capture) -> Tensor:
        capture.clear()
        capture.add_model_statistics(model(inputs), "softmax")
        return capture.sums["0.G"]

    with capturing(model, fisher="sampled") as capture:
        drawn(capture)
        state = capture.state_dict()
        expected = drawn(capture)
        assert not torch.equal(drawn(capture), expected)
        capture._rank = 1
        capture.load_state_dict(state)
        assert not torch.equal(drawn(capture), expected)
    torch.manual_seed(10)
    with capturing(model, fisher="sampled") as capture:
        drawn(capture)
        assert not torch.equal(drawn(capture), expected)
        capture.load_state_dict(state)
        assert torch.equal(drawn(capture), expected)


def test_what_has_no_second_walk_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4))
    with capturing(model, fisher="exact") as capture:
        outputs = model(torch.randn(2, 3))
        with pytest.raises(InputError, match="model output must have a graph"):
            capture.add_model_statistics(outputs.detach(), "softmax")
        with pytest.raises(InputError, match="must be logits"):
            capture.add_model_statistics(outputs[..., None, None], "softmax")
