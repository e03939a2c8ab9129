"""The plan on the page and its pictures: every number is the plan's, and labels can be read."""

from __future__ import annotations

import dataclasses
import html
import itertools
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from plan_cases import (
    COST,
    branches,
    following_run,
    measurements,
    pilot,
    plan_run,
    request,
)
from report_cases import make_run, step
from test_page import Tags, frames_of, text_of, words_of

from anybatch.drawing import Span
from anybatch.drawings.pilot import Forecast, draw_evaluations, draw_forecast
from anybatch.drawings.plan import ActualTime, PlannedTimes, draw_plan
from anybatch.measurement import Estimate
from anybatch.plan import Plan
from anybatch.planning.compose import Composer
from anybatch.recipe import Target
from anybatch.reporting.curves import panels
from anybatch.reporting.page import write_report
from anybatch.reporting.plan_section import plan_sections, price_table
from anybatch.reporting.sources import Subject, read_groups
from anybatch.reporting.summary import estimate_text, verdict
from anybatch.run import Run, Status, plan_outcome


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return plan_run(tmp_path_factory.mktemp("plans") / "plan")


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """With the fewest figures."""
    return plan_run(tmp_path_factory.mktemp("light") / "plan", measured=few())


def few(*, only: tuple[str, ...] = ("throughput", "pilot"), **changes: Any) -> Any:
    """Measurements without the figures of throughput, which take long."""
    found = {name: m for name, m in measurements(**changes).items() if name in (*only, *changes)}
    return {"throughput": measurements()["throughput"]} | found


@pytest.fixture(scope="module")
def plan(run: Run) -> Plan:
    found = run.plan
    assert found is not None
    return found


