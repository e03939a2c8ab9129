"""Drawing on a given Axes, and what notebooks show of runs, studies and measurements."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent / "reporting"))
from report_cases import RECIPE, lr_range, make_run, step

from anybatch.drawing import Line, Span, draw_lines, robust_limits
from anybatch.drawings.lr_range import draw_lr_probes
from anybatch.measurement import Measurement
from anybatch.run import Run
from anybatch.study import Study


@pytest.fixture
def ax() -> Axes:
    return Figure().add_subplot()


def drawn(ax: Axes, number: int) -> list[tuple[float, float]]:
    x, y = ax.get_lines()[number].get_data()
    return list(zip(map(float, x), map(float, y), strict=True))


def test_a_gap_is_left_open_and_marked(ax: Axes) -> None:
    draw_lines(ax, [Line(label="a", x=[1, 2, 3], y=[1.0, math.nan, 1.5])], x_label="", y_label="")
    (_, first), (_, gap), (_, last) = drawn(ax, 0)
    assert (first, last) == (1.0, 1.5)
    assert math.isnan(gap)
    assert [x for x, _ in drawn(ax, 1)] == [2.0]


def test_one_huge_value_does_not_flatten_the_rest_and_is_counted(ax: Axes) -> None:
    y = [1.0, 2.0] * 10 + [1e3]
    above = draw_lines(ax, [Line(label="", x=range(21), y=y)], x_label="", y_label="", log=False)
    assert above == 1
    assert ax.get_ylim()[1] < 4.0
    assert [x for x, _ in drawn(ax, 1)] == [20.0]


def test_limits_hold_every_value_of_a_quiet_curve() -> None:
    low, high = robust_limits([3.0, 2.0, 1.0, 2.5]) or (0.0, 0.0)
    assert low < 1.0
    assert high > 3.0
    assert robust_limits([2.0]) == (1.9, 2.1)
    low, high = robust_limits([0.1, 0.2, 0.3] * 9 + [1e30], log=True) or (0.0, 0.0)
    assert 0.0 < low < 0.1
    assert 0.3 < high < 10.0


def test_a_run_is_drawn_with_its_losses(tmp_path: Path, ax: Axes) -> None:
    run = make_run(tmp_path / "run")
    assert run.plot(ax) is ax
    assert drawn(ax, 0) == [(record.update, record.loss) for record in run.steps()]
    evals = [record for record in run.evals() if record.split == "validation"]
    assert drawn(ax, 1) == [(record.update, record.loss) for record in evals]


def test_a_run_without_records_or_numbers_is_drawn(tmp_path: Path, ax: Axes) -> None:
    run = Run.create(tmp_path / "run", RECIPE, {})
    assert not run.plot(ax).lines
    run.append(step(1, loss=math.nan))
    lines = run.plot(ax).lines
    assert lines
    assert not any(math.isfinite(y) for y in lines[0].get_ydata())


def test_an_lr_range_is_drawn_with_regions_and_suggestions(ax: Axes) -> None:
    assert lr_range().plot(ax) is ax
    assert ax.get_xscale() == "log"
    texts = {text.get_text() for text in ax.texts}
    assert texts == {"too small", "learns", "base_lr 0.01", "max_lr 0.25"}
    assert ax.get_ylim()[1] < 5.0  # the ramp goes up to 190
    ramp = drawn(ax, 0)
    assert len(ramp) == 40
    assert math.isnan(ramp[-1][1])


def test_probes_are_drawn_with_their_last_loss(ax: Axes) -> None:
    assert draw_lr_probes(ax, lr_range().samples) == 3
    assert drawn(ax, 0) == [(0.01, 0.5), (0.1, 0.5), (1.0, 0.5)]


def test_another_measurement_is_drawn_as_its_estimates(ax: Axes) -> None:
    measurement = Measurement(kind="other", settings={}, samples={}, seconds=1.0, examples=8,
                              estimates=lr_range().estimates)  # fmt: skip
    measurement.plot(ax)
    assert [text.get_text() for text in ax.get_yticklabels()] == [
        "learning_starts", "base_lr", "max_lr",
    ]  # fmt: skip


def test_without_an_axes_a_figure_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    from matplotlib import pyplot

    pyplot.switch_backend("agg")
    made = lr_range().plot()
    assert made.figure.axes == [made]
    pyplot.close("all")


def test_notebooks_show_tables_in_which_everything_is_escaped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "<run>")
    assert "<run>" not in run._repr_html_()
    assert "test accuracy 0.9000" in run._repr_html_()
    assert "0.01 lr (0.005 to 0.02)" in lr_range()._repr_html_()
    assert "the loss jumps; use --repeats 5" in lr_range()._repr_html_()
    study = Study.create(tmp_path / "study", {"a": RECIPE}, [0, 1], {"name": "digits"})
    assert "no value yet, 0 of 2 runs" in study._repr_html_()
    for trial, metric in zip(study.trials(), (0.9, 0.92), strict=True):
        make_run(trial.path, seed=trial.seed, metric=metric)
    assert "test accuracy 0.9100 (standard deviation 0.0141), 2 of 2" in study._repr_html_()


def test_plain_values_are_strict_json(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    measurement = lr_range()
    text = json.dumps(measurement.to_dict(), allow_nan=False)
    back = Measurement.from_dict(json.loads(text, parse_constant=refuse))
    assert back.estimates == measurement.estimates
    assert repr(back.samples) == repr(dict(measurement.samples))
    run = make_run(tmp_path / "run")
    run.append(step(30, loss=math.nan))
    json.dumps(run.to_dict(), allow_nan=False)


def test_an_unknown_interval_has_no_band(ax: Axes) -> None:
    from anybatch.drawings.lr_range import draw_lr_range

    draw_lr_range(ax, lr_range().samples, {}, {"base_lr": Span(0.01)})
    assert len(ax.patches) == 0
