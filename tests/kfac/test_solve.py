"""Damped inverses: right where the problem is, and finite whatever comes in."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anybatch.errors import InputError
from anybatch.kfac import solve, solvers
from anybatch.kfac.solve import EventCounts, SolveEvent, Solver, damped_inverse, damped_inverses

SOLVERS: tuple[Solver, ...] = ("cholesky", "eigen")
SIDES = (1, 2, 3, 17)
DTYPES = (torch.float32, torch.float64)
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}  # of X M - I at condition 1e3


def spectrum(eigenvalues: Tensor, groups: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Symmetric matrices with these eigenvalues, exactly symmetric in `dtype`."""
    side = len(eigenvalues)
    generator = torch.Generator().manual_seed(side)
    noise = torch.randn(groups, side, side, generator=generator, dtype=torch.float64)
    vectors = torch.linalg.qr(noise).Q
    matrix = (vectors * eigenvalues.double()) @ vectors.mT
    return ((matrix + matrix.mT) / 2).to(dtype)


def decades(side: int, count: float) -> Tensor:
    """Eigenvalues from 1 down to 10^-count."""
    return torch.logspace(0.0, -count, side, dtype=torch.float64)


def distance_from_identity(inverse: Tensor, statistic: Tensor, damping: float) -> float:
    """Largest |X M - I|_F / sqrt(side) over groups, in float64."""
    eye = torch.eye(statistic.shape[-1], dtype=torch.float64)
    product = inverse.double() @ (statistic.double() + damping * eye)
    return float((product - eye).norm(dim=(1, 2)).max()) / math.sqrt(len(eye))


# --- well posed --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_well_posed_inverse_is_right_and_without_event(
    solver: Solver, side: int, dtype: torch.dtype
) -> None:
    statistic = spectrum(decades(side, 3), groups=3, dtype=dtype)
    before = statistic.clone()
    inverse, event = damped_inverse(statistic, 1e-3, solver=solver, name="0.A")
    assert event is None
    assert inverse is not None
    assert inverse.dtype == dtype
    assert torch.equal(inverse, inverse.mT)
    assert distance_from_identity(inverse, statistic, 1e-3) < TOLERANCE[dtype]
    assert torch.equal(statistic, before)


