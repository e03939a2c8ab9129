"""The claims by name. Needs no torch."""

from __future__ import annotations

import difflib

from anybatch.errors import InputError
from anybatch.studies.reproductions import (
    accumulation_exact,
    adamw_separability,
    beyond_adam,
    block_penalty,
    clipping,
    edge_of_stability,
    equal_epochs,
    full_batch_gap,
    ghost_batch_norm,
    normalized_decay,
    one_cycle,
    regime_adaptation,
    train_longer,
    warm_restarts,
)
from anybatch.studies.reproductions.parts import FEWEST_SEEDS, Claim, Effect, Verdict
from anybatch.studies.reproductions.results import Results

__all__ = ["CLAIMS", "claim_named", "judged"]

CLAIMS: tuple[Claim, ...] = (
    accumulation_exact,
    equal_epochs,
    train_longer,
    clipping,
    block_penalty,
    full_batch_gap,
    regime_adaptation,
    ghost_batch_norm,
    edge_of_stability,
    adamw_separability,
    normalized_decay,
    warm_restarts,
    one_cycle,
    beyond_adam,
)
"""All claims, those of article 4 before those of article 5."""


def claim_named(name: str) -> Claim:
    """The claim of that name.

    Raises:
        InputError: there is none.
    """
    known = {claim.NAME: claim for claim in CLAIMS}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else ""
        raise InputError("claim", f"must be one of: {', '.join(known)}", name, hint=hint)
    return known[name]


def judged(results: Results, effects: dict[str, Effect]) -> Verdict:
    """The verdict of a claim; open while trials are missing or seeds are too few.

    Args:
        results: of the claim.
        effects: of all its contrasts, by name.
    """
    if results.missing:
        count = len(results.missing)
        what = f"{count} of {len(results.arms)} arms lack trials"
        return Verdict(name="open", sentence=what)
    if len(results.seeds) < FEWEST_SEEDS:
        what = f"{len(results.seeds)} seeds, and at least {FEWEST_SEEDS} are needed"
        return Verdict(name="open", sentence=what)
    return claim_named(results.name).verdict(results, effects)