@pytest.fixture(scope="module")
def page(run: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    return text_of([run], tmp_path_factory.mktemp("page"))


def caption_of(page: str, name: str) -> str:
    found = re.search(rf'id="{name}">.*?<figcaption>(.*?)</figcaption>', page, flags=re.DOTALL)
    assert found
    return html.unescape(found.group(1))


# --- the page of a plan --------------------------------------------------------------------------


def test_the_verdict_is_the_plans_lines_and_comes_first(page: str, plan: Plan) -> None:
    words = words_of(page)
    assert words.startswith("digits: plan digits: plan ")  # title and heading
    before, _, after = words.partition(f"Batch size {plan.batch_size:,} (any of")
    for line in plan.lines():
        assert line[1:] in words
    assert "Predicted seconds" not in before
    assert "Predicted seconds" in after
    for name in ("updates", "seconds"):
        low, high = (
            f"{end:,.0f}" if end >= 1000 else f"{end:.3g}"
            for end in (plan.predictions[name].low, plan.predictions[name].high)
        )
        shown = f"{name} to {plan.request.target} ("
        assert shown in before
        assert before.partition(shown)[2].startswith((low[:3], high[:3]))


def test_the_page_goes_from_the_answer_to_its_grounds(page: str) -> None:
    words = words_of(page)
    order = ["The plan", "Price list", "Why", "What would change it", "What was noticed",
             "throughput Seconds per update", "lr-range Loss against", "noise-scale-1 Gradient",
             "noise-scale-2 Gradient", "pilot Learning curve", "What planning cost",
             "Recipe the whole recipe", "Environment", "To repeat"]  # fmt: skip
    places = [words.index(part) for part in order]
    assert places == sorted(places)
    assert "Curves" not in words  # the pilot's stand in its own figure


def test_reasons_and_what_would_change_it_are_the_plans(page: str, plan: Plan) -> None:
    words = words_of(page)
    assert len(plan.reasons) >= 4
    for reason in plan.reasons:
        assert f"{reason.name} : {reason.sentence}".replace(" :", ":") in words.replace(" :", ":")
    for sentence in plan.would_change:
        assert sentence in words
    for finding in plan.findings:
        assert f"{finding.name} {finding.sentence} {finding.advice}" in words
    assert words.count("the clock is noisy") == 1


def test_reasons_lead_to_the_figure_that_they_rest_on(page: str, plan: Plan) -> None:
    links = dict(re.findall(r'<a href="#([^"]*)">\((.*?)\)</a>', page))
    titles = dict(re.findall(r'<figure class="wide" id="([^"]*)">\s*<h3>(.*?)</h3>', page))
    found = {kind: titles[figure] for figure, kind in links.items()}
    assert found == {
        "noise-scale": "Gradient noise scale",
        "lr-range": "Loss against learning rate",
    }
    sections = re.split("<h2>", page)
    (second,) = [part for part in sections if part.startswith("noise-scale-2")]
    figure = next(figure for figure, kind in links.items() if kind == "noise-scale")
    assert f'id="{figure}"' in second  # the later one, which says more of the run
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    tags = Tags()
    tags.feed(page)
    assert {reference[:1] for reference in tags.references} == {"#", "d"}


def test_the_flat_region_is_shaded_and_no_other_row(page: str, plan: Plan) -> None:
    table = page.partition("<h3>Price list</h3>")[2].partition("</table>")[0]
    rows = re.findall(r'<tr( class="shaded")?><th scope="row">([\d,]+)', table)
    sizes = {int(size.replace(",", "")) for _, size in rows}
    flat = {price.batch_size for price in plan.prices if price.near_optimal}
    shaded = {int(size.replace(",", "")) for shade, size in rows if shade}
    assert shaded == flat & sizes
    assert {min(flat), max(flat), plan.batch_size, plan.request.present_batch_size} <= sizes
    assert 2 <= len(shaded) < len(sizes) <= 18
    assert f"{plan.batch_size} (plan)" in words_of(table)
    assert f"{plan.request.present_batch_size} (present)" in words_of(table)


def test_prices_are_the_plans_with_their_intervals(plan: Plan) -> None:
    rows = {row[0].partition(" ")[0]: row for row in price_table(plan).rows}
    for price in plan.prices:
        row = rows.get(f"{price.batch_size:,}")
        if row is not None:
            estimates = (price.updates, price.seconds, price.device_hours)
            assert list(row[1:4]) == [estimate_text(e, unit=False) for e in estimates]
            assert (row[4] == "yes") == price.near_optimal


def test_prices_on_several_ranks_have_their_own_flat_region(plan: Plan) -> None:
    on_two = tuple(
        dataclasses.replace(price, ranks=2, near_optimal=price.batch_size == 1, fits=False)
        for price in plan.prices
    )
    table = price_table(dataclasses.replace(plan, prices=(*plan.prices, *on_two)))
    assert table.head[1] == "ranks"
    shaded = [table.rows[number][:2] for number in sorted(table.shaded)]
    assert shaded[-1] == ("1", "2")
    assert all(ranks == "1" for _, ranks in shaded[:-1])
    assert {row[-1] for row in table.rows if row[1] == "2"} == {"does not fit"}


def test_the_cost_is_told_by_stage(page: str) -> None:
    words = words_of(page).partition("What planning cost")[2]
    assert "throughput 1.5 measuring lr-range 2.25 measuring pilot 4 training" in words
    measuring = sum(seconds for stage, seconds in COST.items() if stage != "pilot")
    assert f"{measuring:.3g} s of measuring by the short procedure" in words


def test_the_recipe_of_the_page_is_the_planned_one(page: str, run: Run, plan: Plan) -> None:
    text = html.unescape(page.partition('<section id="recipe">')[2].partition("</pre>")[0])
    assert f'"batch_size": {plan.batch_size},' in text
    assert run.recipe.batch_size != plan.batch_size  # of the pilot
    words = words_of(page)
    assert f"batch_size {plan.request.present_batch_size} {plan.batch_size}" in words
    assert "anybatch train digits --plan " in words
    assert "--recipe" not in words.partition("To repeat")[2]


def test_the_points_of_the_picture_are_the_predictions(page: str, plan: Plan) -> None:
    seconds, low, high = frames_of(page)["plan"][0]["series"]
    times = plan.times().shown()
    assert seconds["x"] == list(times.batch_sizes)
    assert seconds["y"] == list(times.seconds)
    assert (low["y"], high["y"]) == (list(times.low), list(times.high))
    caption = caption_of(page, "plan")
    predicted = plan.predictions["seconds"]
    assert f"Plan, {plan.batch_size}: {estimate_text(predicted)}, its pilot included" in caption
    assert estimate_text(plan.predictions["seconds_of_present"]) in caption
    assert f"{plan.near_optimal[0]} to {plan.near_optimal[-1]} cost at most 5 % more" in caption


# --- runs that follow ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reached", "factor", "said"),
    [
        (True, 1.0, "inside"),
        (True, 99.0, "outside, in seconds"),
        (False, 1.0, "not reached, so outside"),
    ],
)
def test_a_run_begins_with_predicted_against_actual(
    tmp_path: Path, plan: Plan, reached: bool, factor: float, said: str
) -> None:
    seconds = factor * (plan.predictions["seconds"].value or 0.0) - 1.0 * (not reached)
    follower = following_run(tmp_path / "train", plan, reached=reached, seconds=seconds)
    outcome = plan_outcome(plan, follower.status)
    assert outcome is not None
    assert outcome.sentence().endswith(f": {said}")
    assert outcome.inside == (said == "inside")
    subject = Subject.read(follower, "train")
    assert verdict(subject).startswith(f"P{outcome.sentence()[1:]}. Finished")
    took = f"{float(f'{outcome.seconds:.3g}'):,g} s"
    missed = f"A run missed the target in {took} (triangle)."
    (section,) = plan_sections([subject], {})
    caption = section.picture.caption
    assert (f"A run took {took} (diamond)." if reached else missed) in caption
    markers = {line.get_marker() for line in section.picture.figure.axes[0].get_lines()}
    assert markers & {"D", "^"} == {"D" if reached else "^"}
    assert section.cost is None  # that stands in the plan's folder
    assert {reason.figure for reason in section.reasons} == {""}  # which has the figures too


