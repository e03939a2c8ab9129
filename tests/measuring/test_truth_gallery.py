"""The truth gallery: its judge and its truths can fail, and ours passes."""

import importlib.util
import math
from collections import Counter

import numpy as np
import pytest
from benchmarks import truth_gallery
from benchmarks.gallery_curves import Curve, basin, gaussian, usable_region
from benchmarks.gallery_optima import brute_force
from benchmarks.gallery_peers import OURS, TOOLS, Tool, ask
from benchmarks.gallery_task_cases import OPTIMA, TASK_CASES
from benchmarks.gallery_truth import Answer, Problem, Ramp, Truth, judge, judge_edge
from benchmarks.truth_gallery import CASES, Shares, agrees, answers, score

_OURS = next(tool for tool in TOOLS if tool.name == OURS)
_BY_NAME = {case.name: case for case in CASES}


def _finder(answer: Answer) -> Tool:
    """A finder that always says the same."""
    return Tool(name="fake", find=lambda problem: answer, module="math", package="fake")


def _scored(tool: Tool, num_seeds: int = 1) -> Shares:
    judged = {
        case.name: [
            judge(case.truth(), ask(tool, case.build(seed)), names_reasons=tool.names_reasons)
            for seed in range(num_seeds)
        ]
        for case in CASES
    }
    return score(judged)


def _oracle(truth: Truth) -> Answer:
    if truth.low is None or truth.high is None:
        return Answer(findings=truth.findings or ("any",))
    return Answer(lr=math.sqrt(truth.low * truth.high))


# --- the gallery ---------------------------------------------------------------------------------


def test_the_gallery_is_large_and_its_names_are_unique() -> None:
    assert len(CASES) >= 48
    assert max(Counter(case.name for case in CASES).values()) == 1
    assert len(truth_gallery.trials()) == 1 + len({case.group for case in CASES})
    unanswerable = [case for case in CASES if case.truth().low is None]
    assert 0.1 < len(unanswerable) / len(CASES) < 0.3


def test_every_truth_lies_inside_of_its_ramp() -> None:
    for case in CASES:
        truth, ramp = case.truth(), case.build(0).ramp
        assert truth.why
        assert truth.low is None or ramp.start_lr <= truth.low * 4.01, case.name
        assert truth.high is None or truth.high <= ramp.end_lr, case.name


def test_a_problem_is_the_same_for_every_finder() -> None:
    for name in ("noise-large", "spikes-everywhere", "regression"):
        first, second = _BY_NAME[name].build(1), _BY_NAME[name].build(1)
        assert _losses(first) == _losses(second)
        assert _losses(first) != _losses(_BY_NAME[name].build(0))


def test_a_scripted_curve_is_what_a_training_sees() -> None:
    for name in ("noise-correlated", "noise-grows", "two-falls", "linear-ramp-noisy"):
        problem = _BY_NAME[name].build(0)
        assert problem.recorded is not None
        assert _losses(problem) == pytest.approx(problem.recorded[1])


def _losses(problem: Problem) -> list[float]:
    """Of the ramp, taken as a training takes it."""
    losses = []
    for lr, (inputs, targets) in zip(problem.ramp.lrs(), problem.batches, strict=True):
        problem.optimizer.param_groups[0]["lr"] = float(lr)
        problem.optimizer.zero_grad()
        loss = problem.loss_function(problem.model(inputs), targets)
        loss.backward()
        problem.optimizer.step()
        losses.append(loss.item())
    return losses


# --- truths --------------------------------------------------------------------------------------


def test_the_usable_region_of_a_curve_is_computed_from_its_shape() -> None:
    noisy = Curve(shape=basin(1e-3, 1e-1), disturbances=[gaussian(5.0)])
    truth = usable_region(noisy)
    assert truth.low == pytest.approx(1e-3 / 4, rel=0.02)
    assert truth.high == pytest.approx(0.1, rel=0.02)  # the rise is half of the fall there
    late = usable_region(Curve(shape=basin(1e-3, 1e-1), ramp=Ramp(end_lr=0.01)))
    assert late.high == 0.01


@pytest.mark.parametrize("name", ["quadratic-ill-conditioned", "quadratic-momentum"])
def test_brute_force_finds_the_edge_that_theory_gives(name: str) -> None:
    found = brute_force(_BY_NAME[name].build)
    assert agrees(found, OPTIMA[name])  # its edge is 2 (1 + momentum) / 10
    assert found.best_lr < found.edge


def test_optima_that_differ_do_not_agree() -> None:
    assert not agrees(OPTIMA["quadratic"], OPTIMA["quadratic-noisy"])


def test_scaling_the_loss_moves_the_optimum_of_sgd_but_not_of_adam() -> None:
    assert OPTIMA["regression-loss-scaled"].edge == pytest.approx(
        1000 * OPTIMA["regression"].edge, rel=1e-3
    )
    assert OPTIMA["regression-adam-loss-scaled"].best_lr == OPTIMA["regression-adam"].best_lr


