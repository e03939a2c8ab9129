"""Claims of the articles as `anybatch reproduce` tests them; pages go to docs/reproductions/."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

from anybatch.data.catalog import data_root
from anybatch.reporting.reproduction_effects import effects_of, verdict_on
from anybatch.reporting.reproduction_page import write_reproduction
from anybatch.studies.reproductions.folder import ReproductionFolder
from anybatch.studies.reproductions.reproduce import reproduce
from anybatch.studies.reproductions.table import CLAIMS
from benchmarks.harness import TrialSkippedError
from benchmarks.summaries import markdown_table

__all__ = ["NAME", "PREDICTION", "QUESTION", "TITLE", "run_trial", "table", "trials", "verdict"]

NAME = "reproductions"
TITLE = "Claims of the articles, tested with equal search"
QUESTION = (
    "Which claims of articles 4 and 5 are seen at small size, when every arm has as many trials to "
    "find its lr, three fresh seeds, and intervals over pairs of them?"
)
PREDICTION = (
    "8 to 12 of 14 are seen, the others null, since a net on 2,000 digits is near its ceiling: "
    "equal-epochs, train-longer, regime-adaptation, edge-of-stability, accumulation-exact, "
    "warm-restarts and one-cycle are the safest; block-penalty and beyond-adam the least safe"
)

_SEEDS = 3
_NEEDED = ("MNIST", "cifar10-jpeg.tar.xz")
_DOCS = Path(__file__).parents[1] / "docs" / "reproductions"


def trials() -> list[str]:
    """The names of the claims."""
    return [claim.NAME for claim in CLAIMS]


def run_trial(key: str, folder: Path) -> dict[str, Any]:
    """Carry a reproduction out and write its page; an ended session's trials are kept.

    Args:
        key: name of the claim.
        folder: holds its trials.

    Raises:
        TrialSkippedError: its data are not under ANYBATCH_DATA.
    """
    root = data_root(None)
    for name in _NEEDED:
        if not (root / name).exists():
            raise TrialSkippedError(f"{name} is not in {root}")
    made = ReproductionFolder.open(folder / "study", key, quick=False, seeds=_SEEDS)
    reproduce(made)
    results = made.results()
    write_reproduction(results, _DOCS)
    found = verdict_on(results)
    effects = [
        dataclasses.asdict(effect) | {"name": name, "reading": effect.reading}
        for name, effect in effects_of(results).items()
    ]
    return {
        "verdict": found.name,
        "sentence": found.sentence,
        "seeds": len(results.seeds),
        "arms": len(results.arms),
        "minutes": results.seconds / 60.0,
        "effects": effects,
    }


def verdict(results: dict[str, dict[str, Any]]) -> str:
    """How many claims are seen, not seen and null.

    Args:
        results: key -> values of finished trials.
    """
    counts = Counter(values["verdict"] for values in results.values())
    told = ", ".join(f"{counts[name]} {name}" for name in ("seen", "not seen", "null", "open"))
    return f"of {len(results)} claims {told}"


def table(results: dict[str, dict[str, Any]]) -> str:
    """One row for each claim.

    Args:
        results: key -> values of finished trials.
    """
    rows = [
        [
            f"[{key}](../docs/reproductions/{key}.md)",
            values["verdict"],
            str(values["seeds"]),
            str(values["arms"]),
            f"{values['minutes']:.1f}",
            values["sentence"],
        ]
        for key, values in results.items()
    ]
    head = ["claim", "verdict", "n", "arms", "minutes of training", "what was found"]
    return markdown_table(head, rows)