def test_the_end_of_the_pilot_is_a_line_in_the_curves(tmp_path: Path, plan: Plan) -> None:
    short = dataclasses.replace(plan, pilot={**plan.pilot, "updates": 15.0, "seconds": 3.5})
    page = text_of([following_run(tmp_path / "train", short)], tmp_path)
    words = words_of(page)
    assert words.index("Predicted 1") < words.index("The plan")
    assert "What planning cost" not in words
    assert "without the plan's pilot" in words
    for name in ("loss", "metric", "lr"):
        assert "The plan's pilot ended at the dashed line, update 15." in caption_of(
            page, f"{name}-updates"
        )
    frame = frames_of(page)["loss-seconds"][0]
    left, _, right, _ = frame["box"]
    share = (3.5 - frame["x"]["low"]) / (frame["x"]["high"] - frame["x"]["low"])
    svg = re.search(r'data-picture="loss-seconds">(.*?)</svg>', page, flags=re.DOTALL)
    assert svg
    lines = re.findall(r'<path d="M ([\d.]+) [\d.]+ \n?L ([\d.]+) [^"]*"[^>]*stroke-dasharray',
                       svg.group(1))  # fmt: skip
    at = left + share * (right - left)
    assert [pytest.approx(at, abs=0.01)] * 2 in [[float(a), float(b)] for a, b in lines]
    assert "momentum 0.9 throughout" in words
    alone = read_groups([make_run(tmp_path / "alone")])
    assert not any(panel.marks for panel in panels(alone))


def test_a_batch_size_that_the_plan_changed_is_drawn(tmp_path: Path, plan: Plan) -> None:
    """The pilot's was another; without a plan a smaller one is the last of an epoch."""
    follower = following_run(tmp_path / "train", plan)  # records say 32
    assert plan.batch_size != 32
    for update in range(41, 51):
        follower.append(step(update, batch_size=plan.batch_size))
    (drawn,) = [panel for panel in panels(read_groups([follower])) if panel.name == "batch-size"]
    assert set(drawn.series[0].values) == {32, plan.batch_size}
    assert not drawn.constant
    (follower.path / "plan.json").unlink()
    (told,) = [panel for panel in panels(read_groups([follower])) if panel.name == "batch-size"]
    assert "the last update of an epoch is smaller" in told.constant


