"""The page in a headless Chromium: no errors, figures present, dark, narrow, printed, hovered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import MISSING, Browser
from plan_cases import following_run, plan_run
from report_cases import evaluation, lr_range, make_run, step

from anybatch.reporting.page import write_report
from anybatch.run import Run, Status

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

UPDATES = 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("runs") / "first", updates=UPDATES)


@pytest.fixture(scope="module")
def page(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a measurement, one that diverged, and one with a long name."""
    folder = tmp_path_factory.mktemp("page")
    run.add_measurement(lr_range())
    diverged = Status(name="diverged", reason="the loss is not finite " * 8, update=1)
    other = make_run(folder / ("long-" * 12 + "name"), updates=1, seed=3, status=diverged)
    other.append(step(2, loss=float("nan")))
    other.append(evaluation(2, loss=float("inf"), metric=0.1))
    return write_report([run, other], folder / "report.html")


@pytest.fixture(scope="module")
def alone(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report([run], tmp_path_factory.mktemp("alone") / "report.html")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan and the run that follows it."""
    folder = tmp_path_factory.mktemp("planned")
    of_plan = plan_run(folder / "plan")
    assert of_plan.plan is not None
    follower = following_run(folder / "train", of_plan.plan)
    return write_report([of_plan, follower], folder / "report.html")


BOXES = """
return [...document.querySelectorAll("figure")].filter(figure => figure.checkVisibility())
  .map(figure => { const box = figure.querySelector("svg").getBoundingClientRect();
                   return [figure.id, box.width, box.height, figure.innerText.length]; });
"""


def test_every_picture_is_there_along_every_axis_and_nothing_is_said(
    browser: Browser, page: Path
) -> None:
    browser.width(1100)
    browser.media()
    browser.open(page)
    seen = set()
    for axis in ("updates", "examples", "seconds"):
        browser.script(f"document.getElementById('along-{axis}').click()")
        boxes = browser.script(BOXES)
        assert {name for name, *_ in boxes} == {
            "measurement-0", f"training-loss-{axis}", f"validation-loss-{axis}",
            f"metric-{axis}", f"lr-{axis}",
        }  # fmt: skip
        assert all(width > 200 and height > 100 for _, width, height, _ in boxes)
        seen |= {name for name, *_ in boxes}
    assert len(seen) == 13
    assert [line for line in browser.console() if line["level"] != "INFO"] == []


@pytest.mark.parametrize("width", [320, 360, 800])
def test_a_phone_scrolls_the_page_only_downwards(browser: Browser, page: Path, width: int) -> None:
    browser.width(width)
    browser.media()
    browser.open(page)
    assert browser.script("return innerWidth") == width
    assert browser.script("return document.documentElement.scrollWidth") <= width


CONTRAST = """
const channel = value => (value /= 255) <= 0.04045 ? value / 12.92
  : ((value + 0.055) / 1.055) ** 2.4;
const luminance = colour => { const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(channel);
                              return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const paper = luminance(getComputedStyle(document.body).backgroundColor);
const ratio = colour => { const own = luminance(colour);
  return (Math.max(own, paper) + 0.05) / (Math.min(own, paper) + 0.05); };
const texts = [...document.querySelectorAll("h1, h2, p, dd, dt, th, td, figcaption, li, summary")]
  .map(element => ratio(getComputedStyle(element).color));
const drawn = [...document.querySelectorAll("svg text")]
  .map(text => ratio(getComputedStyle(text).fill));
const lines = [0, 1, 2, 3, 4, 5].map(number => {
  document.body.style.outlineColor = `var(--series-${number})`;
  return ratio(getComputedStyle(document.body).outlineColor); });
return [Math.min(...texts), Math.min(...drawn), Math.min(...lines), paper];
"""


@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_text_and_curves_stand_out_by_day_and_by_night(
    browser: Browser, page: Path, scheme: str, is_dark: bool
) -> None:
    browser.width(1100)
    browser.media(scheme=scheme)
    browser.open(page)
    texts, drawn, lines, paper = browser.script(CONTRAST)
    assert (paper < 0.05) == is_dark
    assert texts >= 4.5  # what WCAG asks of small text
    assert drawn >= 4.5
    assert lines >= 4.5  # the box under the pointer writes in these colours


def test_on_paper_nothing_is_dark_even_by_night(browser: Browser, page: Path) -> None:
    browser.width(700)
    browser.media("print", scheme="dark")
    browser.open(page)
    assert browser.script("return getComputedStyle(document.body).color") == "rgb(32, 38, 46)"
    background = browser.script("return getComputedStyle(document.body).backgroundColor")
    assert background == "rgba(0, 0, 0, 0)"
    inside = "return getComputedStyle(document.querySelector('figure')).breakInside"
    assert browser.script(inside) == "avoid"
    assert all(width > 100 for _, width, _, _ in browser.script(BOXES))


PLACE = """
const plot = document.querySelector(`[data-picture="${arguments[0]}"]`);
plot.scrollIntoView({block: "center"});
const frame = frames[arguments[0]][0], area = plot.querySelector("svg").getBoundingClientRect();
const [left, top, right, bottom] = frame.box;
const scale = area.width / plot.querySelector("svg").viewBox.baseVal.width;
const x = left + share(frame.x, arguments[1]) * (right - left);
return [area.left + x * scale, area.top + (top + bottom) / 2 * scale];
"""
BOX = "const box = document.querySelector('.box'); return box && box.innerText"


def test_the_values_under_the_pointer_are_the_runs(browser: Browser, alone: Path, run: Run) -> None:
    browser.width(1100)
    browser.media()
    browser.open(alone)
    losses = {record.update: record.loss for record in run.steps()}
    evals = {r.update: r.loss for r in run.evals() if r.split == "validation"}
    for update in (7, 30):
        browser.point(*browser.script(PLACE, "loss-updates", update))
        lines = browser.script(BOX).split("\n")
        assert lines[0] == f"updates {update}"
        assert float(lines[1].removeprefix("training ")) == pytest.approx(losses[update], rel=1e-4)
        if update in evals:
            assert float(lines[2].removeprefix("validation ")) == pytest.approx(evals[update])
    browser.point(2, 2)
    assert browser.script(BOX) is None


def test_the_pointer_reads_an_lr_range_and_arrow_keys_walk_along_it(
    browser: Browser, alone: Path, run: Run
) -> None:
    browser.width(1100)
    browser.media()
    browser.open(alone)
    samples = run.measurements()["lr-range"].samples
    at = 25
    browser.point(*browser.script(PLACE, "measurement-0", samples["lr"][at]))
    first, *rest = browser.script(BOX).split("\n")
    assert float(first.removeprefix("lr ")) == pytest.approx(samples["lr"][at], rel=1e-4)
    own = next(line for line in rest if line.startswith("loss "))
    assert float(own.split()[1]) == pytest.approx(samples["loss"][at], rel=1e-4)
    browser.script(
        "arguments[0].dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}))"
        .replace("arguments[0]", "document.querySelector('[data-picture=measurement-0]')")
    )  # fmt: skip
    after = browser.script(BOX).split("\n")[0]
    assert float(after.removeprefix("lr ")) == pytest.approx(samples["lr"][at + 1], rel=1e-4)
    assert browser.console() == []


TABLES = """
return [...document.querySelectorAll(".scroll")].map(area =>
  [area.getBoundingClientRect().right, area.scrollWidth, area.tabIndex]);
"""


def test_a_plans_page_fits_every_screen_and_its_wide_parts_scroll(
    browser: Browser, planned: Path
) -> None:
    for width in (320, 360, 800):
        browser.width(width)
        browser.media()
        browser.open(planned)
        assert browser.script("return document.documentElement.scrollWidth") <= width
        areas = browser.script(TABLES)
        assert all(right <= width for right, *_ in areas)
    assert {"plan", "measurement-0"} <= {name for name, *_ in browser.script(BOXES)}
    assert [line for line in browser.console() if line["level"] != "INFO"] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_plan_can_be_read_by_day_and_by_night(
    browser: Browser, planned: Path, scheme: str
) -> None:
    browser.width(1100)
    browser.media(scheme=scheme)
    browser.open(planned)
    texts, drawn, *_ = browser.script(CONTRAST)
    assert texts >= 4.5
    assert drawn >= 4.5
    shades = browser.script(
        "return [...document.querySelectorAll('tr.shaded > *')]"
        ".map(cell => getComputedStyle(cell).backgroundColor)"
    )
    assert shades
    assert "rgba(0, 0, 0, 0)" not in shades


def test_the_pointer_reads_a_plan_and_a_reason_leads_to_its_figure(
    browser: Browser, planned: Path
) -> None:
    browser.width(1100)
    browser.media()
    browser.open(planned)
    (frame,) = browser.script("return frames.plan")
    seconds = frame["series"][0]
    at = len(seconds["x"]) // 2
    browser.point(*browser.script(PLACE, "plan", seconds["x"][at]))
    lines = browser.script(BOX).split("\n")
    assert lines[0] == f"batch size {seconds['x'][at]:.0f}"
    assert float(lines[1].removeprefix("seconds ")) == pytest.approx(seconds["y"][at], rel=1e-4)
    assert len(lines) == 4  # and both ends of the interval
    href = browser.script(
        "const link = document.querySelector('.reasons a'); link.click();"
        "return link.getAttribute('href')"
    )
    seen = "return document.querySelector(arguments[0]).getBoundingClientRect().top"
    assert -5 <= browser.script(seen, href) <= 900


def test_without_script_everything_is_readable(browser: Browser, page: Path) -> None:
    browser.width(1100)
    browser.media()
    browser.without_script()
    try:
        browser.open(page)
        found = browser.devtools("DOM.getDocument", depth=-1)
        assert "figcaption" in str(found)
        layout = browser.devtools("Page.getLayoutMetrics")["cssContentSize"]
        assert layout["height"] > 1500
    finally:
        browser.without_script(False)
