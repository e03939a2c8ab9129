"""`python -m benchmarks.article2_page`: the generated parts of docs/article-2.md, and its figures.

A part stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; everything else is left alone.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from anybatch.run import read_json
from benchmarks import article2, critical_batch
from benchmarks.article2_figures import draw_epoch_times, draw_losses
from benchmarks.article2_tables import BATCH_SIZES, events, fixed_table, tuned_table, verdict_of
from benchmarks.critical_batch_tables import critical_table, critical_verdict
from benchmarks.harness import Benchmark

__all__ = ["filled", "main"]

_HERE = Path(__file__).parent
_DOCS = _HERE.parent / "docs"


def filled(text: str, parts: dict[str, str]) -> str:
    r"""The text with each named part in its place.

    Args:
        text: holds `<!-- begin NAME -->` and `<!-- end NAME -->` for every part.
        parts: name -> Markdown.

    Raises:
        ValueError: a part has no place, or more than one.

    Example:
        >>> filled("<!-- begin x -->old<!-- end x -->", {"x": "new"})
        '<!-- begin x -->\n\nnew\n\n<!-- end x -->'
    """
    for name, part in parts.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        pattern = re.escape(begin) + ".*?" + re.escape(end)
        found = re.findall(pattern, text, flags=re.DOTALL)
        if len(found) != 1:
            raise ValueError(f"{name} must have one place, has {len(found)}")
        text = text.replace(found[0], f"{begin}\n\n{part}\n\n{end}")
    return text


def _stored(benchmark: Benchmark) -> dict[str, dict[str, Any]]:
    folder = _HERE / "results" / benchmark.NAME
    paths = {key: folder / f"{key}.json" for key in benchmark.trials()}
    return {key: read_json(path)["values"] for key, path in paths.items() if path.exists()}


def main() -> int:
    """Write the page's parts and figures."""
    results, critical = _stored(article2), _stored(critical_batch)
    parts = {
        "verdict": _sentence(verdict_of(results)),
        "fixed": fixed_table(results),
        "tuned": tuned_table(results),
        "events": events(results),
        "critical-verdict": _sentence(critical_verdict(critical)),
        "critical": critical_table(critical) or "Not measured yet.",
    }
    page = _DOCS / "article-2.md"
    page.write_text(filled(page.read_text(), parts))
    steps = results.get("step-times", {}).get("seconds", {})
    (_DOCS / "article-2-epoch.svg").write_text(draw_epoch_times(steps))
    losses = {
        size: told["losses"] for size in BATCH_SIZES if (told := results.get(f"fixed-{size}-0"))
    }
    (_DOCS / "article-2-losses.svg").write_text(draw_losses(losses))
    return 0


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


if __name__ == "__main__":
    sys.exit(main())
