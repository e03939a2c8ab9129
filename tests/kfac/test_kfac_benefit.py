"""The arithmetic of the benchmark of K-FAC's benefit: where it looks, what it keeps and says."""

import dataclasses
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from benchmarks import kfac_benefit
from benchmarks.kfac_benefit_arms import (
    ARMS,
    TRIALS_PER_ARM,
    Setting,
    Tried,
    arms_of,
    best_of,
    next_setting,
)
from benchmarks.kfac_benefit_figures import draw_autoencoder
from benchmarks.kfac_benefit_problems import (
    PROBLEMS,
    Autoencoder,
    Problem,
    base_recipe,
    problem_of,
)
from benchmarks.kfac_benefit_runs import final_runs, target_of, train_to, tuned
from benchmarks.kfac_benefit_tables import (
    benefit_table,
    benefit_verdict,
    paired_ratio,
    winners,
)
from torch import nn

from anybatch import ComputeSettings, Recipe, SGDSettings, Task, updates
from anybatch.recipe import FixedRefresh, KFACSettings

SGD, KFAC = ARMS[0], ARMS[1]
RECIPE = Recipe(
    optimizer=SGDSettings(lr=0.05, momentum=0.5),
    batch_size=40,
    duration=updates(1),
    compute=ComputeSettings(threads=1),
)
SMALL = Problem(
    name="small", title="small", task="mnist", batch_size=40, length=40, first=2,
    precision="fp32", digits=3,
)  # fmt: skip


def separable_task() -> Task:
    torch.manual_seed(0)
    targets = torch.arange(200) % 2
    inputs = torch.randn(200, 2) + 2.0 * (2.0 * targets - 1.0)[:, None]
    return Task(build_model=lambda: nn.Linear(2, 2), train=(inputs, targets))


# --- where it looks -----------------------------------------------------------------------------


def test_the_search_follows_a_better_lr_and_tries_the_second_value() -> None:
    tried = [Tried(Setting(0, 0), 100, 0.1), Tried(Setting(2, 0), 50, 0.1)]
    assert next_setting(SGD, 0, tried) == Setting(4, 0)
    tried.append(Tried(Setting(4, 0), None, math.inf))
    assert next_setting(SGD, 0, tried) == Setting(2, 1)  # 1/4 of the best lr was tried
    tried.append(Tried(Setting(2, 1), 60, 0.1))
    assert next_setting(SGD, 0, tried) == Setting(3, 0)


def test_the_search_leaves_out_second_values_that_there_are_not() -> None:
    tried = [Tried(Setting(0, 1), 50, 0.1)]
    tried += [Tried(Setting(power, 1), None, 0.1) for power in (2, -2)]
    assert next_setting(SGD, 0, tried) == Setting(0, 0)  # there is no third momentum
    last = [Tried(one.setting._replace(place=0), one.updates, one.value) for one in tried]
    assert next_setting(SGD, 0, last) == Setting(0, 1)
    last.append(Tried(Setting(0, 1), None, 0.1))
    assert next_setting(SGD, 0, last) == Setting(1, 0)  # and none before the first


def test_the_search_never_repeats_and_stays_in_its_grid() -> None:
    for arm in ARMS:
        tried: list[Tried] = []
        for number in range(TRIALS_PER_ARM):
            setting = next_setting(arm, -3, tried)
            assert setting not in [one.setting for one in tried]
            assert 0 <= setting.place < len(arm.values)
            tried.append(Tried(setting, 100 - number, 0.1))


def test_reaching_early_is_better_than_coming_low() -> None:
    low, late, early = (
        Tried(Setting(0, 0), None, 0.0),
        Tried(Setting(1, 0), 90, 0.5),
        Tried(Setting(2, 0), 80, 0.5),
    )
    assert best_of([low, late, early]) is early
    assert best_of([Tried(Setting(3, 0), None, 0.1), low]) is low


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_every_arm_makes_a_recipe_and_they_differ_by_optimizer_alone(problem: Problem) -> None:
    base = base_recipe(problem)
    for arm in arms_of(problem):
        made = arm.recipe(base, Setting(-2, arm.place), problem.fisher)
        assert made.optimizer.lr == 0.25
        plain = dataclasses.replace(made, optimizer=base.optimizer, preconditioner=None)
        assert plain == base
        assert isinstance(made.preconditioner, KFACSettings) == (arm.name == "kfac")