def test_every_task_with_a_number_has_an_optimum() -> None:
    assert {case.name for case in TASK_CASES if case.truth().low is not None} == set(OPTIMA)


# --- the judge -----------------------------------------------------------------------------------


def test_an_oracle_is_always_right() -> None:
    for case in CASES:
        truth = case.truth()
        assert judge(truth, _oracle(truth), names_reasons=True) == "right", case.name


def test_a_constant_answer_scores_badly() -> None:
    assert _scored(_finder(Answer(lr=1e-3))).right_share < 0.6
    assert _scored(_finder(Answer(lr=3e-5))).right_share < 0.1
    assert _scored(_finder(Answer())).right_share < 0.3  # it never knows


def test_a_number_is_wrong_where_nothing_can_be_known() -> None:
    truth = Truth(why="flat", none_is_right=True, findings=("never-learned",))
    for lr in (1e-9, 1e-3, math.nan, math.inf):
        assert judge(truth, Answer(lr=lr), names_reasons=False) == "wrong"
    assert judge(truth, Answer(), names_reasons=False) == "right"
    assert judge(truth, Answer(findings=("noisy",)), names_reasons=True) == "don't know"
    assert judge(truth, Answer(), names_reasons=True) == "don't know"
    assert judge(truth, Answer(findings=("never-learned",)), names_reasons=True) == "right"


def test_not_knowing_what_can_be_known_is_neither_right_nor_wrong() -> None:
    truth = Truth(why="a fall", low=1e-3, high=1e-2)
    assert judge(truth, Answer(findings=("noisy",)), names_reasons=True) == "don't know"
    assert judge(truth, Answer(lr=0.9e-3), names_reasons=True) == "wrong"
    assert judge(truth, Answer(lr=1.1e-2), names_reasons=True) == "wrong"
    with pytest.raises(ValueError, match="no answer could be right"):
        Truth(why="nothing")


def test_an_edge_is_judged_within_a_factor_of_two() -> None:
    truth = Truth(why="2 / 10", low=0.01, high=0.2, edge=0.2)
    assert judge_edge(truth, Answer(edge=0.11)) == "right"
    assert judge_edge(truth, Answer(edge=0.41)) == "wrong"
    assert judge_edge(truth, Answer()) == "don't know"
    assert judge_edge(Truth(why="", low=0.1, high=1.0), Answer(edge=0.1)) is None


def test_an_exception_of_a_finder_is_an_answer_without_a_number() -> None:
    def broken(problem: Problem) -> Answer:
        raise RuntimeError("no\nway")

    tool = Tool(name="broken", find=broken, module="math", package="broken")
    answer = ask(tool, _BY_NAME["clean"].build(0))
    assert (answer.lr, answer.error) == (None, "RuntimeError: no")


def test_the_table_shows_finders_that_are_not_installed_and_marks_wrong_answers() -> None:
    case = _BY_NAME["clean"]
    given = answers(_finder(Answer(lr=1.0)), case)
    truth = {"why": "", "low": 1e-4, "high": 1e-1, "none_is_right": False, "findings": []}
    values = {"truth": truth | {"edge": None}, "answers": {"ignite": given}}
    results = {"clean": {"versions": {"pytorch-ignite": "0"}, "cases": {"clean": values}}}
    text = truth_gallery.table(results)
    assert "| clean | 1 | not installed | not installed | not installed | 0 / 1 / 0 |" in text
    assert "| 1 **wrong** |" in text
    assert truth_gallery.verdict(results).startswith("not decided")


# --- ours ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def our_answers() -> dict[str, Answer]:
    """Ours on every case, with the first seed."""
    if importlib.util.find_spec("anybatch.measuring") is None:
        pytest.skip("anybatch.measuring is not there")
    pytest.importorskip("anybatch.measuring.lr_range")
    return {case.name: ask(_OURS, case.build(0)) for case in CASES}


def test_ours_is_right_in_95_percent(our_answers: dict[str, Answer]) -> None:
    judged = {
        name: [judge(_BY_NAME[name].truth(), answer, names_reasons=True)]
        for name, answer in our_answers.items()
    }
    missed = {name: (our_answers[name], _BY_NAME[name].truth()) for name in judged
              if judged[name] != ["right"]}  # fmt: skip
    assert score(judged).right_share >= 0.95, missed


def test_ours_finds_the_edge(our_answers: dict[str, Answer]) -> None:
    judged = [judge_edge(_BY_NAME[name].truth(), a) for name, a in our_answers.items()]
    known = [verdict for verdict in judged if verdict is not None]
    assert len(known) >= 8
    assert np.mean([verdict == "right" for verdict in known]) >= 0.85, judged
