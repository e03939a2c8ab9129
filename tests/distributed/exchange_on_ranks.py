"""What every rank runs: exchanges of statistics, each result into a file; and a rank that is lost.

python -m torch.distributed.run --nproc-per-node=N exchange_on_ranks.py FOLDER
RANK=... WORLD_SIZE=2 MASTER_ADDR=... MASTER_PORT=... python exchange_on_ranks.py FOLDER lost
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from exact_cases import leave
from torch import Tensor

from anybatch.kfac.blocks import FactorShape
from anybatch.kfac.exchange import StatisticsExchange
from anybatch.kfac.overlap import OrderedBuckets
from anybatch.kfac.packing import PackedEntry
from anybatch.kfac.wire import Wire
from anybatch.world import LostRankError, ScatterRoute, World

Result = dict[str, Any]

FACTORS = (
    FactorShape("conv.A", "A", 2, 9, False),
    FactorShape("conv.G", "G", 2, 4, False),
    FactorShape("words.A", "A", 1, 31, True),
    FactorShape("words.G", "G", 1, 6, False),
    FactorShape("norm.F", "F", 5, 2, False),
    FactorShape("head.A", "A", 1, 12, False),
    FactorShape("head.G", "G", 1, 3, False),
)
ROUTES: tuple[ScatterRoute, ...] = ("reduce-scatter", "all-to-all", "all-reduce")
WIRES: tuple[Wire, ...] = ("bf16", "fp16")


def owners(ranks: int) -> dict[str, int]:
    """Unequal shares; on 4 ranks one of them owns nothing."""
    others = max(1, ranks - 1)
    return {factor.name: number % others for number, factor in enumerate(FACTORS)}


def whole_sums(rank: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Whole numbers, so that the order of additions cannot matter."""
    generator = torch.Generator().manual_seed(rank)
    sums = {}
    for factor in FACTORS:
        values = torch.randint(-999, 999, factor.shape, generator=generator)
        sums[factor.name] = (values if factor.diagonal else values + values.mT).to(dtype)
    return sums


def wide_sums(rank: int) -> dict[str, Tensor]:
    """Magnitudes far out of fp16, another one for each factor, and of 12 orders inside of it."""
    generator = torch.Generator().manual_seed(100 + rank)
    sums = {}
    for number, factor in enumerate(FACTORS):
        spread = 10 ** torch.empty(factor.shape).uniform_(-12, 0, generator=generator)
        values = torch.randn(factor.shape, generator=generator) * spread
        values = values if factor.diagonal else values + values.mT
        sums[factor.name] = values * 10.0 ** (6 * number - 18)
    return sums


def bytes_of(exchange: StatisticsExchange) -> tuple[int, int, int]:
    sent = exchange.sent
    return sent.payload_bytes, sent.padding_bytes, sent.link_bytes


def reduced(
    world: World,
    sums: Mapping[str, Tensor],
    *,
    names: tuple[str, ...] | None = None,
    wire: Wire = "fp32",
    dtype: torch.dtype = torch.float32,
    route: ScatterRoute | None = None,
) -> Result:
    """An exchange, and another of twice the sums, which finds the first one's memory."""
    exchange = StatisticsExchange(
        world, FACTORS, owners(world.size), wire, dtype=dtype, route=route
    )
    names = tuple(f.name for f in FACTORS) if names is None else names
    rounds = []
    for number in (1, 2):
        extra = torch.tensor([world.rank + 1.0, number], dtype=torch.float64)
        multiplied = {name: tensor * number for name, tensor in sums.items()}
        rounds.append((exchange.reduce_to_owners(multiplied, extra, names), extra))
    predicted = exchange.predicted_bytes(names, num_extra=2)
    predicted += predicted
    return {
        "owned": rounds[0][0],
        "again": rounds[1][0],
        "extra": [extra for _, extra in rounds],
        "sent": bytes_of(exchange),
        "predicted": (predicted.payload_bytes, predicted.padding_bytes, predicted.link_bytes),
        "bound": exchange.error_bound(names),
    }


def with_a_nan(world: World, wire: Wire, value: float) -> Result:
    sums = whole_sums(world.rank)
    if world.rank == world.size - 1:
        sums["head.A"][0, 3, 3] = value
    return reduced(world, sums, wire=wire)


def of_ranks_without_examples(world: World) -> Result:
    """All but rank 0 have seen nothing, and launch the same."""
    return reduced(world, whole_sums(0) if world.is_first else {})