@pytest.mark.parametrize("solver", SOLVERS)
@settings(max_examples=30, deadline=None)
@given(side=st.integers(1, 12), groups=st.integers(1, 4), damping=st.floats(1e-2, 1e3))
def test_the_inverse_is_torchs(solver: Solver, side: int, groups: int, damping: float) -> None:
    statistic = spectrum(decades(side, 4), groups=groups)
    inverse, event = damped_inverse(statistic, damping, solver=solver, name="0.A")
    expected = torch.linalg.inv(statistic + damping * torch.eye(side, dtype=torch.float64))
    assert event is None
    torch.testing.assert_close(inverse, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", [5, 17, 64])
def test_by_halves(side: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solvers, "_LARGEST_LEAF", 4)
    monkeypatch.setattr(solvers, "is_served", lambda _: True)
    statistic = spectrum(decades(side, 3), dtype=dtype)
    inverse, event = damped_inverse(statistic, 1e-3, name="0.A")
    assert event is None
    assert inverse is not None
    assert torch.equal(inverse, inverse.mT)
    assert distance_from_identity(inverse, statistic, 1e-3) < TOLERANCE[dtype]


@pytest.mark.parametrize("position", [0, 8, 16])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_by_halves_a_bad_part_is_found_out_wherever_it_is(
    position: int, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solvers, "_LARGEST_LEAF", 4)
    monkeypatch.setattr(solvers, "is_served", lambda _: True)
    statistic = torch.eye(17)[None].clone()
    statistic[0, position, position] = value
    inverse, event = damped_inverse(statistic, 1e-3, name="0.A")
    assert event is not None
    assert event.name == "0.A"
    if math.isfinite(value):
        assert event.reason == "not-definite"
        assert inverse is not None
        assert torch.isfinite(inverse).all()
    else:
        assert event.reason == "not-finite"
        assert inverse is None


@pytest.mark.parametrize("solver", SOLVERS)
def test_each_group_takes_its_own_damping(solver: Solver) -> None:
    statistic, dampings = spectrum(decades(4, 1), groups=3), torch.tensor([0.1, 1.0, 10.0])
    inverse, _ = damped_inverse(statistic, dampings, solver=solver, name="0.A")
    assert inverse is not None
    for group, damping in enumerate(dampings.tolist()):
        one = slice(group, group + 1)
        assert distance_from_identity(inverse[one], statistic[one], damping) < 1e-7


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_diagonal_is_inverted_entry_by_entry(solver: Solver) -> None:
    diagonal = torch.tensor([[0.0, 1.0, 3.0], [7.0, 0.0, 1.0]])
    dampings = torch.tensor([1.0, 2.0])
    inverse, event = damped_inverse(diagonal, dampings, solver=solver, name="0.A")
    assert event is None
    torch.testing.assert_close(inverse, 1 / (diagonal + dampings[:, None]))


def test_two_by_two_takes_the_adjugate_with_the_products_of_float32_exact() -> None:
    # Determinant 2^-22: of products in float32 nothing would be left of it.
    first = 1 + 2.0**-11
    statistic = torch.tensor([[[first * first, first], [first, 1.0]]])
    inverse, event = damped_inverse(statistic, 2.0**-12, name="bn.F")
    assert event is None
    matrix = statistic.double() + 2.0**-12 * torch.eye(2)
    torch.testing.assert_close(inverse, torch.linalg.inv(matrix).float(), rtol=1e-6, atol=0.0)


def test_many_factors_are_what_each_is_alone() -> None:
    sizes = [(1, 4), (3, 4), (1, 300), (1, 300), (5, 2), (2, 1), (1, 4)]
    factors: list[tuple[str, Tensor, float | Tensor]] = [
        (str(index), spectrum(decades(side, 2), groups=groups), 0.1 * (index + 1))
        for index, (groups, side) in enumerate(sizes)
    ]
    factors += [("d", torch.rand(2, 4), 0.3), ("e", torch.rand(1, 4), torch.tensor(0.4))]
    for solver in SOLVERS:
        together = damped_inverses(factors, solver=solver)
        for (name, statistic, damping), (inverse, event) in zip(factors, together, strict=True):
            alone, _ = damped_inverse(statistic, damping, solver=solver, name=name)
            assert event is None
            torch.testing.assert_close(inverse, alone, rtol=1e-12, atol=1e-12)
    assert damped_inverses([]) == []


def test_an_inverse_does_not_keep_those_made_beside_it_in_memory() -> None:
    factors = [(str(index), torch.eye(8)[None], 1.0) for index in range(4)]
    for inverse, _ in damped_inverses(factors):
        assert inverse is not None
        assert inverse.untyped_storage().nbytes() == 8 * 8 * 4


def test_statistics_of_half_precision_are_inverted_in_float32_also_under_autocast() -> None:
    statistic = spectrum(decades(5, 1)).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for solver in SOLVERS:
            inverse, event = damped_inverse(statistic, 0.1, solver=solver, name="0.A")
            assert event is None
            assert inverse is not None
            assert inverse.dtype == torch.float32
            # By the lower triangle, of which rounding kept the other's mirror image.
            assert distance_from_identity(inverse, statistic, 0.1) < 1e-4


def test_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"statistic 0\.A must be \(groups, side, side\) or"):
        damped_inverse(torch.zeros(1, 3, 4), 1.0, name="0.A")


# --- whatever comes in ---------------------------------------------------------------------------


