"""The calibrated factor between noise scale and critical batch size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from anybatch.errors import InputError
from anybatch.planning.arithmetic import calibration as module
from anybatch.planning.arithmetic.calibration import (
    calibration_for,
    calibration_rows,
    narrowed,
)


@dataclass
class Row:
    b_simple: float | None
    b_crit: float | None


def test_the_shipped_rows_say_where_they_are_from() -> None:
    rows = calibration_rows()
    assert len(rows) >= 9
    for row in rows:
        assert row.source
        assert row.certainty in module._shipped()["certainties"]
        assert row.optimizer in ("sgd", "adam", "unsure")
        assert row.domain in ("classification", "generative", "language", "regression")
        assert row.b_simple is not None or row.weight == 0.0
        assert row.elbow is not None or row.elbow_weight == 0.0
    published = {row.name: row.b_simple / row.b_crit for row in rows if row.b_simple}
    for name, kappa in (("MNIST", 4.5), ("SVHN", 8), ("CIFAR-10", 2.2), ("ImageNet, ResNet-50", 2)):
        assert published[name] == pytest.approx(kappa, rel=0.02)
    assert published["SVHN, autoencoder"] == pytest.approx(0.05)


def test_a_row_that_is_not_sure_counts_for_less() -> None:
    unsure = [row for row in calibration_rows() if row.optimizer == "unsure"]
    assert unsure
    assert all(row.weight <= 0.5 for row in unsure)


def test_image_classification_has_a_median_near_three_and_a_band_of_one_to_ten() -> None:
    images = calibration_for("sgd", "classification")
    low, high = images.kappa_band
    assert images.kappa_median == pytest.approx(3.0, rel=0.1)
    assert low == pytest.approx(1.0, rel=0.1)
    assert high == pytest.approx(10.0, rel=0.1)


def test_what_is_less_known_is_wider() -> None:
    images = calibration_for("sgd", "classification")
    anything = calibration_for("sgd", None)
    adam = calibration_for("adam", "classification")
    assert images.log_spread < adam.log_spread
    assert images.log_spread < anything.log_spread
    assert calibration_for("sgd", "regression") == anything
    assert adam.kappa_band[0] < 0.15
    assert adam.kappa_band[1] > 1.0


def test_the_elbow_lies_between_the_hyperbola_and_the_tuned_curve() -> None:
    images = calibration_for("sgd", "classification")
    assert 1.0 < images.elbow_median < 3.0
    half = images.elbow_log_spread
    assert images.elbow_median * math.exp(-1.3 * half) < 1.0
    assert images.elbow_median * math.exp(1.3 * half) > 3.0


def test_one_far_row_does_not_take_over(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = calibration_rows()
    before = calibration_for("sgd", "classification")
    far = [*rows, module.CalibrationRow(**_values(rows[0]) | {"b_crit": 1e-3})]
    monkeypatch.setattr(module, "calibration_rows", lambda: tuple(far))
    after = calibration_for("sgd", "classification")
    assert after.kappa_median == pytest.approx(before.kappa_median, rel=0.5)
    assert after.log_spread < 2.5 * before.log_spread


def _values(row: module.CalibrationRow) -> dict[str, object]:
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


def test_the_ledger_narrows_by_the_conjugate_rule() -> None:
    before = calibration_for("sgd", "classification")
    common, own = before.log_spread**2 * 2 / 3, before.log_spread**2 / 3
    pairs = [Row(600.0, 300.0), Row(800.0, 200.0)]
    after = calibration_for("sgd", "classification", pairs)
    precision = 1 / common + 2 / own
    centre = math.log(before.kappa_median) / common + (math.log(2) + math.log(4)) / own
    assert math.log(after.kappa_median) == pytest.approx(centre / precision)
    assert after.log_spread**2 == pytest.approx(1 / precision + own)
    assert after.elbow_median == before.elbow_median
    assert "2 of your own" in after.source


def test_the_ledger_in_any_order_empty_and_endless() -> None:
    before = calibration_for("adam", None)
    pairs = [Row(600.0, 300.0), Row(50.0, 100.0), Row(10.0, 30.0)]
    forward, backward = narrowed(before, pairs), narrowed(before, pairs[::-1])
    assert forward.kappa_median == pytest.approx(backward.kappa_median)
    unusable = [Row(None, 3.0), Row(3.0, None), Row(math.inf, 3.0), Row(0.0, 3.0)]
    assert narrowed(before, unusable) == before
    endless = narrowed(before, [Row(30.0, 100.0)] * 10_000)
    assert endless.kappa_median == pytest.approx(0.3, rel=0.01)
    assert endless.log_spread == pytest.approx(before.log_spread / math.sqrt(3), rel=0.01)


def test_bad_input() -> None:
    with pytest.raises(InputError, match="kind must be sgd or adam"):
        calibration_for("muon", None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="domain must be one of classification"):
        calibration_for("sgd", "vision")
