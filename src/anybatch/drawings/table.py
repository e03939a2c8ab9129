"""Kinds of measurements and their pictures; a kind without one is drawn as dots with intervals."""

from __future__ import annotations

from anybatch.drawings.picture import Drawing

__all__ = ["DRAWINGS"]

DRAWINGS: dict[str, Drawing] = {}
