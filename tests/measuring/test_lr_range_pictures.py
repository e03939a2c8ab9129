"""Pictures of an LR range test: what is drawn where, and the words and numbers beside it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from anybatch.drawing import REGIONS, Span
from anybatch.drawings.lr_range import draw_lr_metric, draw_lr_probes, draw_lr_range, probe_levels
from anybatch.measurement import Estimate, Measurement
from anybatch.reporting.figures import Picture
from anybatch.reporting.measurement_figures import measurement_picture

NAMES = ("stage", "repeat", "series", "update", "lr", "loss", "metric")
LRS = [10.0 ** (-4 + n / 10) for n in range(40)]  # up to 0.79
SPANS = {
    "learning_starts": Span(1e-3, 5e-4, 2e-3),
    "edge": Span(0.3, 0.2, 0.4),
    "max_lr": Span(0.1, 0.05, 0.2),
}


def columns(rows: list[tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
    return dict(zip(NAMES, map(tuple, zip(*rows, strict=True)), strict=True))


def ramp(repeat: float = 0.0, *, metric: float = math.nan) -> list[tuple[float, ...]]:
    """A loss of 2 that falls to 0.5 from lr 0.001 on, and ends far above and as no number."""
    losses = [2.0 + repeat if lr < 1e-3 else 0.5 for lr in LRS[:-3]] + [90.0, 900.0, math.nan]
    return [
        (0.0, repeat, repeat, float(n), lr, loss, metric)
        for n, (lr, loss) in enumerate(zip(LRS, losses, strict=True))
    ]


def probe(series: float, lr: float, *losses: float, repeat: float = 0.0) -> list[tuple[float, ...]]:
    return [(1.0, repeat, series, float(n), lr, v, math.nan) for n, v in enumerate(losses)]


PROBES = [
    *probe(0, 0.01, 2.0, 1.5, 1.0),
    *probe(1, 0.1, 2.0, 1.0, 0.2),
    *probe(2, 2.0, 2.0, 9.0, 1e6),
]


def measurement(rows: list[tuple[float, ...]], **changes: Any) -> Measurement:
    found = Measurement(
        kind="lr-range",
        settings={"metric_name": "accuracy"},
        samples=columns(rows),
        estimates={
            "max_lr": Estimate(value=0.1, low=0.05, high=0.2),
            "edge": Estimate(value=None, reason="never diverged"),
        },
        seconds=1.0,
        examples=320,
    )
    return replace(found, **changes)


def pictured(rows: list[tuple[float, ...]], **changes: Any) -> Picture:
    picture = measurement_picture(measurement(rows, **changes), "picture")
    assert picture is not None
    return picture


@pytest.fixture
def ax() -> Axes:
    return Figure().add_subplot()


def ends(ax: Axes, colour: str, alpha: float) -> list[tuple[float, float]]:
    """From where to where each band of a colour goes."""
    found = []
    for patch in ax.patches:
        if patch.get_facecolor() == pytest.approx(to_rgba(colour, alpha)):
            x = patch.get_path().transformed(patch.get_patch_transform()).vertices[:, 0]
            found.append((float(min(x)), float(max(x))))
    return found


# --- on an axes ----------------------------------------------------------------------------------


def test_regions_end_where_the_estimates_say(ax: Axes) -> None:
    draw_lr_range(ax, columns(ramp()), {}, SPANS)
    for name, expected in {
        "too small": (LRS[0], 1e-3),
        "learns": (1e-3, 0.3),
        "too large": (0.3, LRS[-1]),
    }.items():
        assert ends(ax, REGIONS[name], 0.10) == [pytest.approx(expected)], name


def test_a_suggestion_has_its_interval_as_a_band_inside_of_the_frame(ax: Axes) -> None:
    draw_lr_range(ax, columns(ramp()), {}, {"edge": Span(0.3, 0.2, math.inf)})
    (band,) = ends(ax, REGIONS["too large"], 0.15)
    assert band == pytest.approx((0.2, ax.get_xlim()[1]))


def test_losses_far_above_are_counted_and_the_fitted_curve_is_drawn(ax: Axes) -> None:
    fitted = {"lr": [1e-3, 1e-2], "loss": [1.9, 0.7]}
    assert draw_lr_range(ax, columns(ramp() + PROBES), fitted, {}) == 2
    assert ax.get_ylim()[0] < 0.5
    assert 2.0 < ax.get_ylim()[1] < 9.0
    curves = [(list(line.get_xdata()), list(line.get_ydata())) for line in ax.get_lines()]
    assert (fitted["lr"], fitted["loss"]) in curves
    assert len(curves[0][0]) == len(LRS)  # the losses of the ramp alone


def test_probes_are_drawn_a_little_beyond_the_loss_before_learning(ax: Axes) -> None:
    assert draw_lr_probes(ax, columns(ramp() + PROBES)) == 3
    low, high = ax.get_ylim()
    assert low < 0.2
    assert 2.0 < high < 2.0 + 0.25 * (2.0 - low)  # though one ends at a million


def test_probes_of_two_beginnings_are_kept_apart() -> None:
    rows = [*probe(0, 0.1, 3.0, 1.0), *probe(0, 0.2, 3.0, 2.0, repeat=1.0)]
    assert probe_levels(columns(rows)) == [(0.1, 1.0), (0.2, 2.0)]


def test_the_metric_is_that_of_the_ramp(ax: Axes) -> None:
    late = [(1.0, 0.0, 0.0, 0.0, 0.5, 1.0, 0.9)]
    assert draw_lr_metric(ax, columns(ramp(metric=0.25) + late), "accuracy") == len(LRS)
    assert ax.get_ylabel() == "accuracy"


# --- in a report ---------------------------------------------------------------------------------


def test_the_panels_are_those_that_have_something_to_show_on_one_axis() -> None:
    for rows, labels in [
        (ramp(), ["training loss"]),
        (ramp(metric=0.5), ["training loss", "accuracy"]),
        (ramp() + PROBES, ["training loss", "probe loss"]),
        (ramp(metric=0.5) + PROBES, ["training loss", "accuracy", "probe loss"]),
    ]:
        axes = pictured(rows).figure.axes
        assert [ax.get_ylabel() for ax in axes] == labels
        assert [bool(ax.get_xlabel()) for ax in axes] == [False] * (len(axes) - 1) + [True]
        largest = max(row[4] for row in rows)
        assert {ax.get_xlim() for ax in axes} == {axes[0].get_xlim()}
        assert axes[0].get_xlim()[0] < LRS[0] < largest < axes[0].get_xlim()[1]


def test_the_metric_has_its_own_name_or_is_called_so() -> None:
    for settings, label in [({}, "metric"), ({"metric_name": None}, "metric")]:
        assert pictured(ramp(metric=0.5), settings=settings).figure.axes[1].get_ylabel() == label


def test_under_the_pointer_are_the_losses_of_each_ramp() -> None:
    fitted = {"lr": (1e-3, 1e-2), "loss": (1.9, 0.7)}
    (frame,) = pictured(ramp() + ramp(1.0) + PROBES, fitted=fitted).frames
    curve, first, second = frame["series"]
    assert (curve["label"], curve["x"], curve["y"]) == ("fitted", [1e-3, 1e-2], [1.9, 0.7])
    assert [first["label"], second["label"]] == ["loss, ramp 1", "loss, ramp 2"]
    assert first["x"] == second["x"] == LRS
    assert (first["y"][0], second["y"][0]) == (2.0, 3.0)
    (alone,) = pictured(ramp() + PROBES).frames[0]["series"]
    assert alone["label"] == "loss"


def test_the_caption_says_what_the_picture_shows() -> None:
    caption = pictured(ramp() + PROBES).caption
    for words in (
        "Training loss of 40 updates while the learning rate rises (dots).",
        "max_lr 0.1.",
        "Not known: edge.",
        "1 losses are not finite",
        "2 losses lie above the frame",
        "3 short trainings",
    ):
        assert words in caption
    quiet = [(*row[:5], 1.0, math.nan) for row in ramp()]
    for words in ("not finite", "above the frame", "short trainings"):
        assert words not in pictured(quiet).caption


def test_estimates_of_several_units_have_no_picture() -> None:
    estimates = {
        "one": Estimate(value=1.0, unit="examples"),
        "other": Estimate(value=2.0, unit="seconds"),
    }
    mixed = measurement(ramp(), kind="other", estimates=estimates)
    assert measurement_picture(mixed, "picture") is None
    one = replace(mixed, estimates={"one": estimates["one"]})
    picture = measurement_picture(one, "picture")
    assert picture is not None
    assert "one 1 examples" in picture.caption
