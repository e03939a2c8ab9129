"""Starts a script on several processes by torchrun, with a time limit, and reads its exit code."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

__all__ = ["launch"]


def launch(num_processes: int, *arguments: str, seconds_allowed: float = 200.0) -> str:
    """Run `arguments` under torchrun; a rank's failure, or a hang, fails the test.

    Args:
        num_processes: that train together, on this machine.
        arguments: a script and its arguments, or "-m" and a module.
        seconds_allowed: after which it counts as hung.

    Returns:
        What the ranks wrote on standard output.
    """
    command = [
        sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0", f"--nproc-per-node={num_processes}", *arguments,
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        output, errors = launcher.communicate(timeout=seconds_allowed)
    except subprocess.TimeoutExpired:
        launcher.terminate()  # the launcher ends its ranks
        _, errors = launcher.communicate(timeout=60)
        pytest.fail(f"not done after {seconds_allowed:g} s:\n{errors[-6000:]}")
    assert launcher.returncode == 0, errors[-6000:]
    return output
