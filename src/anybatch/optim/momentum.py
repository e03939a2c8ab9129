"""The momentum of a parameter group, under whichever name its optimizer keeps it."""

from __future__ import annotations

from typing import Any

__all__ = ["read_momentum", "write_momentum"]


def read_momentum(group: dict[str, Any]) -> float:
    """`momentum`, or the first of Adam's `betas`; 0 where there is neither."""
    return float(group["betas"][0] if "betas" in group else group.get("momentum", 0.0))


def write_momentum(group: dict[str, Any], value: float) -> None:
    """Set what `read_momentum` reads; a group without momentum stays as it is."""
    if "betas" in group:
        group["betas"] = (value, *group["betas"][1:])
    elif "momentum" in group:
        group["momentum"] = value
