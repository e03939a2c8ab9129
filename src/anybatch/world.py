"""World: the processes that train together, and every collective that they call.

The only file that touches `torch.distributed`. A world of one process answers every question and
performs every collective as the identity, so callers need no branch for it. Started by torchrun,
the group is made from its environment: NCCL on CUDA, gloo on the CPU, the same code after that.
"""

from __future__ import annotations

import contextlib
import datetime
import inspect
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeAlias, TypeVar, cast, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from anybatch.errors import InputError

__all__ = ["Arrival", "Channel", "LostRankError", "ScatterRoute", "World"]

_T = TypeVar("_T")


@final
class World:
    """Rank, size and device of this process, and the collectives over all of them.

    Args:
        device: where this process computes.
        rank: number of this process, from 0.
        size: how many processes there are.

    Attributes:
        reduced_bytes: that this rank has handed to all-reduces, gradients included. A ring carries
            2 (size - 1) / size times as many over each rank's link.

    Example:
        >>> world = World(torch.device("cpu"))
        >>> world.rank, world.size, world.from_first("agreed")
        (0, 1, 'agreed')
    """

    def __init__(self, device: torch.device, *, rank: int = 0, size: int = 1) -> None:
        self.device = device
        self.rank = rank
        self.size = size
        self.reduced_bytes = 0
        self._made_group = False

    @classmethod
    def from_environment(cls, device: Literal["auto", "cpu", "cuda"] = "auto") -> World:
        """The world that torchrun's variables describe, or a world of one.

        Raises:
            InputError: "cuda" asked for where there is none.
        """
        chosen = _choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls(chosen)
        made_group = not dist.is_initialized()
        if made_group:
            _make_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
        world = cls(chosen, rank=dist.get_rank(), size=dist.get_world_size())
        world._made_group = made_group
        return world

    @classmethod
    def of_group(cls, device: torch.device) -> World:
        """The world of the process group that somebody has made, or a world of one.

        Args:
            device: where this process computes; nothing is set.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return cls(device)
        return cls(device, rank=dist.get_rank(), size=dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone writes files and prints."""
        return self.rank == 0

    def sum_in_place(self, tensor: Tensor) -> None:
        """Replace `tensor` by its sum over all ranks.

        Collectives: one all-reduce of the tensor's size; every rank must call.
        """
        if self.size > 1:
            self._count(tensor)
            dist.all_reduce(tensor)

    def _count(self, tensor: Tensor) -> None:
        self.reduced_bytes += tensor.numel() * tensor.element_size()

    def from_first(self, value: _T) -> _T:
        """Rank 0's `value` on every rank; for decisions on clocks, signals and files.

        Collectives: one broadcast of a pickled object; every rank must call.
        """
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self._object_device)
        return box[0]

    @property
    def _object_device(self) -> torch.device:
        """Where pickled objects travel: the CPU, unless the user's own group has only NCCL."""
        return self.device if dist.get_backend() == "nccl" else torch.device("cpu")

    def all_values(self, value: _T) -> list[_T]:
        """Every rank's `value`, in rank order.

        Collectives: one all-gather of pickled objects; every rank must call.
        """
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return cast("list[_T]", gathered)

    def largest_in_place(self, tensor: Tensor) -> None:
        """Replace every value of `tensor` by the largest over all ranks.

        Collectives: one all-reduce of the tensor's size; every rank must call.
        """
        if self.size > 1:
            self._count(tensor)
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)

    def averager(self, every: int) -> PeriodicModelAverager:
        """An averager of torch's over these ranks, for `average_in_place`.

        Args:
            every: calls from one averaging to the next, >= 1; the first call averages.
        """
        with warnings.catch_warnings():  # that every = 1 sends as much as gradients would
            warnings.simplefilter("ignore")
            return PeriodicModelAverager(every)

    def average_in_place(
        self, tensors: Sequence[Tensor], averager: PeriodicModelAverager | None = None
    ) -> bool:
        """Replace tensors by their mean over all ranks, each rank weighing the same.

        Args:
            tensors: floating-point, the same shapes on every rank.
            averager: says whether it is time; None: it is.

        Returns:
            Whether they were averaged.

        Collectives: one all-reduce of their size, where it is time; every rank must call.
        """
        if self.size == 1 or not tensors:
            return False
        averager = averager or self.averager(1)
        is_time = bool(averager.step % averager.period == 0)
        # The averager gives its tensors new memory; stand-ins spare ours, with strides and views.
        # It leaves out what has no gradient.
        stand_ins = [tensor.detach() for tensor in tensors]
        for stand_in in stand_ins:
            stand_in.grad = stand_in.detach()
        groups: Any = [{"params": stand_ins}]
        averager.average_parameters(groups)
        for tensor, stand_in in zip(tensors, stand_ins, strict=True) if is_time else ():
            self._count(tensor)
            tensor.copy_(stand_in)
        return is_time

    def all_rows(self, tensor: Tensor, counts: Sequence[int]) -> Tensor:
        """The rows of every rank's `tensor`, in rank order.

        Args:
            tensor: its shape but for the rows, and its type, are the same on every rank.
            counts: rows of each rank; some may be 0.

        Collectives: one all-gather of size * max(counts) rows; every rank must call.
        """
        if self.size == 1:
            return tensor
        padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        # As bytes: gloo does not know every type.
        own = padded.flatten().view(torch.uint8)
        gathered = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(gathered, own)
        rows = [part.view(tensor.dtype).view_as(padded) for part in gathered]
        return torch.cat([part[:count] for part, count in zip(rows, counts, strict=True)])

    def values_at_first(self, value: _T) -> list[_T]:
        """Every rank's `value`, in rank order, on rank 0; nothing on the others.

        Collectives: one gather of pickled objects; every rank must call.
        """
        if self.size == 1:
            return [value]
        gathered: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(value, gathered, dst=0)
        return cast("list[_T]", gathered or [])

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()

    def channel(self, timeout_seconds: float | None = None) -> Channel:
        """A process group of its own over the same ranks, whose collectives wait for no other's.

        Args:
            timeout_seconds: after which a collective fails on ranks that wait for another, > 0;
                None: torch's (of NCCL 10 minutes, of gloo 30).

        Collectives: a meeting of all ranks; every rank must call, in the same order.
        """
        if self.size == 1:
            return Channel(self, None)
        seconds = timeout_seconds
        timeout = None if seconds is None else datetime.timedelta(seconds=seconds)
        return Channel(self, dist.new_group(timeout=timeout))

    def parallel(self, model: nn.Module, *, some_unused: bool = False) -> nn.Module:
        """The model wrapped so that its backward pass sums gradients over the ranks.

        torch's reducer with a communication hook: buckets travel while backward goes on. The sum,
        not the mean, so that a loss weighted by example counts needs no correction.

        Args:
            model: its parameters are taken from rank 0.
            some_unused: whether a forward pass may leave trainable parameters out, which costs a
                walk over the graph in every update.

        Collectives: in every synchronized backward, the gradient's size; every rank must join.
        """
        if self.size == 1 or not any(p.requires_grad for p in model.parameters()):
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        # Running statistics are the same on every rank already; torch renamed the switch in 2.13.
        parameters = inspect.signature(DistributedDataParallel).parameters
        renamed = "forward_sync_buffers" in parameters
        buffers: dict[str, Any] = {
            "forward_sync_buffers" if renamed else "broadcast_buffers": False
        }
        wrapped = DistributedDataParallel(
            model,
            device_ids=ids,
            gradient_as_bucket_view=True,
            find_unused_parameters=some_unused,
            **buffers,
        )
        wrapped.register_comm_hook(self, _sum_bucket)
        return wrapped

    def without_communication(self, model: nn.Module) -> AbstractContextManager[Any]:
        """A context in which backward only accumulates locally (all micro-batches but the last)."""
        if isinstance(model, DistributedDataParallel):
            return model.no_sync()
        return contextlib.nullcontext()

    def close(self, *, together: bool = True) -> None:
        """Leave the process group, if this world made it.

        Args:
            together: wait for the other ranks first; False after an error, when they may be stuck.

        Collectives: one barrier, where `together`; every rank must call.
        """
        if self._made_group and dist.is_initialized():
            if together:
                # gloo's threads outlive the group (torch's DDP holds it). One that still lets go of
                # the last tensor while Python ends would abort the process; here it has time to.
                dist.barrier()
            dist.destroy_process_group()


