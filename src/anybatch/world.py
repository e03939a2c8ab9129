"""World: the processes that train together, and every collective that they call.

The only file that touches `torch.distributed`. A world of one process answers every question and
performs every collective as the identity, so callers need no branch for it. Started by torchrun,
the group is made from its environment: NCCL on CUDA, gloo on the CPU, the same code after that.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeVar, cast, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from anybatch.errors import InputError

__all__ = ["World"]

_T = TypeVar("_T")


@final
class World:
    """Rank, size and device of this process, and the collectives over all of them.

    Args:
        device: where this process computes.
        rank: number of this process, from 0.
        size: how many processes there are.

    Example:
        >>> world = World(torch.device("cpu"))
        >>> world.rank, world.size, world.from_first("agreed")
        (0, 1, 'agreed')
    """

    def __init__(self, device: torch.device, *, rank: int = 0, size: int = 1) -> None:
        self.device = device
        self.rank = rank
        self.size = size
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
            dist.all_reduce(tensor)

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

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()

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
        wrapped.register_comm_hook(None, _sum_bucket)
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
    """DDP communication hook: the bucket's sum over ranks, asynchronously."""
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
