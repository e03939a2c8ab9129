"""Lets the tests of this folder, and the command line within them, import the helpers here."""

from __future__ import annotations

import sys
from pathlib import Path

# With --import-mode=importlib pytest does not do so itself.
sys.path.insert(0, str(Path(__file__).parent))
