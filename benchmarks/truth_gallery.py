"""Truth gallery: LR finders on curves and tasks whose answers are known.

    python -m benchmarks truth-gallery

A trial is one group of cases, asked of every finder that can be imported; the trial "truth"
computes the optima of the tasks again. Answers are stored raw, and judged when the table is made.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.gallery_fall_cases import FALL_CASES
from benchmarks.gallery_odd_cases import ODD_CASES
from benchmarks.gallery_optima import Optimum, brute_force
from benchmarks.gallery_peers import OURS, TOOLS, Tool, ask
from benchmarks.gallery_task_cases import OPTIMA, TASK_CASES
from benchmarks.gallery_truth import Answer, Case, Truth, Verdict, judge, judge_edge
from benchmarks.summaries import markdown_table

__all__ = [
    "CASES",
    "NAME",
    "PREDICTION",
    "QUESTION",
    "TITLE",
    "run_trial",
    "score",
    "table",
    "trials",
    "verdict",
]

NAME = "truth-gallery"
TITLE = "Truth gallery of LR finders"
QUESTION = (
    "Of curves and small trainings whose right answer is known beforehand, how many does each LR "
    "finder answer rightly, and where no answer can be known, does it say so?"
)
PREDICTION = "anybatch is right in at least 95 % of the cases, its peers in 30 to 60 %"

CASES: tuple[Case, ...] = (*FALL_CASES, *ODD_CASES, *TASK_CASES)
"""In the order of the table."""

_LIMIT = 0.95
_TRUTH = "truth"
_UNKNOWN: Verdict = "don't know"
_OPTIMUM_TOLERANCE = 1.1
_SIGNS: dict[Verdict, str] = {"right": "", "wrong": " **wrong**", "don't know": " *no answer*"}


class Shares(NamedTuple):
    """How often a finder was right, wrong, or did not know; each case has weight 1.

    Attributes:
        right: sum over cases of the share of its seeds.
        wrong: likewise.
        unknown: likewise.
        num_cases: the sum of the three.
    """

    right: float
    wrong: float
    unknown: float
    num_cases: int

    @property
    def right_share(self) -> float:
        """Of the cases."""
        return self.right / self.num_cases


def trials() -> list[str]:
    """The optima, then one key for each group of cases."""
    return [_TRUTH, *(_key(group) for group in _groups())]


def run_trial(key: str, folder: Path) -> dict[str, Any]:
    """Ask every installed finder about one group.

    Args:
        key: one of `trials`.
        folder: not used.
    """
    torch.set_num_threads(1)
    if key == _TRUTH:
        return _compute_optima()
    tools = [tool for tool in TOOLS if tool.is_installed]
    for tool in tools:
        ask(tool, CASES[0].build(0))  # imports do not count
    return {
        "versions": {tool.package: importlib.metadata.version(tool.package) for tool in tools},
        "cases": {
            case.name: {
                "truth": asdict(case.truth()),
                "answers": {tool.name: answers(tool, case) for tool in tools},
            }
            for case in CASES
            if _key(case.group) == key
        },
    }


def answers(tool: Tool, case: Case, num_seeds: int | None = None) -> list[dict[str, Any]]:
    """Plain answers of a finder, one for each seed.

    Args:
        tool: that is installed.
        case: of the gallery.
        num_seeds: None takes the case's.
    """
    seeds = range(num_seeds or case.num_seeds)
    return [asdict(ask(tool, case.build(seed))) for seed in seeds]


def score(
    judged: Mapping[str, Sequence[Verdict]],
) -> Shares:
    """Shares of the verdicts.

    Args:
        judged: case -> verdict of each seed; at least one case.

    Example:
        >>> score({"clean": ["right"], "noisy": ["right", "wrong"]})
        Shares(right=1.5, wrong=0.5, unknown=0.0, num_cases=2)
    """
    sums = dict.fromkeys(_SIGNS, 0.0)
    for verdicts in judged.values():
        for name, count in Counter(verdicts).items():
            sums[name] += count / len(verdicts)
    return Shares(sums["right"], sums["wrong"], sums["don't know"], len(judged))


def verdict(results: dict[str, dict[str, Any]]) -> str:
    """Whether the limit holds, beside the shares of the peers.

    Args:
        results: key -> values of finished trials.
    """
    shares = {tool.name: score(judged) for tool in TOOLS if (judged := _judged(results, tool))}
    listed = ", ".join(f"{name} {100 * share.right_share:.0f} %" for name, share in shares.items())
    if OURS not in shares:
        return f"not decided: anybatch was not asked; {listed or 'nor was any peer'}"
    held = shares[OURS].right_share >= _LIMIT
    return f"{'holds' if held else 'does not hold'}: right in {listed}"


def table(results: dict[str, dict[str, Any]]) -> str:
    """Scores by group, the edges, the time, and every case.

    Args:
        results: key -> values of finished trials.
    """
    versions = {n: v for values in results.values() for n, v in values.get("versions", {}).items()}
    listed = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    notes = (
        "Right / wrong / does not know; each case has weight 1, shared among its seeds. A number "
        "is right from a factor of 4 below the steepest point to the edge (curves), or within a "
        "factor of 4 of the best constant lr or as good as it to 1 % (tasks), below the edge. "
        "Where nothing can be known, any number is wrong, and anybatch must also name the reason. "
        "The truths were written before anybatch's test existed; it was right in 92 % when it "
        f"first met them, and was mended with the failing cases known. Versions: {listed}."
    )
    parts = [_score_table(results), notes, _edges(results), _case_table(results)]
    return "\n\n".join(part for part in parts if part)


# --- trials --------------------------------------------------------------------------------------


def _groups() -> list[str]:
    return list(dict.fromkeys(case.group for case in CASES))


def _key(group: str) -> str:
    return group.replace(" ", "-")


def _compute_optima() -> dict[str, Any]:
    """The optima, computed again and compared.

    Raises:
        ValueError: one differs from what the cases hold.
    """
    found = {case.name: brute_force(case.build) for case in TASK_CASES if case.name in OPTIMA}
    for name, optimum in found.items():
        if not agrees(optimum, OPTIMA[name]):
            raise ValueError(f"the optimum of {name} is {optimum}, the gallery has {OPTIMA[name]}")
    return {"optima": {name: asdict(optimum) for name, optimum in found.items()}}


def agrees(first: Optimum, second: Optimum) -> bool:
    """Whether two optima are the same up to 10 %.

    Args:
        first: of a task.
        second: of the same.
    """
    for field in fields(Optimum):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if a != b and not 1 / _OPTIMUM_TOLERANCE <= a / b <= _OPTIMUM_TOLERANCE:
            return False
    return True


# --- tables --------------------------------------------------------------------------------------


def _cases(results: dict[str, dict[str, Any]]) -> Iterator[tuple[Case, dict[str, Any]]]:
    """The stored cases in the order of the gallery."""
    stored = {n: case for values in results.values() for n, case in values.get("cases", {}).items()}
    yield from ((case, stored[case.name]) for case in CASES if case.name in stored)


def _judged(
    results: dict[str, dict[str, Any]], tool: Tool, group: str = ""
) -> dict[str, list[Verdict]]:
    """Case -> verdicts of a finder's answers."""
    return {
        case.name: [judge(truth, a, names_reasons=tool.names_reasons) for a in given]
        for case, truth, given in _answers(results, tool)
        if not group or case.group == group
    }


