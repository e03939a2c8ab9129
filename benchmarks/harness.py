"""Harness: runs the trials of benchmarks one by one, stores each, and continues anywhere.

for each benchmark, for each trial without a stored result:
    stop at the end of the time, or where the longest trial so far would not fit any more
    run it, then write its values and the hardware, at once and whole
"""

from __future__ import annotations

import os
import re
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from anybatch.run import read_json, write_json
from anybatch.training.environment import describe_environment
from anybatch.world import World

__all__ = [
    "Benchmark",
    "Folders",
    "StoredResults",
    "TrialSkippedError",
    "parse_seconds",
    "run_benchmarks",
    "stored_results",
]

_SCHEMA = 1
_SECONDS_PER_UNIT = {"s": 1, "m": 60, "h": 3600}
_KEPT_OF_ENVIRONMENT = (
    "time", "anybatch", "python", "torch", "numpy", "system", "cpu", "device", "commit",
)  # fmt: skip  # the command is left out: it holds paths

StoredResults = dict[str, dict[str, Any]]
"""Trial key -> what was stored, in the order of the trials."""


class Benchmark(Protocol):
    """What a module under benchmarks/ must hold to be one.

    Attributes:
        NAME: on the command line and of the folder of results.
        TITLE: heading of its section.
        QUESTION: one sentence.
        PREDICTION: what was expected, written before the first run.
    """

    NAME: str
    TITLE: str
    QUESTION: str
    PREDICTION: str

    def trials(self) -> Sequence[str]:
        """Keys of the trials, in the order to run them; each a plain file name."""
        ...

    def run_trial(self, key: str, folder: Path) -> dict[str, Any]:
        """Run one trial.

        Args:
            key: one of `trials`.
            folder: exists, belongs to this trial, and may hold what an ended session left.

        Returns:
            Plain values, without paths.

        Raises:
            TrialSkippedError: it cannot run here.
        """
        ...

    def verdict(self, results: dict[str, dict[str, Any]]) -> str:
        """One sentence that stands beside the prediction."""
        ...

    def table(self, results: dict[str, dict[str, Any]]) -> str:
        """Markdown with n, mean (or median) and spread; key -> values, never empty."""
        ...


class TrialSkippedError(Exception):
    """A trial cannot run on this machine; the message says why in one line."""


class Folders(NamedTuple):
    """Where things are written.

    Attributes:
        results: one folder for each benchmark, one JSON file for each finished trial.
        runs: what trials leave while they run.
    """

    results: Path
    runs: Path


def parse_seconds(text: str) -> float:
    """Seconds in "90s", "150m" or "2.5h".

    Args:
        text: a number and a unit.

    Raises:
        ValueError: it is anything else.

    Example:
        >>> parse_seconds("150m")
        9000.0
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smh])", text.strip())
    if match is None:
        raise ValueError(f'must be like "90s", "150m" or "2h", got {text}')
    return float(match.group(1)) * _SECONDS_PER_UNIT[match.group(2)]


def stored_results(benchmark: Benchmark, folders: Folders) -> StoredResults:
    """The finished trials of a benchmark.

    Args:
        benchmark: whose.
        folders: where they lie.
    """
    paths = {key: _result_path(benchmark, key, folders) for key in benchmark.trials()}
    return {key: read_json(path) for key, path in paths.items() if path.exists()}


def run_benchmarks(
    benchmarks: Sequence[Benchmark], folders: Folders, *, seconds: float | None = None
) -> bool:
    """Run every trial that has no stored result, as far as the time reaches.

    Args:
        benchmarks: in the order to run them.
        folders: where results are read and written.
        seconds: after which nothing more is begun; a trial is not begun either if the longest
            one of its benchmark so far would not fit. None: no limit.

    Returns:
        Whether no trial failed.

    Raises:
        KeyboardInterrupt: the trial in progress is not stored, all before it are.
    """
    end = None if seconds is None else time.monotonic() + seconds
    good = True
    for benchmark in benchmarks:
        done = stored_results(benchmark, folders)
        longest = max((result["seconds"] for result in done.values()), default=0.0)
        for key in (key for key in benchmark.trials() if key not in done):
            name = f"{benchmark.NAME} {key}"
            if end is not None and time.monotonic() + longest >= end:
                print(f"{name}: not begun, the time is spent", flush=True)
                break
            print(f"{name}: running", flush=True)
            try:
                longest = max(longest, _run_and_store(benchmark, key, folders))
            except TrialSkippedError as reason:
                print(f"{name}: skipped, {reason}", flush=True)
                break
            except Exception:  # one broken trial must not cost a night of others
                traceback.print_exc()
                print(f"{name}: failed", flush=True)
                good = False
    return good


def _run_and_store(benchmark: Benchmark, key: str, folders: Folders) -> float:
    """Run a trial and write its result; the seconds it took."""
    folder = folders.runs / benchmark.NAME / key
    folder.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    started = time.perf_counter()
    try:
        values = benchmark.run_trial(key, folder)
        environment = _environment()  # with the threads that the trial has chosen
    finally:
        torch.set_num_threads(threads)
    seconds = time.perf_counter() - started
    path = _result_path(benchmark, key, folders)
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "schema": _SCHEMA,
        "benchmark": benchmark.NAME,
        "trial": key,
        "seconds": round(seconds, 3),
        "environment": environment,
        "values": values,
    }
    write_json(path, result)
    print(f"{benchmark.NAME} {key}: done in {seconds:.1f} s", flush=True)
    return seconds


def _result_path(benchmark: Benchmark, key: str, folders: Folders) -> Path:
    return folders.results / benchmark.NAME / f"{key}.json"


def _environment() -> dict[str, Any]:
    """Hardware and versions, without host name, paths or command."""
    described = describe_environment(World.from_environment())
    kept = {name: described[name] for name in _KEPT_OF_ENVIRONMENT}
    return kept | {"cores": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads()}