def test_a_plan_and_its_run_are_one_page_that_tells_the_plan_once(
    tmp_path: Path, light: Run
) -> None:
    plan = light.plan
    assert plan is not None
    follower = following_run(tmp_path / "train", plan)
    page = text_of([light, follower], tmp_path)
    words = words_of(page)
    assert words.startswith("digits: plan and run")
    assert words.count("Price list") == 1
    assert [name for name in frames_of(page) if name.startswith("plan")] == ["plan"]
    assert words.index("train : Predicted") < words.index(f"plan : Batch size {plan.batch_size}")
    assert "diamond" in caption_of(page, "plan")
    assert "What planning cost" in words
    labels = [series["label"] for series in frames_of(page)["loss-updates"][0]["series"]]
    assert labels == ["training", "validation"]  # of the run; the pilot is its beginning
    assert "standard deviation" not in words  # a pilot is no arm
    again = plan_run(tmp_path / "again", asked=request(batch_size=512), measured=few())
    subjects = [Subject.read(run, run.path.name) for run in (light, follower, again)]
    told = plan_sections(subjects, {})
    assert [section.picture.name for section in told] == ["plan", "plan-1"]
    assert [section.label for section in told] == ["plan", "again"]


def test_a_run_under_way_is_no_plan_and_is_not_compared(tmp_path: Path, plan: Plan) -> None:
    follower = following_run(tmp_path / "train", plan)
    follower.write_status(Status(name="running"))
    subject = Subject.read(follower, "train")
    assert not subject.is_plan
    assert verdict(subject).startswith("Still running, or killed: validation")


# --- plans that know little ----------------------------------------------------------------------


def test_a_target_out_of_reach_has_a_page_of_lower_ends(tmp_path: Path) -> None:
    far = plan_run(tmp_path / "far", asked=request("accuracy>=0.9999"), measured=few())
    plan = far.plan
    assert plan is not None
    assert plan.predictions["seconds"].value is None
    page = text_of([far], tmp_path)
    words = words_of(page)
    assert f"at least {estimate_text(plan.predictions['seconds'])[9:]}" in words
    assert "target-far" in words
    assert "have no upper end (band to the upper edge)" in caption_of(page, "plan")


def test_a_plan_that_was_cut_short_says_so(tmp_path: Path) -> None:
    only = {"throughput": measurements()["throughput"]}
    part = plan_run(tmp_path / "part", measured=only, partial="ended by Ctrl-C during the pilot")
    page = text_of([part], tmp_path)
    words = words_of(page)
    assert "Partial: ended by Ctrl-C during the pilot." in words
    assert "No batch size has a prediction." in caption_of(page, "plan")
    assert "not known" in words


def test_a_pilot_without_a_look_is_told_without_a_picture(tmp_path: Path) -> None:
    measured = few(pilot=pilot(looks=0))
    page = text_of([plan_run(tmp_path / "plan", measured=measured)], tmp_path)
    assert "Learning curve of the pilot" not in page


# --- other forms ---------------------------------------------------------------------------------


def test_markdown_and_files_hold_the_plan(tmp_path: Path, light: Run) -> None:
    plan = light.plan
    assert plan is not None
    follower = following_run(tmp_path / "train", plan)
    text = write_report([light, follower], tmp_path / "page.md", format="md").read_text()
    assert text.count("## The plan") == 1
    assert "](page-figures/plan.svg)" in text
    assert (tmp_path / "page-figures" / "plan.svg").read_text().startswith("<?xml")
    assert all(f"- {sentence[:30]}" in text.replace("\\", "") for sentence in plan.would_change)
    links = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert all((tmp_path / link).exists() for link in links)
    figures = write_report([light], tmp_path / "figures", format="png")
    names = {path.name for path in figures.iterdir()}
    assert names == {"plan.png", "measurement-0.png", "measurement-1.png"}