def gathered(world: World) -> Result:
    """Inverses as triangles; gradients of any shape, with shares that pad well, and badly."""
    owner = owners(world.size)
    exchange = StatisticsExchange(world, FACTORS, owner, "fp16")
    inverses = wide_sums(7)
    inverses["conv.A"][0, 0, 0] = float("nan")
    mine = {name: tensor for name, tensor in inverses.items() if owner[name] == world.rank}
    results = {"inverses": exchange.gather_factors(mine, list(inverses))}
    generator = torch.Generator().manual_seed(3)
    predicted = exchange.predicted_gather_bytes(
        [PackedEntry.of(factor) for factor in FACTORS], owner, torch.float32
    )
    for name, sizes in {"even": (7, 8, 8, 7), "uneven": (100, 3, 2, 1)}.items():
        gradients = {
            str(number): torch.randn(2, size, 3, generator=generator).bfloat16()
            for number, size in enumerate(sizes)
        }
        owner = {key: int(key) % world.size for key in gradients}
        entries = [PackedEntry(k, tuple(g.shape), False) for k, g in gradients.items()]
        mine = {key: g.mT.clone().mT for key, g in gradients.items() if owner[key] == world.rank}
        predicted += exchange.predicted_gather_bytes(entries, owner, torch.bfloat16)
        results[name] = exchange.gather_from_owners(mine, entries, owner, torch.bfloat16)
        results[f"{name}-exact"] = gradients
    assert exchange.gather_from_owners({}, [], {}, torch.float32) == {}
    predicted_bytes = (predicted.payload_bytes, predicted.padding_bytes, predicted.link_bytes)
    return results | {"sent": bytes_of(exchange), "predicted": predicted_bytes}


def overlapped(world: World) -> Result:
    """Buckets leave between all-reduces of the other group, in another order on every rank."""
    exchange = StatisticsExchange(world, FACTORS, owners(world.size))
    names = [factor.name for factor in FACTORS]
    buckets = OrderedBuckets(exchange, [names[4:], names[2:4], names[:2]])
    sums = whole_sums(world.rank)
    gradient = torch.full((1000,), float(world.rank + 1))
    left = []
    if world.rank == world.size - 1:  # no examples: its collectives come all at once
        world.sum_in_place(gradient)
        sums = {}
    else:
        order = names[::-1] if world.rank == 0 else [*names[:2], *names[:1:-1]]
        for name in order:
            left.append(buckets.ready(name, sums[name]))
        world.sum_in_place(gradient)
    extra = torch.ones(1, dtype=torch.float64)
    owned = buckets.finish(extra)
    return {"owned": owned, "left": left, "gradient": gradient, "extra": extra}


def jobs() -> dict[str, Callable[[World], Result]]:
    """Exchanges by name."""
    found: dict[str, Callable[[World], Result]] = {
        "chosen": lambda world: reduced(world, whole_sums(world.rank)),
        "fp64": lambda world: reduced(
            world, whole_sums(world.rank, torch.float64), dtype=torch.float64
        ),
        "subset": lambda world: reduced(
            world, whole_sums(world.rank), names=("head.G", "words.A", "conv.G")
        ),
        "one-factor": lambda world: reduced(world, whole_sums(world.rank), names=("conv.A",)),
        "nothing-due": lambda world: reduced(world, whole_sums(world.rank), names=()),
        "no-examples": of_ranks_without_examples,
        "overlapped": overlapped,
        "gathered": gathered,
    }
    for route in ROUTES:
        found[f"route-{route}"] = lambda world, route=route: reduced(
            world, whole_sums(world.rank), route=route
        )
        for wire in WIRES:
            found[f"{wire}-{route}"] = lambda world, route=route, wire=wire: reduced(
                world, wide_sums(world.rank), wire=wire, route=route
            )
    for wire in ("fp32", *WIRES):
        for value in ("nan", "inf"):
            found[f"{value}-{wire}"] = partial(with_a_nan, wire=wire, value=float(value))
    return found


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Of every bit."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def lose_a_rank(folder: Path) -> None:
    """Rank 1 first is not here in time, then ends without a word; rank 0 says what it was told."""
    world = World.from_environment("cpu")
    late = StatisticsExchange(world, FACTORS, owners(2), timeout_seconds=1.5)
    ended = StatisticsExchange(world, FACTORS, owners(2), "fp16", timeout_seconds=60.0)
    ended.reduce_to_owners(whole_sums(world.rank))
    lines = []
    if world.rank == 1:
        while not (folder / "1.txt").exists():  # rank 0 has lost patience
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGKILL)
    for number, exchange in enumerate((late, ended), 1):
        began = time.monotonic()
        try:
            exchange.reduce_to_owners(whole_sums(0))
        except LostRankError as error:
            lines = [f"{time.monotonic() - began:.3f}", str(error)]
        (folder / f"{number}.part").write_text("\n".join(lines))
        (folder / f"{number}.part").rename(folder / f"{number}.txt")
    os._exit(0)


def main(folder: Path) -> None:
    world = World.from_environment("cpu")
    for name, job in jobs().items():
        result = job(world)
        torch.save(result, folder / f"{name}-{world.rank}.pt")
    world.close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[2:] == ["lost"]:
        lose_a_rank(Path(sys.argv[1]))
    else:
        main(Path(sys.argv[1]))
        leave()
