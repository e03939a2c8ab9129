"""Memory in use: what a piece of work adds to what rests, and how much is free.

On CUDA the allocator's own peak; on the CPU the high-water mark of the process's resident memory,
reset before each piece of work where the kernel allows it (Linux: /proc/self/clear_refs), else its
growth beyond all that was before (ru_maxrss), which is not known (nan) where it did not grow.
"""

from __future__ import annotations

import math
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final, final

import torch

__all__ = ["MemoryMeter"]

_PROCESS: Final = Path("/proc/self")
_RESET_PEAK: Final = "5"  # of proc(5), clear_refs
_CPU_RESOLUTION: Final = 2 * 2**20  # bytes: what the C library keeps or returns as it likes
_CUDA_RESOLUTION: Final = 2**16
_CGROUPS: Final = (  # limit and use, of version 2 and of version 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


@final
class MemoryMeter:
    """What work on a device adds to the memory that was in use when the meter was made.

    Args:
        device: where the work is done.

    Attributes:
        method: how it is measured: "cuda-peak", "peak-resident", "resident-growth" or "none".
        resolution: bytes; smaller differences say nothing.

    Example:
        >>> meter = MemoryMeter(torch.device("cpu"))
        >>> meter.begin()
        >>> ones = torch.ones(16 * 2**20)
        >>> added = meter.added_bytes()  # 64 MiB or more; nan where nobody knows
        >>> added >= 60 * 2**20 or math.isnan(added)
        True
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0.0
        if device.type == "cuda":
            self.method, self.resolution = "cuda-peak", _CUDA_RESOLUTION
            self._resting = 0.0
            return
        self.resolution = _CPU_RESOLUTION
        self._resting = _resident_bytes()
        self.method = "peak-resident" if _reset_peak() else "resident-growth"
        if math.isnan(self._resting):
            self.method = "none"

    def begin(self) -> None:
        """A piece of work begins."""
        if self.method == "cuda-peak":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._resting = float(torch.cuda.memory_allocated(self._device))
        elif self.method == "peak-resident":
            _reset_peak()
        elif self.method == "resident-growth":
            self._before = _greatest_resident_bytes()

    def added_bytes(self) -> float:
        """The most that was in use since `begin`, less what rested; nan where it is not known."""
        if self.method == "cuda-peak":
            return float(torch.cuda.max_memory_allocated(self._device)) - self._resting
        if self.method == "peak-resident":
            return _status_bytes("VmHWM") - self._resting
        if self.method == "resident-growth":
            greatest = _greatest_resident_bytes()
            return greatest - self._resting if greatest > self._before else math.nan
        return math.nan

    def free_bytes(self) -> float:
        """What this process may still take, the allocator's own reserve included; nan: not known.

        On the CPU the kernel's estimate of available memory, within the limit of the control
        group, shared among the ranks of this machine.
        """
        if self._device.type == "cuda":
            reserve = torch.cuda.memory_reserved(self._device)
            unused = reserve - torch.cuda.memory_allocated(self._device)
            return float(torch.cuda.mem_get_info(self._device)[0] + unused)
        ranks_here = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        return min(_available_bytes(), _bytes_left_in_group()) / ranks_here


def _reset_peak() -> bool:
    """Bring the high-water mark down to what is resident now; False where that is not allowed."""
    try:
        (_PROCESS / "clear_refs").write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _status_bytes(name: str) -> float:
    """A size of /proc/self/status; nan where there is none."""
    with suppress(OSError):
        for line in (_PROCESS / "status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return 1024.0 * float(line.split()[1])
    return math.nan


def _resident_bytes() -> float:
    return _status_bytes("VmRSS")


def _greatest_resident_bytes() -> float:
    """Of the process since it began."""
    if sys.platform == "win32":
        return math.nan
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return float(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _available_bytes() -> float:
    """Memory that the kernel can give without swapping."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * float(line.split()[1])
    return math.nan


def _bytes_left_in_group() -> float:
    """What the control group of the process leaves; inf where it sets no limit."""
    for limit, used in _CGROUPS:
        with suppress(OSError, ValueError):  # no such file; "max"
            return max(0.0, float(Path(limit).read_text()) - float(Path(used).read_text()))
    return math.inf