def test_kfac_is_refreshed_as_in_the_stored_trainings() -> None:
    """They were made when nothing was inverted between updates 1 and 6."""
    kfac = next(arm for arm in ARMS if arm.name == "kfac")
    made = kfac.recipe(base_recipe(PROBLEMS[0]), Setting(0, 0)).preconditioner
    expected = FixedRefresh(statistics_every=1, inverse_every=5, early_inverses=False)
    assert made is not None
    assert made.refresh == expected


def test_muon_is_left_out_where_no_hidden_layer_is_linear() -> None:
    named = {problem.task: [arm.name for arm in arms_of(problem)] for problem in PROBLEMS}
    assert "muon" not in named["cifar"]
    assert "muon" in named["mnist"]


def test_every_trial_names_a_problem_and_a_part() -> None:
    keys = kfac_benefit.trials()
    assert len(keys) == len(set(keys)) == sum(2 + len(arms_of(problem)) for problem in PROBLEMS)
    for key in keys:
        assert problem_of(key.rpartition("-")[0]).name == key.rpartition("-")[0]


def test_the_autoencoder_has_the_published_sides() -> None:
    sides = [layer.weight.shape for layer in Autoencoder(1.0).layers]
    assert [side[0] for side in sides] == [1000, 500, 250, 30, 250, 500, 1000, 784]
    assert Autoencoder(0.1)(torch.zeros(2, 784)).shape == (2, 784)


def test_the_code_is_linear_and_hidden_units_are_bounded() -> None:
    network = Autoencoder(0.1)
    reached: dict[int, float] = {}
    for number, layer in enumerate(network.layers):
        nn.init.constant_(layer.bias, 5.0)

        def note(_: nn.Module, given: tuple[torch.Tensor], number: int = number) -> None:
            reached[number] = float(given[0].detach().max())

        layer.register_forward_pre_hook(note)
    assert float(network(torch.zeros(1, 784)).detach().max()) > 2.0
    assert reached[4] > 2.0  # what the decoder gets
    assert max(reached[number] for number in (1, 2, 3, 5, 6, 7)) <= 1.0


# --- what it keeps ------------------------------------------------------------------------------


def test_training_stops_at_the_first_value_at_the_target() -> None:
    told = train_to(separable_task(), RECIPE, target=0.05, first=1, cap=60)
    assert told["status"] == "reached"
    assert told["updates"] == told["evaluations"][-1][0]
    assert told["evaluations"][-1][1] <= 0.05
    assert all(value > 0.05 for _, value in told["evaluations"][:-1])


def test_training_tells_the_cap_and_a_divergence() -> None:
    never = train_to(separable_task(), RECIPE, target=-1.0, first=1, cap=10)
    assert (never["status"], never["updates"]) == ("cap", None)
    assert never["evaluations"][-1][0] == 10
    wild = dataclasses.replace(RECIPE, optimizer=SGDSettings(lr=1e6, momentum=0.9))
    assert train_to(separable_task(), wild, target=-1.0, first=1, cap=60)["status"] == "diverged"


def test_the_target_is_the_lowest_of_the_first_three_quarters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"updates": None, "status": "cap", "processor_seconds": 0.0}
    told |= {"evaluations": [[20, 0.5], [30, 0.3], [31, 0.2], [40, 0.1]]}
    monkeypatch.setattr("benchmarks.kfac_benefit_runs.train_to", lambda *_, **__: told)
    found = target_of(tmp_path, separable_task(), SMALL, SGD)
    assert found["target"] == 0.3
    assert [training["updates"] for training in found["tuning"]] == [30] * TRIALS_PER_ARM


