"""Where the trials of a study are trained: in this process, in several local ones, or on Ray."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol, TypeAlias

from anybatch.errors import InputError
from anybatch.recipe import Recipe
from anybatch.studies.trials import STOP
from anybatch.task import Task

__all__ = ["Work", "Workers", "opened_workers"]


class Work(Protocol):
    """A trial as a plain value that any process can carry out, from wherever it stands."""

    @property
    def path(self) -> Path:
        """Folder of the trial."""
        ...

    @property
    def recipe(self) -> Recipe:
        """What it trains with; says the number of threads."""
        ...

    def carry_out(self, task: Task | None) -> None:
        """Train what is left of it; without a task it makes its own."""
        ...


Carrier: TypeAlias = Callable[[Sequence[Work]], Iterator[Work]]
"""Carries trials out, and yields each once it is done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """Where trials are trained.

    Attributes:
        on: "local", or "ray": a running cluster that RAY_ADDRESS names, else one on this machine.
        processes: at once, >= 1; "local" with 1 is this process itself.

    Example:
        >>> Workers.parse("local:2")
        Workers(on='local', processes=2)
    """

    on: Literal["local", "ray"] = "local"
    processes: int = 1

    @classmethod
    def parse(cls, text: str) -> Workers:
        """Read "local", "local:2", "ray" or "ray:8"."""
        name, colon, count = text.partition(":")
        if name not in ("local", "ray") or (colon and not (count.isdecimal() and int(count) > 0)):
            rule = 'must be "local" or "ray", with a number of processes as in "local:2"'
            raise InputError("on", rule, text)
        given = int(count) if colon else (os.cpu_count() or 1) if name == "ray" else 1
        return cls(on="ray" if name == "ray" else "local", processes=given)

    @property
    def threads(self) -> int:
        """Threads of each process on this machine: cores // processes, at least 1."""
        return max(1, _cores() // self.processes)


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def opened_workers(workers: Workers, task: Task | None) -> Iterator[Carrier]:
    """What carries trials out, for as long as the block lasts.

    Args:
        workers: where.
        task: of the study; another process makes it again from its reference. None where each
            trial makes its own.

    Raises:
        InputError: a task made by hand for other processes, or Ray is not installed.
    """
    if workers == Workers():
        yield functools.partial(_here, task)
        return
    if task is not None and not task.reference.get("name"):
        rule = "must be local for a task made by hand, which no other process can make again"
        raise InputError("on", rule, workers.on)
    opened = _ray(workers) if workers.on == "ray" else _processes(workers.processes)
    with opened as carrier:
        yield carrier


def _here(task: Task | None, orders: Sequence[Work]) -> Iterator[Work]:
    for order in orders:
        order.carry_out(task)
        yield order


def _carry_out_again(order: Work) -> tuple[str, str, str, str] | None:
    """Carry an order out where the task must be made first; returns an InputError in parts."""
    try:
        order.carry_out(None)
    except InputError as error:  # which cannot be pickled
        return error.thing, error.rule, error.hint, str(error)
    return None


def _raise(parts: tuple[str, str, str, str] | None) -> None:
    """Raise the InputError that another process has met, if any."""
    if parts is not None:
        error = InputError(parts[0], parts[1], hint=parts[2])
        error.args = (parts[3],)
        raise error


# --- local processes -----------------------------------------------------------------------------


@contextmanager
def _processes(count: int) -> Iterator[Carrier]:
    """Spawned processes that live as long as this one, and save their trials when it is told to."""
    before = {child.pid for child in multiprocessing.active_children()}
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(count, mp_context=context, initializer=_begin_process)
    try:
        with _sigterm_raised():
            yield functools.partial(_in_processes, executor, count)
    except BaseException:
        for child in multiprocessing.active_children():
            if child.pid is not None and child.pid not in before:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGTERM)  # saves its trial
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _sigterm_raised() -> Iterator[None]:
    """SIGTERM as SystemExit, so that the other processes are told; in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    kept = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, kept)


def _begin_process() -> None:
    """Signals save the trial and are otherwise the parent's; without a parent there is no point."""

    def stop(number: int, frame: FrameType | None) -> None:
        STOP.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _in_processes(
    executor: ProcessPoolExecutor, count: int, orders: Sequence[Work]
) -> Iterator[Work]:
    """Never more than `count` under way: none may wait in a queue when all are told to stop."""
    left, running = list(reversed(orders)), dict[Future[Any], Work]()
    while left or running:
        while left and len(running) < count:
            order = left.pop()
            running[executor.submit(_carry_out_again, order)] = order
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            order = running.pop(future)
            try:
                _raise(future.result())
            except BrokenProcessPool:
                rule = "must live as long as its trial; it was killed, perhaps for its memory"
                raise InputError("process", rule, hint="the study can be resumed") from None
            yield order


# --- Ray -----------------------------------------------------------------------------------------


@contextmanager
def _ray(workers: Workers) -> Iterator[Carrier]:
    """Tasks of a Ray cluster, which must see the study's folder and the data under their paths."""
    try:
        import ray
    except ImportError:
        raise InputError("ray", "must be installed", hint='pip install "anybatch[ray]"') from None
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        yield functools.partial(_on_ray, ray, workers)
    finally:
        if is_ours:
            ray.shutdown()


def _on_ray(ray: Any, workers: Workers, orders: Sequence[Work]) -> Iterator[Work]:
    left, running = list(reversed(orders)), dict[Any, Work]()
    try:
        while left or running:
            while left and len(running) < workers.processes:
                order = left.pop()
                running[_remote(ray, order).remote(order, sys.path)] = order
            done, _ = ray.wait(list(running), num_returns=1)
            order = running.pop(done[0])
            _raise(ray.get(done[0]))
            yield order
    except BaseException:
        for reference in running:
            ray.cancel(reference)  # as Ctrl-C in the task: it saves its trial
        ray.wait(list(running), num_returns=len(running), timeout=60.0) if running else None
        raise


def _remote(ray: Any, order: Work) -> Any:
    """The work as Ray knows it; tried once, since what stopped it would stop it again."""
    cores = order.recipe.compute.threads or 1
    return ray.remote(num_cpus=cores, max_retries=0)(_carry_out_elsewhere)


def _carry_out_elsewhere(order: Work, folders: list[str]) -> tuple[str, str, str, str] | None:
    """Carry an order out in a process that may know fewer folders of modules than ours."""
    sys.path += [folder for folder in folders if folder not in sys.path]
    return _carry_out_again(order)
