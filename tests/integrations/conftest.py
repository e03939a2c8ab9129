"""Cases run in an interpreter of their own: what these libraries warn of at import is theirs."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

collect_ignore_glob = ["*_cases.py"]  # by doctest; they run by themselves, beside the examples
ROOT = Path(__file__).parents[2]
CASES = Path(__file__).parent


@pytest.fixture(scope="session")
def results_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """Runs LIBRARY_cases.py, which prints its results as one line of JSON, the last one."""

    def run(library: str) -> dict[str, Any]:
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
        folder = tmp_path_factory.mktemp(library)
        paths = os.pathsep.join(
            [str(ROOT / "examples"), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        result = subprocess.run(
            [sys.executable, str(CASES / f"{library}_cases.py")],
            capture_output=True,
            text=True,
            cwd=folder,
            timeout=200,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
        )
        assert result.returncode == 0, result.stderr
        found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
        return found

    return run


@pytest.fixture(scope="session")
def expected() -> list[float]:
    """lr of 16 updates: four of linear warm-up to 0.4, then a cosine to 0."""
    rise = [0.4 * t / 4 for t in range(4)]
    return rise + [0.2 * (1 + math.cos(math.pi * t / 12)) for t in range(12)]
