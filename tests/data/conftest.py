"""Lets the tests of this folder import `data_files`."""

from __future__ import annotations

import sys
from pathlib import Path

# With --import-mode=importlib pytest does not do so itself, and parametrize needs plain functions.
sys.path.insert(0, str(Path(__file__).parent))
