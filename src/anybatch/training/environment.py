"""What a result depends on beside recipe and data: versions, hardware, threads, commit, command."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from anybatch.world import World

__all__ = ["changes", "describe_environment"]

_MUST_AGREE = (
    "python",
    "torch",
    "numpy",
    "cpu",
    "device",
    "threads",
    "world_size",
    "deterministic",
)


def describe_environment(world: World) -> dict[str, Any]:
    """Plain values for a Run's `environment.json`."""
    device = world.device
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "anybatch": importlib.metadata.version("anybatch"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": importlib.metadata.version("numpy"),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "world_size": world.size,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "commit": _commit(),
        "command": sys.argv,
    }


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two sessions of a run and may change its numbers, in words."""
    return [
        f"{name} was {before.get(name)}, is {now.get(name)}"
        for name in _MUST_AGREE
        if before.get(name) != now.get(name)
    ]


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        return platform.processor()
    return platform.processor()


def _commit() -> str | None:
    """Commit of the working directory's repository, with "+changes" where it is not clean."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+changes" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=5, check=True
    ).stdout.strip()
