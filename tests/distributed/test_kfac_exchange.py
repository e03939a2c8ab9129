"""Statistics between 2 and 4 ranks: exact sums at their owners, bytes as predicted, lost ranks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import exchange_on_ranks as cases
import pytest
import torch
from launching import launch

from anybatch.errors import InputError
from anybatch.kfac.exchange import StatisticsExchange
from anybatch.kfac.packing import PackedEntry, packed_count
from anybatch.kfac.routes import predicted_traffic, routed_layout
from anybatch.kfac.wire import largest_magnitudes, wire_error, wire_scales
from anybatch.world import World

ONE = World(torch.device("cpu"))
NAMES = [factor.name for factor in cases.FACTORS]
EXACT = ["chosen", "fp64", *(f"route-{route}" for route in cases.ROUTES)]


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory) -> list[dict[str, cases.Result]]:
    folder: Path = tmp_path_factory.mktemp("exchange")
    launch(request.param, cases.__file__, str(folder), seconds_allowed=120.0)
    return [
        {name: torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for name in cases.jobs()}
        for rank in range(request.param)
    ]


def total(size: int, sums=cases.whole_sums) -> dict[str, torch.Tensor]:
    parts = [sums(rank) for rank in range(size)]
    return {name: sum(part[name].double() for part in parts) for name in NAMES}


def assert_owned(ranks, case: str, names: list[str], exact: dict[str, torch.Tensor]) -> None:
    owner = cases.owners(len(ranks))
    for rank, results in enumerate(ranks):
        mine = [name for name in names if owner[name] == rank]
        for key, factor in (("owned", 1.0), ("again", 2.0)):
            found = results[case].get(key)
            if found is not None:
                assert sorted(found) == sorted(mine)
                for name in mine:
                    assert torch.equal(found[name].double(), factor * exact[name])


@pytest.mark.parametrize("case", EXACT)
def test_owners_get_exact_sums_by_every_route(ranks, case):
    assert_owned(ranks, case, NAMES, total(len(ranks)))
    dtype = torch.float64 if case == "fp64" else torch.float32
    owned = [tensor for results in ranks for tensor in results[case]["owned"].values()]
    assert {tensor.dtype for tensor in owned} == {dtype}
    assert len(owned) == len(NAMES)


def test_every_rank_gets_the_counts(ranks):
    size = len(ranks)
    for results in ranks:
        for result in results.values():
            if "again" in result:
                for number, extra in enumerate(result["extra"], 1):
                    assert extra.tolist() == [size * (size + 1) / 2, size * number]


def test_only_what_is_due_travels(ranks):
    subset = ["conv.G", "words.A", "head.G"]
    assert_owned(ranks, "subset", subset, total(len(ranks)))
    assert_owned(ranks, "one-factor", ["conv.A"], total(len(ranks)))
    assert_owned(ranks, "nothing-due", [], {})
    for results in ranks:
        payload = 2 * 4 * (2 * packed_count(4) + 31 + packed_count(3))
        assert results["subset"]["sent"][0] == payload
        assert results["nothing-due"]["sent"][:2] == (0, 0)


def test_ranks_without_examples_join(ranks):
    assert_owned(ranks, "no-examples", NAMES, cases.whole_sums(0, torch.float64))


def test_buckets_leave_in_order_between_other_collectives(ranks):
    assert_owned(ranks, "overlapped", NAMES, total(len(ranks), _without_the_last(len(ranks))))
    size = len(ranks)
    for rank, results in enumerate(ranks):
        result = results["overlapped"]
        assert result["gradient"].unique().tolist() == [size * (size + 1) / 2]
        assert result["extra"].tolist() == [size]
        if rank == 0:  # backwards, as they become ready in a backward pass
            assert result["left"] == [0, 0, 1, 1, 2, 2, 3]
        elif rank < size - 1:  # the last bucket was ready first, and waited
            assert result["left"] == [0, 0, 0, 0, 1, 1, 3]


def _without_the_last(size: int):
    def sums(rank: int) -> dict[str, torch.Tensor]:
        return {n: s * (rank < size - 1) for n, s in cases.whole_sums(rank).items()}

    return sums


@pytest.mark.parametrize("route", cases.ROUTES)
@pytest.mark.parametrize("wire", cases.WIRES)
def test_half_precision_stays_within_its_bound_and_is_used(ranks, wire, route):
    size = len(ranks)
    parts = [cases.wide_sums(rank) for rank in range(size)]
    exact = total(size, cases.wide_sums)
    relative, absolute = wire_error(wire, size, added_in_full=route == "all-to-all")
    worst = 0.0
    for results in ranks:
        assert results[f"{wire}-{route}"]["bound"] == (relative, absolute)
        for name, received in results[f"{wire}-{route}"]["owned"].items():
            magnitudes = sum(part[name].double().abs() for part in parts)
            largest = max(float(part[name].abs().max()) for part in parts)
            bound = (relative + size * 2.0**-24) * magnitudes + absolute * largest
            error = (received.double() - exact[name]).abs()
            assert (error <= bound).all(), name
            worst = max(worst, float((error / bound).max()))
    assert worst > 0.2  # neither vacuous nor left in full precision


def test_a_tensor_that_is_not_finite_arrives_as_nan_and_spares_the_others(ranks):
    exact = total(len(ranks))
    for value in ("nan", "inf"):
        for wire in ("fp32", *cases.WIRES):
            for results in ranks:
                for name, received in results[f"{value}-{wire}"]["owned"].items():
                    if name != "head.A":
                        assert torch.isfinite(received).all()
                        torch.testing.assert_close(
                            received.double(), exact[name], rtol=0.0, atol=2e3 * 2.0**-6
                        )
                    elif wire != "fp32":
                        assert received.isnan().all()
                    else:  # as a sum without any wire would be
                        assert torch.isfinite(received).sum() == received.numel() - 1
                        assert not torch.isfinite(received[0, 3, 3])


def test_gathered_tensors_are_the_owners_to_the_last_bit_everywhere(ranks):
    exact = cases.wide_sums(7)
    exact["conv.A"][0, 0, 0] = float("nan")
    for results in ranks:
        result = results["gathered"]
        assert cases.digest(result["inverses"]) == cases.digest(exact)
        for name in ("even", "uneven"):
            assert cases.digest(result[name]) == cases.digest(result[f"{name}-exact"])


def test_bytes_are_counted_as_predicted(ranks):
    size = len(ranks)
    elements = sum(
        f.groups * (f.side if f.diagonal else packed_count(f.side)) for f in cases.FACTORS
    )
    for results in ranks:
        for result in results.values():
            if "sent" in result:
                assert result["sent"] == result["predicted"]
        for name in (*EXACT, *(f"{w}-{r}" for w in cases.WIRES for r in cases.ROUTES)):
            item = 8 if name == "fp64" else 2 if name[:4] in cases.WIRES else 4
            assert results[name]["sent"][0] == 2 * item * elements
        small = 2 * 2 * (size - 1) * 16 // size  # twice the all-reduce of two counts
        payload, padding, link = results["route-all-reduce"]["sent"]
        assert (padding, link) == (0, 2 * -(-2 * (size - 1) * (payload // 2) // size) + small)
        payload, padding, link = results["route-reduce-scatter"]["sent"]
        assert padding > 0
        assert link == (size - 1) * (payload + padding) // size + small
        assert results["route-all-to-all"]["sent"][1] == 0
        # Large against small shares: an all-reduce sends less than padding would.
        assert results["one-factor"]["sent"][1] == 0


@pytest.mark.parametrize("size", [2, 3, 8, 64])
def test_the_route_is_the_one_that_sends_less(size):
    entries = [PackedEntry.of(factor) for factor in cases.FACTORS]
    for owner in (cases.owners(size), dict.fromkeys(NAMES, 0)):
        chosen = routed_layout(entries, owner, size, scatter="reduce-scatter")
        sent = [
            predicted_traffic(
                *routed_layout(entries, owner, size, scatter=route, forced=route), 0, 2
            ).link_bytes
            for route in ("reduce-scatter", "all-reduce")
        ]
        assert predicted_traffic(*chosen, 0, 2).link_bytes == min(sent)


def test_one_rank_keeps_what_it_has():
    exchange = StatisticsExchange(ONE, cases.FACTORS, dict.fromkeys(NAMES, 0), "fp16")
    sums = cases.wide_sums(0)
    extra = torch.ones(2, dtype=torch.float64)
    owned = exchange.reduce_to_owners(sums, extra)
    assert all(owned[name] is sums[name] for name in NAMES)  # no copies, nothing rounded
    assert exchange.gather_factors(owned, NAMES) == owned
    assert extra.tolist() == [1.0, 1.0]
    assert not exchange.reduce_to_owners({}, names=["head.G"])["head.G"].any()
    sent = exchange.sent
    assert (sent.payload_bytes, sent.padding_bytes, sent.link_bytes) == (0, 0, 0)
    assert exchange.predicted_bytes(NAMES, 2) == sent
    assert exchange.error_bound(NAMES) == (0.0, 0.0)


def test_what_would_go_wrong_far_away_is_refused_here():
    owner = dict.fromkeys(NAMES, 0)
    with pytest.raises(InputError, match=r"the owner of head\.G must be a rank, got 1"):
        StatisticsExchange(ONE, cases.FACTORS, owner | {"head.G": 1})
    with pytest.raises(InputError, match=r"the owner of conv\.A must be a rank, got -1"):
        StatisticsExchange(ONE, cases.FACTORS, {})
    exchange = StatisticsExchange(ONE, cases.FACTORS, owner)
    with pytest.raises(InputError, match="factors must be known to the exchange"):
        exchange.reduce_to_owners({}, names=["tail.A"])
    with pytest.raises(InputError, match=r"the sum of conv\.A must be torch\.float32"):
        exchange.reduce_to_owners(cases.whole_sums(0, torch.float64))


def test_scales_fit_any_magnitude():
    tiny, huge = 1e-38, 3e38
    largest = torch.tensor([tiny, 1.0, huge, 0.0])
    for size in (1, 2, 3, 1024):
        scales = wire_scales(largest, size)
        assert (largest * scales * size <= 2.0**15).all()
        assert (largest * scales * size > 2.0**13)[1:3].all()
        assert torch.equal(torch.frexp(scales).mantissa, torch.full((4,), 0.5))  # powers of two
        assert torch.isfinite(1 / scales).all()
    wide = largest_magnitudes(
        {"a": torch.tensor([-1e300], dtype=torch.float64)},
        ["a"],
        torch.zeros((), dtype=torch.float64),
    )
    assert 2.0**13 < float(wide * wire_scales(wide, 1)) < 2.0**15


@pytest.mark.timeout(120)
def test_a_late_and_a_killed_rank_are_a_clear_error_in_time(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    command = [sys.executable, cases.__file__, str(tmp_path), "lost"]
    processes = [
        subprocess.Popen(command, env=os.environ | common | {"RANK": rank}) for rank in ("0", "1")
    ]
    try:
        codes = [process.wait(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, -9]
    for number, longest in ((1, 10.0), (2, 30.0)):  # a timeout of 1.5 s; one of 60 s not waited for
        seconds, line = (tmp_path / f"{number}.txt").read_text().split("\n")
        assert "another rank has ended or hangs" in line
        assert "over 2 ranks" in line
        assert float(seconds) < longest