def _answers(
    results: dict[str, dict[str, Any]], tool: Tool
) -> Iterator[tuple[Case, Truth, list[Answer]]]:
    for case, values in _cases(results):
        if tool.name in values["answers"]:
            given = [_plain_answer(answer) for answer in values["answers"][tool.name]]
            truth = {name: _number(value) for name, value in values["truth"].items()}
            yield case, Truth(**truth), given


def _plain_answer(values: Mapping[str, Any]) -> Answer:
    return Answer(**{name: _number(value) for name, value in values.items()})


def _number(value: Any) -> Any:
    """Strict JSON holds numbers that are not finite as text."""
    return float(value) if value in ("nan", "inf", "-inf") else value


def _score_table(results: dict[str, dict[str, Any]]) -> str:
    rows = []
    for group in [*_groups(), ""]:
        judged = [_judged(results, tool, group) for tool in TOOLS]
        if any(judged):
            num_cases = max(len(cases) for cases in judged)
            rows.append([group or "all", str(num_cases), *map(_share_text, judged)])
    rows.append(["right, all", "", *(_right_text(_judged(results, tool)) for tool in TOOLS)])
    rows.append(["ms a call, median", "", *(_time_text(results, tool) for tool in TOOLS)])
    return markdown_table(["group", "cases", *(tool.name for tool in TOOLS)], rows)


def _share_text(judged: dict[str, list[Verdict]]) -> str:
    if not judged:
        return "not installed"
    shares = score(judged)
    return " / ".join(f"{value:.3g}" for value in shares[:3])


def _right_text(judged: dict[str, list[Verdict]]) -> str:
    return f"{100 * score(judged).right_share:.1f} %" if judged else ""


def _time_text(results: dict[str, dict[str, Any]], tool: Tool) -> str:
    times = sorted(a.seconds for _, _, given in _answers(results, tool) for a in given)
    return f"{1000 * times[len(times) // 2]:.0f}" if times else ""


def _edges(results: dict[str, dict[str, Any]]) -> str:
    """One sentence on the edges that ours estimated."""
    ours = next(tool for tool in TOOLS if tool.name == OURS)
    judged = [
        verdict
        for _, truth, given in _answers(results, ours)
        for answer in given
        if (verdict := judge_edge(truth, answer)) is not None
    ]
    if not judged:
        return ""
    counts = Counter(judged)
    return (
        f"Edge of stability, estimated by anybatch alone, within a factor of 2: right "
        f"{counts['right']}, wrong {counts['wrong']}, does not know {counts[_UNKNOWN]}."
    )


def _case_table(results: dict[str, dict[str, Any]]) -> str:
    rows = []
    for case, values in _cases(results):
        truth = Truth(**{name: _number(value) for name, value in values["truth"].items()})
        cells = [
            "; ".join(
                _answer_text(truth, _plain_answer(answer), tool)
                for answer in values["answers"].get(tool.name, [])[:1]
            )
            for tool in TOOLS
        ]
        rows.append([f"{case.name}: {case.description}", _truth_text(truth), *cells])
    header = ["case (first seed)", "right", *(tool.name for tool in TOOLS)]
    return markdown_table(header, rows)


def _truth_text(truth: Truth) -> str:
    texts = []
    if truth.low is not None and truth.high is not None:
        texts.append(f"{truth.low:.2g} to {truth.high:.2g}")
    if truth.none_is_right:
        texts.append(" or ".join(["none", *truth.findings[:1]]) if not texts else "or none")
    return " ".join(texts)


def _answer_text(truth: Truth, answer: Answer, tool: Tool) -> str:
    named = f" ({', '.join(answer.findings[:2])})" if answer.findings else ""
    text = "none" if answer.lr is None else f"{answer.lr:.2g}"
    if answer.lr is not None and not math.isfinite(answer.lr):
        text = "not finite"
    return text + named + _SIGNS[judge(truth, answer, names_reasons=tool.names_reasons)]