class LostRankError(RuntimeError):
    """A collective that did not finish, since another rank has ended or hangs: one line."""


ScatterRoute: TypeAlias = Literal["reduce-scatter", "all-to-all", "all-reduce"]


@final
class Arrival:
    """What a collective will have done; several may be on their way.

    Args:
        works: of torch.
        what: is under way, for the message of an error.
    """

    def __init__(self, works: Sequence[dist.Work], what: str) -> None:
        self._works = works
        self._what = what

    def wait(self) -> None:
        """Until the result may be used: on a GPU by what is launched after this, else by now.

        Raises:
            LostRankError: another rank has ended, or is not here in time.
        """
        with _named(self._what):
            for work in self._works:
                work.wait()


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # Without the place in torch's source, and the advice that follows.
        reason = re.sub(r"\[[^\]]*:\d+\] ", "", " ".join(str(error).split())).split(". ")[0][:200]
        raise LostRankError(f"{what}: another rank has ended or hangs ({reason})") from error


@final
class Channel:
    """Collectives in a process group of their own, which overlap with a backward pass's.

    Every rank must launch the same ones in the same order. Made by `World.channel`; of one rank
    everything is the identity.

    Args:
        world: whose ranks these are.
        group: of torch; None in a world of one.

    Attributes:
        link_bytes: that this rank has sent through its link, as rings count: of n bytes on R ranks
            2 (R - 1) n / R in an all-reduce, (R - 1) n / R in a reduce-scatter or an all-gather;
            in an all-to-all what it sends or what it receives, whichever is more.
    """

    def __init__(self, world: World, group: dist.ProcessGroup | None) -> None:
        self.size, self.rank = world.size, world.rank
        self.link_bytes = 0
        self._group = group
        self._device = world.device

    def close(self) -> None:
        """Leave the group, once everything launched has arrived."""
        if self._group is not None and dist.is_initialized():
            dist.destroy_process_group(self._group)
        self._group = None

    @property
    def scatter_route(self) -> ScatterRoute:
        """How shares of a sum get to their ranks by the fewest bytes on this backend.

        gloo's reduce-scatter is an all-reduce inside, and slower; its all-to-all is not.
        """
        if self._group is None:
            return "all-reduce"
        parts = dist.get_backend_config(self._group).split(",")
        backends = dict(part.split(":", 1) for part in parts if ":" in part)
        if backends.get(self._device.type) != "gloo":
            return "reduce-scatter"
        return "all-to-all" if self._device.type == "cpu" else "all-reduce"

    def sum_in_place(self, tensor: Tensor) -> Arrival:
        """Launch: `tensor` becomes its sum over all ranks."""
        return self._all_reduce(tensor, dist.ReduceOp.SUM)

    def largest_in_place(self, tensor: Tensor) -> Arrival:
        """Launch: every value of `tensor` becomes the largest over all ranks."""
        return self._all_reduce(tensor, dist.ReduceOp.MAX)

    def _all_reduce(self, tensor: Tensor, operation: Any) -> Arrival:
        what = "an all-reduce"
        if self._group is None:
            return Arrival([], what)
        self.link_bytes += -(-2 * (self.size - 1) * tensor.nbytes // self.size)
        with _named(what):
            work = dist.all_reduce(tensor, operation, group=self._group, async_op=True)
        return self._arrival(work, what)

    def reduce_scatter(self, flat: Tensor, own: Tensor) -> Arrival:
        """Launch: `own` becomes the sum over all ranks of this rank's equal share of `flat`."""
        what = "a reduce-scatter"
        if self._group is None:
            own.copy_(flat)
            return Arrival([], what)
        self.link_bytes += (self.size - 1) * own.nbytes
        with _named(what):
            scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
            work = scatter(own, flat, group=self._group, async_op=True)  # renamed in torch 2.13
        return self._arrival(work, what)

    def all_to_all(self, flat: Tensor, received: Tensor, counts: Sequence[int]) -> Arrival:
        """Launch: `received` becomes every rank's part for this rank, in rank order.

        Args:
            flat: parts for all ranks, in rank order.
            received: size * counts[rank] elements.
            counts: elements of each rank's part, the same on every rank.
        """
        what = "an all-to-all"
        if self._group is None:
            received.copy_(flat)
            return Arrival([], what)
        own = counts[self.rank]
        elements = max(sum(counts) - own, (self.size - 1) * own)
        self.link_bytes += elements * flat.element_size()
        with _named(what):
            work = dist.all_to_all_single(
                received, flat, [own] * self.size, list(counts), group=self._group, async_op=True
            )
        return self._arrival(work, what)

    def all_gather(self, own: Tensor, flat: Tensor) -> Arrival:
        """Launch: `flat` becomes every rank's `own`, of equal shares, in rank order."""
        what = "an all-gather"
        if self._group is None:
            flat.copy_(own)
            return Arrival([], what)
        self.link_bytes += (self.size - 1) * own.nbytes
        with _named(what):
            gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
            work = gather(flat, own, group=self._group, async_op=True)  # renamed in torch 2.13
        return self._arrival(work, what)

    def _arrival(self, work: dist.Work | None, what: str) -> Arrival:
        return Arrival([] if work is None else [work], f"{what} over {self.size} ranks")


_groups_made = 0  # in this process, one after the other


def _make_group(backend: str) -> None:
    """A process group from torchrun's environment, also a second one after the first was left.

    Objects (decisions, random states) travel by gloo, so that they never wait for a GPU. Each group
    takes keys of its own in torchrun's store: with those of the one before, ranks that arrive
    early would meet addresses that nobody listens at any more.
    """
    global _groups_made
    store, rank, size = next(iter(rendezvous("env://")))
    _groups_made += 1
    store = PrefixStore(f"anybatch-{_groups_made}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)


def _sum_bucket(state, bucket):  # type: ignore[no-untyped-def]  # torch refuses text annotations
    """DDP communication hook: the bucket's sum over the ranks of a World, asynchronously."""
    state._count(bucket.buffer())
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    future = cast("torch.futures.Future[list[Tensor]]", work.get_future())
    return future.then(_first_tensor)


def _first_tensor(done: torch.futures.Future[list[Tensor]]) -> Tensor:
    return done.value()[0]


def _choose_device(device: str, local_rank: int) -> torch.device:
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise InputError("compute.device", "must be present on this machine", device)
    if device == "cpu" or not available:
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        rule = f"must be below the number of GPUs {torch.cuda.device_count()}"
        raise InputError("local rank", rule, local_rank)
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