def broken(kind: str, side: int, dtype: torch.dtype) -> tuple[Tensor, float]:
    """A statistic of one group and its damping."""
    good = spectrum(decades(side, 2), dtype=dtype)
    noise = torch.randn(side, side, generator=torch.Generator().manual_seed(7)).to(dtype)
    thin = noise[:, : max(1, side // 3)]
    corner = torch.zeros_like(good)
    corner[0, -1, 0] = 1.0
    eye = torch.eye(side, dtype=dtype)
    cases = {
        "rank-deficient": ((thin @ thin.mT)[None], 1e-3),
        "rank-deficient, hardly damped": ((thin @ thin.mT)[None], 1e-12),
        "rank-deficient, not damped": ((thin @ thin.mT)[None], 0.0),
        "zero": (torch.zeros_like(good), 0.5),
        "zero, not damped": (torch.zeros_like(good), 0.0),
        "condition 1e12": (spectrum(decades(side, 12), dtype=dtype), 1e-13),
        "tiny": (good * 1e-30, 1e-33),
        "huge": (good * 1e30, 1e-3),
        "asymmetric by rounding": (good * (1 + 1e-6 * noise), 1e-3),
        "asymmetric": (good + 0.3 * corner, 1e-3),
        "indefinite by rounding": (good - 0.0102 * eye, 1e-4),
        "indefinite": (good - 0.5 * eye, 1e-6),
        "negative": (-good, 1e-6),
        "NaN": (torch.where(corner > 0, math.nan, good), 1e-3),
        "NaN above the diagonal": (torch.where(corner.mT > 0, math.nan, good), 1e-3),
        "infinite": (torch.where(corner > 0, math.inf, good), 1e-3),
        "infinite on the diagonal": (good + torch.where(eye > 0, math.inf, 0.0), 1e-3),
        "damping NaN": (good, math.nan),
    }
    return cases[kind]


KINDS = (
    "rank-deficient", "rank-deficient, hardly damped", "rank-deficient, not damped", "zero",
    "zero, not damped", "condition 1e12", "tiny", "huge", "asymmetric by rounding", "asymmetric",
    "indefinite by rounding", "indefinite", "negative", "NaN", "NaN above the diagonal", "infinite",
    "infinite on the diagonal", "damping NaN",
)  # fmt: skip
NOT_FINITE = (
    "NaN",
    "NaN above the diagonal",
    "infinite",
    "infinite on the diagonal",
    "damping NaN",
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_comes_in_an_inverse_is_finite_or_named_as_missing(
    kind: str, solver: Solver, side: int, dtype: torch.dtype
) -> None:
    statistic, damping = broken(kind, side, dtype)
    before = statistic.clone()
    inverse, event = damped_inverse(statistic, damping, solver=solver, name="0.A")
    assert torch.equal(statistic, before) or statistic.isnan().any()
    if kind in NOT_FINITE:
        assert inverse is None
        assert event == SolveEvent("0.A", "none", 1.0, "not-finite")
    elif kind == "zero, not damped":
        assert inverse is None
        assert event is not None
        assert event.rung == "none"
    else:
        assert inverse is not None
        assert inverse.dtype == dtype
        assert torch.isfinite(inverse).all()
        assert torch.equal(inverse, inverse.mT)
        assert (inverse.diagonal(dim1=1, dim2=2) > 0).all()
        assert torch.linalg.eigvalsh(inverse.double()).min() > 0 or event is None
    if kind in ("rank-deficient", "zero", "tiny", "huge", "asymmetric by rounding"):
        assert event is None
        assert inverse is not None
        assert distance_from_identity(inverse, statistic, damping) < 0.01


@pytest.mark.parametrize("solver", SOLVERS)
def test_zero_gives_the_damping_alone(solver: Solver) -> None:
    inverse, event = damped_inverse(torch.zeros(2, 3, 3), 0.25, solver=solver, name="0.A")
    assert event is None
    torch.testing.assert_close(inverse, 4.0 * torch.eye(3).expand(2, 3, 3))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("side", [2, 5])
def test_only_the_bad_group_climbs(side: int, solver: Solver) -> None:
    statistic = spectrum(decades(side, 2), groups=4)
    statistic[2] -= 0.5 * torch.eye(side, dtype=torch.float64)
    statistic[2, 0, -1] += 0.1  # so that the eigenvalues' way is not enough at once either
    inverse, event = damped_inverse(statistic, 1e-6, solver=solver, name="0.A")
    assert event is not None
    assert event.rung == "eigen" or side == 5
    assert inverse is not None
    good = [0, 1, 3]
    assert distance_from_identity(inverse[good], statistic[good], 1e-6) < 1e-9
    assert torch.isfinite(inverse[2]).all()
    assert torch.equal(inverse[2], inverse[2].mT)


def test_each_group_stays_on_the_first_rung_that_did() -> None:
    little = spectrum(torch.tensor([1.0, 0.5, -5e-3]), dtype=torch.float64)
    much = spectrum(torch.tensor([1.0, 0.5, -0.5]), dtype=torch.float64)
    inverse, event = damped_inverse(torch.cat([much, little]), 1e-3, name="0.A")
    assert event == SolveEvent("0.A", "eigen", 1.0, "not-definite")
    assert inverse is not None
    assert distance_from_identity(inverse[1:], little, 1e-2) < 1e-12  # damped ten times as much
    assert float(torch.linalg.eigvalsh(inverse[0])[-1]) == pytest.approx(1e3)


def test_one_bad_factor_leaves_the_others_of_its_size_alone() -> None:
    good, bad = spectrum(decades(4, 2)), torch.full((1, 4, 4), math.nan, dtype=torch.float64)
    for solver in SOLVERS:
        results = damped_inverses(
            [("a", good, 0.1), ("b", bad, 0.1), ("c", good, 0.1)], solver=solver
        )
        assert [event and event.name for _, event in results] == [None, "b", None]
        assert results[1][0] is None
        for index in (0, 2):
            inverse = results[index][0]
            assert inverse is not None
            assert distance_from_identity(inverse, good, 0.1) < 1e-12


# --- the rungs, each by a matrix that comes to it -----------------------------------------------


def test_symmetrized() -> None:
    # The lower triangle alone is not positive definite, both together are.
    statistic = torch.tensor([[[1.0, -1.0, 0.0], [1.2, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    inverse, event = damped_inverse(statistic, 0.1, name="0.A")
    assert event == SolveEvent("0.A", "symmetrized", 1.0, "not-definite")
    assert inverse is not None
    symmetric = (statistic + statistic.mT) / 2
    assert distance_from_identity(inverse, symmetric, 0.1) < 1e-6


@pytest.mark.parametrize(("below", "factor"), [(5e-3, 10.0), (5e-2, 100.0)])
def test_damped(below: float, factor: float) -> None:
    eigenvalues = torch.tensor([1.0, 0.5, -below])
    statistic = spectrum(eigenvalues, dtype=torch.float32)
    inverse, event = damped_inverse(statistic, 1e-3, name="0.A")
    assert event is not None
    assert (event.rung, event.reason) == ("damped", "not-definite")
    assert event.damping_factor == pytest.approx(factor)
    assert inverse is not None
    assert distance_from_identity(inverse, statistic, 1e-3 * factor) < 1e-3


def test_a_damping_of_nothing_is_raised_from_rounding() -> None:
    statistic = torch.diag(torch.tensor([1.0, 1.0, 0.0]))[None]
    inverse, event = damped_inverse(statistic, 0.0, name="0.A")
    assert event == SolveEvent("0.A", "damped", math.inf, "not-definite")
    raised = 10.0 * torch.finfo(torch.float32).eps * 2 / 3
    assert inverse is not None
    assert float(inverse[0, 2, 2]) == pytest.approx(1 / raised, rel=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_fp64(solver: Solver) -> None:
    rows = torch.randn(1, 128, 1, generator=torch.Generator().manual_seed(0))
    inverse, event = damped_inverse(rows @ rows.mT, 1e-7, solver=solver, name="0.A")
    assert event is not None
    assert event.rung == "fp64"
    assert inverse is not None
    assert inverse.dtype == torch.float32
    raised = 1e-7 * event.damping_factor
    values, vectors = torch.linalg.eigh((rows @ rows.mT).double()[0])  # rounded: not of rank one
    values = values.clamp_min(0.0) if solver == "eigen" else values
    exact = (vectors / (values + raised)) @ vectors.mT
    torch.testing.assert_close(inverse[0].double(), exact, rtol=1e-2, atol=1e-3 / raised)


@pytest.mark.parametrize("dtype", DTYPES)
def test_eigen_takes_negative_eigenvalues_as_zero_and_holds_what_the_precision_can(
    dtype: torch.dtype,
) -> None:
    statistic = spectrum(torch.tensor([1.0, 0.5, -0.5]), dtype=dtype)
    inverse, event = damped_inverse(statistic, 1e-4, name="0.A")
    assert event == SolveEvent("0.A", "eigen", 1.0, "not-definite")
    assert inverse is not None
    found = torch.linalg.eigvalsh(inverse.double()[0])
    expected = torch.tensor([1 / 1.0001, 1 / 0.5001, 1e4], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)
    inverse, _ = damped_inverse(statistic, 1e-30, name="0.A")
    assert inverse is not None
    smallest = 32 * torch.finfo(dtype).eps
    assert float(torch.linalg.eigvalsh(inverse.double()[0])[-1]) == pytest.approx(
        1 / smallest, rel=1e-2
    )


def test_diagonal_when_nothing_else_did(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(matrix: Tensor) -> None:
        raise torch.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    statistic = spectrum(torch.tensor([2.0, 1.0, 1.0, -0.5]))
    for solver in SOLVERS:
        inverse, event = damped_inverse(statistic, 1e-6, solver=solver, name="0.A")
        assert event == SolveEvent("0.A", "diagonal", 1.0, "not-definite")
        diagonal = statistic[0].diagonal().clamp_min(0.0) + 1e-6
        torch.testing.assert_close(inverse, torch.diag(1 / diagonal)[None])


def test_a_kept_diagonal_takes_negative_entries_as_zero() -> None:
    inverse, event = damped_inverse(torch.tensor([[1.0, -1e-9]]), 1e-9, name="0.A")
    assert event == SolveEvent("0.A", "diagonal", 1.0, "not-definite")
    assert inverse is not None
    assert inverse[0].tolist() == pytest.approx([1.0, 1e9])


def test_a_finite_inverse_that_is_useless_is_found_out() -> None:
    # Cholesky comes to its end, and what it gives is wrong in every digit.
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(1, 40, 39, generator=generator)
    statistic = rows @ rows.mT
    root, failed = torch.linalg.cholesky_ex(statistic + 1e-6 * torch.eye(40))
    assert int(failed) == 0
    plain = torch.cholesky_inverse(root)
    assert torch.isfinite(plain).all()
    assert distance_from_identity(plain, statistic, 1e-6) > 0.1
    inverse, event = damped_inverse(statistic, 1e-6, name="0.A")
    assert event is not None
    assert event.reason == "inaccurate"
    assert inverse is not None
    factor = event.damping_factor
    assert distance_from_identity(inverse, statistic, 1e-6 * factor) < 0.1


def test_the_host_looks_once_at_many_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    tolist = Tensor.tolist

    def counted(self: Tensor) -> object:
        looks.append(self.numel())
        return tolist(self)

    monkeypatch.setattr(Tensor, "tolist", counted)
    damped_inverses([(str(side), torch.eye(side)[None], 1.0) for side in (1, 2, 3, 3, 300)])
    assert looks == [5]
    assert solve.LARGEST_BATCHED_SIDE < 300  # so that both ways were taken


# --- counts --------------------------------------------------------------------------------------


def test_events_are_counted_by_name_and_rung_merged_and_kept() -> None:
    mine, other = EventCounts(), EventCounts()
    for counts, names in ((mine, "ab"), (other, "bc")):
        for name in names:
            counts.add(SolveEvent(name, "damped", 10.0, "not-definite"))
    other.add(SolveEvent("b", "none", 1.0, "not-finite"))
    mine.merge(other.state_dict())
    expected = {"a": {"damped": 1}, "b": {"damped": 2, "none": 1}, "c": {"damped": 1}}
    assert mine.state_dict() == expected
    assert mine.total == 5
    again = EventCounts()
    again.add(SolveEvent("z", "fp64", 1.0, "inaccurate"))
    again.load_state_dict(mine.state_dict())
    mine.add(SolveEvent("a", "damped", 10.0, "inaccurate"))
    assert again.state_dict() == expected