def test_tuning_fixes_the_target_and_goes_on_where_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = separable_task()
    told = target_of(tmp_path / "sgd", task, SMALL, SGD)
    assert len(told["tuning"]) == TRIALS_PER_ARM
    own = tuned(tmp_path / "kfac", task, SMALL, KFAC, told["target"])
    runs = final_runs(
        tmp_path / "kfac", task, SMALL, KFAC, own, target=told["target"], seeds=(1, 2)
    )
    assert [run["seed"] for run in runs] == [1, 2]

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("it was trained before")

    monkeypatch.setattr("benchmarks.kfac_benefit_runs.train_to", refused)
    assert target_of(tmp_path / "sgd", task, SMALL, SGD) == told
    assert tuned(tmp_path / "kfac", task, SMALL, KFAC, told["target"]) == own


# --- what it says -------------------------------------------------------------------------------


def arm_results(name: str, counts: tuple[int | None, ...]) -> dict[str, Any]:
    runs = [
        {"seed": seed, "updates": count, "evaluations": [[20, 0.06], [count or 960, 0.02]]}
        for seed, count in enumerate(counts, start=1)
    ]
    return {"lr": 0.25, "second": 0.9, "target": 0.02, "cap": 960, "runs": runs}


RESULTS = {
    "autoencoder-sgd": arm_results("sgd", (400, 500, 400)),
    "autoencoder-kfac": arm_results("kfac", (100, 125, 100)),
    "autoencoder-adamw": arm_results("adamw", (300, None, 310)),
    "autoencoder-seconds": {
        "rounds": [{"sgd": 0.04, "kfac": 0.10, "adamw": 0.04}] * 5,
        "medians": {"sgd": 0.04, "kfac": 0.10, "adamw": 0.04},
    },
}


def test_ratios_are_taken_seed_by_seed() -> None:
    ratio = paired_ratio([1.0, 2.0, 4.0], [2.0, 4.0, 2.0])
    assert ratio.mean == pytest.approx(2.0 ** (-1 / 3))
    assert ratio.low < ratio.mean < ratio.high
    assert math.isnan(paired_ratio([1.0], [2.0]).low)


def test_the_table_says_what_was_not_reached_and_compares_seeds_that_both_reached() -> None:
    table = benefit_table(RESULTS)
    sgd, kfac, adamw = table.splitlines()[2:5]
    assert "| SGD |" in sgd
    assert "3 of 3" in sgd
    assert "0.25 (0.25 to 0.25), 3 pairs" in kfac
    assert kfac.endswith("| 0.62 |")
    assert "2 of 3" in adamw
    assert adamw.split("|")[7].endswith("2 pairs ")
    turned = RESULTS | {"autoencoder-sgd": arm_results("sgd", (None, 400, 400))}
    assert "2 pairs" in benefit_table(turned).splitlines()[3]
    none = RESULTS | {"autoencoder-kfac": arm_results("kfac", (None, None, None))}
    assert "> 960" in benefit_table(none)
    assert benefit_table({}) == "Not measured yet."


def test_the_verdict_counts_networks_at_2048() -> None:
    assert "0.25 x SGD's updates and 0.62 x" in benefit_verdict(RESULTS)
    large = RESULTS | {
        "mnist-2048-sgd": arm_results("sgd", (100, 100, 100)),
        "mnist-2048-kfac": arm_results("kfac", (80, 80, 80)),
    }
    assert benefit_verdict(large).endswith("25 % fewer updates at batch 2,048 on 0 of 1 networks")
    assert benefit_verdict({}) == "not measured yet"


def test_the_winners_may_be_two() -> None:
    slow = {"rounds": [], "medians": {"sgd": 0.01, "kfac": 0.10, "adamw": 0.04}}
    said = winners(RESULTS | {"autoencoder-seconds": slow})
    assert "fewest updates K-FAC (100), fewest seconds SGD (4.0 s)" in said


def test_the_figure_is_well_formed_and_holds_every_run() -> None:
    tree = ElementTree.fromstring(draw_autoencoder(RESULTS))
    curves = [line for line in tree.iter() if line.tag.endswith("polyline")]
    assert len(curves) == 2 * 9 + 3  # two panels and the legend
    assert "not measured yet" in draw_autoencoder({})