def test_a_report_of_a_plan_leaves_torch_out(tmp_path: Path, light: Run) -> None:
    code = f"""
import sys
from anybatch.cli import main
assert main(["report", {str(light.path)!r}, "--out", {str(tmp_path / "page.md")!r},
             "--format", "md"]) == 0
assert "torch" not in sys.modules
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr


def test_training_and_report_compare_by_the_same_rule(tmp_path: Path, plan: Plan) -> None:
    from anybatch.planning.continuing import predicted_and_actual

    follower = following_run(tmp_path / "train", plan, seconds=0.001)
    outcome = plan_outcome(plan, follower.status)
    assert outcome is not None
    told = predicted_and_actual(follower)
    assert told is not None
    seconds = plan.predictions["seconds"]
    assert told["seconds"] == [0.001, seconds.value, seconds.low, seconds.high]
    assert told["updates"][0] == 880.0
    assert (told["inside"], told["reached"]) == (outcome.inside, outcome.reached) == (False, True)


# --- the picture of a plan -----------------------------------------------------------------------

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def planned(sizes: tuple[int, ...] = SIZES, **changes: Any) -> PlannedTimes:
    seconds = tuple(10.0 * (size / 64 + 64 / size) ** 0.5 for size in sizes)
    times = PlannedTimes(
        batch_sizes=sizes,
        seconds=seconds,
        low=tuple(0.7 * value for value in seconds),
        high=tuple(1.6 * value for value in seconds),
        near_optimal=(32, 128),
        chosen=64,
        present=16,
        predicted=Span(14.0, 10.0, 25.0),
    )
    return times._replace(**changes)


def drawn(times: PlannedTimes, size: tuple[float, float] = (7.0, 4.0)) -> Axes:
    figure = Figure(figsize=size, dpi=72, layout="constrained")
    ax = figure.add_subplot()
    draw_plan(ax, times)
    FigureCanvasAgg(figure).draw()
    return ax


def texts_of(ax: Axes) -> list[Text]:
    return [text for text in ax.texts if text.get_text()]


took = (ActualTime(64, 17.0, True),)
CASES = {
    "usual": planned(actual=took),
    "neighbours": planned(chosen=64, present=128, actual=took),
    "other neighbours": planned(chosen=64, present=32, actual=took),
    "same": planned(present=64, actual=took),
    "left edge": planned(chosen=1, present=2, near_optimal=(1, 2), actual=(took[0],)),
    "right edge": planned(chosen=1024, present=512, near_optimal=(512, 1024)),
    "one alone": planned((64,), present=64, near_optimal=(64, 64)),
    "two": planned((32, 64), present=32, near_optimal=(64, 64)),
    "three close": planned((60, 64, 1000), present=60, near_optimal=(60, 64)),
    "endless": planned(high=(math.inf,) * len(SIZES), predicted=Span(14.0, 9.0, math.inf)),
    "wide": planned(seconds=tuple(1e6 / size for size in SIZES), predicted=None,
                    low=tuple(5e5 / size for size in SIZES),
                    high=tuple(9e6 / size for size in SIZES)),
    "nothing": planned((), near_optimal=(), predicted=Span(None)),
    "lower ends": planned(seconds=(math.nan,) * len(SIZES), high=(math.inf,) * len(SIZES),
                          predicted=Span(None, 12.0, math.inf)),
    "many": planned(tuple(2**k for k in range(14)), actual=took),
    "missed": planned(actual=(ActualTime(64, 400.0, False),)),
    "large": planned((1024, 16384, 65536, 262144), chosen=65536, present=1024,
                     near_optimal=(16384, 65536)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_labels_and_ticks_of_a_plan_can_be_read(name: str) -> None:
    """No two of them overlap, none is cut, and none lies on the curve."""
    ax = drawn(CASES[name])
    frame = ax.figure.bbox
    boxes = [text.get_window_extent() for text in texts_of(ax)]
    ticks = [[label.get_window_extent() for label in axis.get_ticklabels() if label.get_text()]
             for axis in (ax.xaxis, ax.yaxis)]  # fmt: skip
    for group in (boxes, *ticks):
        assert not any(a.overlaps(b) for a, b in itertools.combinations(group, 2))
    assert all(box.x0 >= frame.x0 - 1 and box.x1 <= frame.x1 + 1 for box in boxes)
    low, high = ax.get_ylim()
    shown = [tick for tick in ax.get_yticks() if low <= tick <= high]
    sides = [tick for tick in ax.get_xticks() if ax.get_xlim()[0] <= tick <= ax.get_xlim()[1]]
    assert 2 <= len(shown) <= 12
    assert 1 <= len(sides) <= 12
    heights = [value for line in ax.get_lines() if len(line.get_xdata()) > 2
               for value in line.get_ydata() if math.isfinite(value)]  # fmt: skip
    top = max([*heights, low])
    own = ("plan", "present", "took", "not reached")
    inside = [box for text, box in zip(texts_of(ax), boxes, strict=True)
              if text.get_text().startswith(own)]  # fmt: skip
    assert all(ax.transData.inverted().transform((box.x0, box.y0))[1] > top for box in inside)
    upright = [line.get_window_extent() for line in ax.get_lines()
               if list(line.get_ydata())[:1] == [0] and len(line.get_xdata()) == 2]  # fmt: skip
    assert not any(
        line.x0 - 1 < box.x1 and line.x0 + 1 > box.x0 and line.y1 > box.y0
        for box in inside[:2]  # of plan and present
        for line in upright
    )


def test_a_plan_that_is_the_present_choice_is_marked_once() -> None:
    words = [text.get_text() for text in texts_of(drawn(CASES["same"]))]
    assert "plan and present 64" in words
    assert not any(text.startswith("present") for text in words)


def test_labels_stand_on_the_sides_that_are_turned_away_from_each_other() -> None:
    for name, plan_side in (("other neighbours", "left"), ("neighbours", "right")):
        sides = {t.get_text().split()[0]: t.get_ha() for t in texts_of(drawn(CASES[name]))}
        other = {"left": "right", "right": "left"}[plan_side]
        assert (sides["plan"], sides["present"]) == (plan_side, other)


def test_the_band_reaches_the_edge_where_an_interval_has_no_end() -> None:
    ax = drawn(CASES["endless"])
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert max(band) == pytest.approx(ax.get_ylim()[1])
    assert (
        max(drawn(CASES["usual"]).collections[0].get_paths()[0].vertices[:, 1])
        < 0.9 * (drawn(CASES["usual"]).get_ylim()[1])
    )


def test_the_shade_holds_the_flat_region_and_no_other_size() -> None:
    for name in ("usual", "two", "left edge", "three close"):
        ax, times = drawn(CASES[name]), CASES[name]
        (patch,) = ax.patches
        left, right = patch.get_x(), patch.get_x() + patch.get_width()
        flat = [size for size in times.batch_sizes if left <= size <= right]
        assert (flat[0], flat[-1]) == times.near_optimal
        assert len(flat) == sum(
            times.near_optimal[0] <= size <= times.near_optimal[1] for size in times.batch_sizes
        )


def test_the_prediction_with_its_pilot_and_what_it_took_are_marked() -> None:
    lines = drawn(CASES["usual"]).get_lines()
    found = {line.get_marker(): (list(line.get_xdata()), list(line.get_ydata())) for line in lines
             if line.get_marker() in ("_", "D")}  # fmt: skip
    assert found == {"_": ([64, 64], [10.0, 25.0]), "D": ([64], [17.0])}
    dots = [
        (line.get_xdata()[0], line.get_ydata()[0]) for line in lines if line.get_marker() == "o"
    ]
    assert dots == [(64, 14.0), (16, CASES["usual"].seconds[4])]
    missed = [line.get_marker() for line in drawn(CASES["missed"]).get_lines()]
    assert "^" in missed
    assert "D" not in missed


def test_sizes_that_would_flatten_the_others_are_left_to_the_price_list() -> None:
    times = planned(seconds=(900.0, 99.0, *(10.0,) * 9), chosen=64, present=16)
    assert times.shown().batch_sizes == SIZES[1:]
    assert times._replace(present=1).shown().batch_sizes == SIZES


def test_plot_draws_the_plan_on_a_given_axes(plan: Plan) -> None:
    ax = Figure().add_subplot()
    assert plan.plot(ax) is ax
    assert ax.get_ylabel() == "seconds to the target"


# --- the pictures of pilot and branches ----------------------------------------------------------


def test_the_forecast_lies_on_the_targets_line(plan: Plan) -> None:
    measured = pilot()
    ax = Figure().add_subplot()
    draw_evaluations(ax, measured.measured)
    draw_forecast(ax, (300.0, 0.92), Forecast("accuracy>=0.95", 0.95, Span(700.0, 500.0, 2000.0)))
    curve, target, interval, onwards, dot = ax.get_lines()
    assert list(curve.get_ydata()) == list(measured.samples["metric"])
    assert set(target.get_ydata()) == {0.95}
    assert list(zip(interval.get_xdata(), interval.get_ydata(), strict=True)) == [
        (500.0, 0.95), (2000.0, 0.95),
    ]  # fmt: skip
    assert list(onwards.get_xdata()) == [300.0, 700.0]
    assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (700.0, 0.95)
    assert ax.get_xscale() == "log"
    assert ax.get_xlim()[1] > 2000.0
    assert ax.get_ylim()[1] > 0.95


def test_the_forecast_of_the_page_is_the_price_at_the_pilots_batch_size(
    page: str, plan: Plan
) -> None:
    (price,) = [price for price in plan.prices if price.batch_size == 64]
    low, middle, high = (
        f"{float(f'{end:.3g}'):,g}"
        for end in (price.updates.low, price.updates.value, price.updates.high)
    )
    caption = caption_of(page, "measurement-4")
    assert f"expected after {middle} updates ({low} to {high}, the bar)" in caption


def test_a_target_of_the_loss_is_drawn_on_the_losses(tmp_path: Path) -> None:
    from anybatch.reporting.plan_figures import pilot_picture

    composer = Composer(request("loss<=0.05"), measurements())
    plan = composer.plan(procedure="short", cost={})
    picture = pilot_picture(pilot(), plan, "pilot")
    assert picture is not None
    above, below = picture.figure.axes
    has_target = [any(set(line.get_ydata()) == {0.05} for line in ax.get_lines())
                  for ax in (above, below)]  # fmt: skip
    assert has_target == [False, True]
    assert Target.parse(plan.request.target).value == 0.05


def test_a_forecast_of_losses_over_decades_leaves_room_on_a_logarithmic_axis() -> None:
    ax = Figure().add_subplot()
    ax.plot([1.0, 300.0], [2.3, 0.07])
    ax.set_yscale("log")
    draw_forecast(ax, (300.0, 0.07), Forecast("loss<=0.06", 0.06, Span(500.0, 470.0, 610.0)))
    low, high = ax.get_ylim()
    assert 0.0 < low < 0.06
    assert high > 2.3


def test_an_endless_forecast_reaches_the_edge() -> None:
    ax = Figure().add_subplot()
    draw_evaluations(ax, pilot().measured)
    draw_forecast(ax, (300.0, 0.9), Forecast("0.99", 0.99, Span(None, 800.0, math.inf)))
    (interval,) = [line for line in ax.get_lines() if line.get_marker() == "|"]
    assert list(interval.get_xdata()) == [800.0, ax.get_xlim()[1]]
    assert [text.get_text() for text in ax.texts] == ["0.99: not foreseen"]


def test_branches_are_drawn_over_the_same_time() -> None:
    arms = ((64, 0.1), (16, 0.2), (256, 0.4))
    measured = branches(arms, updates=40)
    ax = measured.plot(Figure().add_subplot())
    first, second, lost = ax.get_lines()[:3]
    assert [line.get_label() for line in (first, second, lost)] == [
        "64 at lr 0.1", "16 at lr 0.2", "256 at lr 0.4",
    ]  # fmt: skip
    # Means over four updates and two data orders, of a straight line: its middle.
    assert first.get_xdata()[0] == pytest.approx((4 - 2) / 40)
    assert first.get_ydata()[0] == pytest.approx(1.0 - 0.5 * 2.5 / 40 + 0.005)
    assert first.get_ydata()[-1] == pytest.approx(1.0 - 0.5 * 38.5 / 40 + 0.005)
    assert [math.isnan(value) for value in lost.get_ydata()].index(True) == len(
        lost.get_ydata()
    ) - 1


def test_the_ends_of_branches_and_their_spread_are_told(tmp_path: Path) -> None:
    arms = ((64, 0.1), (16, 0.2), (256, 0.4))
    measured = few(branches=branches(arms))
    page = text_of([plan_run(tmp_path / "plan", measured=measured)], tmp_path)
    caption = caption_of(page, "measurement-2")
    assert "64 at lr 0.1: 40 updates, training loss 0.5188 to 0.5288" in caption
    assert "256 at lr 0.4: 40 updates, diverged" in caption
    words = words_of(page)
    assert words.index("pilot Learning curve") < words.index("branches Branches from the pilot")


def test_pictures_of_pilot_and_branches_serve_measurement_plot() -> None:
    for measured in (pilot(), branches(((64, 0.1), (16, 0.2)), seeds=1)):
        ax = measured.plot(Figure().add_subplot())
        assert ax.get_lines()


def test_estimates_in_words() -> None:
    assert estimate_text(Estimate(value=0.1234, low=0.1, high=0.2)) == "0.123 (0.1 to 0.2)"
    assert estimate_text(Estimate(value=None, reason="far")) == "not known: far"
