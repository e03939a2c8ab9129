"""Lets the tests of this folder import `exact_cases`."""

from __future__ import annotations

import sys
from pathlib import Path

# With --import-mode=importlib pytest does not do so itself, and the ranks' script needs it too.
sys.path.insert(0, str(Path(__file__).parent))
